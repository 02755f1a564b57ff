"""Draws, probes, intervals, tables and encoders, each against something made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from sklearn.linear_model import LogisticRegression

from pipeline.reference import decode
from probe.encoders import (
    THUMBNAIL,
    Encoder,
    GreyAsColour,
    imagenet_encoder,
    read_run,
    scratch_encoder,
    simclr_encoder,
    thumbnail_encoder,
)
from probe.features import extract_features
from probe.fewshot import (
    Blank,
    NotMeasurable,
    Uncertain,
    make_draws,
    read_draws,
    resolve_labels,
    write_draws,
)
from probe.linear import probe_draws, standardise
from probe.statistics import Scores, estimate, mean_of, resample, score
from probe.table import (
    ALL,
    BALANCED,
    MEAN,
    TABLES,
    against_pixels,
    difference_table,
    layout,
    layout_differences,
    score_table,
    to_markdown,
    with_mean,
)
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.read import read_labels
from tests.conftest import Shards


@pytest.fixture
def labels() -> pd.DataFrame:
    """400 images of 130 patients: Mass 1, 0, -1 or blank; a third of the patients in test."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 130, 400)
    split = np.where(patient % 3 == 0, "test", "train")
    mass = rng.choice([1.0, 0.0, -1.0, np.nan], 400, p=[0.3, 0.4, 0.1, 0.2])
    return pd.DataFrame({"key": np.arange(400).astype(str), "patient": patient, "split": split, "Mass": mass})


def test_draws_are_balanced_disjoint_by_patient_and_without_uncertain_or_blank(labels: pd.DataFrame) -> None:
    draws = make_draws(labels, "Mass", shots=10, draws=30, seed=0)
    test = labels.iloc[draws.test]
    held_out = labels[labels["split"] == "test"]["Mass"]
    assert (test["Mass"].to_numpy() == draws.test_labels).all() and len(test) == held_out.isin([0, 1]).sum()
    assert test["key"].is_unique
    assert len(draws.positive) == len(draws.negative) == len(draws.balanced) == 30
    for rows, classes, balanced in zip(*draws.support(10), draws.balanced, strict=True):
        support = labels.iloc[rows]
        assert len(support) == 20 and support["patient"].nunique() == 20
        assert (support["Mass"].to_numpy() == classes).all() and classes.sum() == 10
        assert not set(support["patient"]) & set(test["patient"])
        assert draws.test_labels[balanced].mean() == 0.5
        assert balanced.sum() == 2 * min((held_out == value).sum() for value in (0, 1))


def test_draws_differ_and_repeat_with_the_seed(labels: pd.DataFrame) -> None:
    once, again, other = (make_draws(labels, "Mass", shots=5, draws=10, seed=seed) for seed in (0, 0, 1))
    assert (once.support(5)[0] == again.support(5)[0]).all() and (once.balanced == again.balanced).all()
    assert len({tuple(sorted(support)) for support in [*once.support(5)[0], *other.support(5)[0]]}) == 20
    assert len({balanced.tobytes() for balanced in [*once.balanced, *other.balanced]}) == 20


def test_every_patient_is_as_likely_however_many_images_it_has() -> None:
    patients = ["many"] * 50 + [f"p{number}" for number in range(9)]
    frame = pd.DataFrame({
        "patient": [*patients, *(f"n{number}" for number in range(30)), *(f"t{number}" for number in range(8))],
        "split": ["train"] * 89 + ["test"] * 8, "Mass": [1.0] * 59 + [0.0] * 30 + [1.0, 0.0] * 4,
    })  # fmt: skip
    draws = make_draws(frame, "Mass", shots=3, draws=1000, seed=0)
    share = np.mean(["many" in frame["patient"][support].tolist() for support in draws.support(3)[0]])
    assert share == pytest.approx(0.3, abs=0.06)  # 3 of 10 patients


def test_too_few_examples_are_counted_not_guessed(labels: pd.DataFrame) -> None:
    with pytest.raises(NotMeasurable, match="patients with positive training images, 80 wanted"):
        make_draws(labels, "Mass", shots=80, draws=1, seed=0).support(80)
    with pytest.raises(NotMeasurable, match="0 positive and"):
        make_draws(labels[(labels["split"] == "train") | (labels["Mass"] != 1)], "Mass", shots=3, draws=1, seed=0)


def test_fewer_shots_are_the_first_of_more(labels: pd.DataFrame) -> None:
    draws = make_draws(labels, "Mass", shots=12, draws=4, seed=0)
    many, few = draws.support(12)[0], draws.support(5)[0]
    assert np.array_equal(few, many[:, [*range(5), *range(12, 17)]])


def test_uncertain_and_blank_become_what_is_asked(labels: pd.DataFrame) -> None:
    before = labels["Mass"].copy()
    counts = {(uncertain, blank): resolve_labels(labels, ["Mass"], uncertain, blank)["Mass"].value_counts().to_dict()
              for uncertain in get_args(Uncertain) for blank in get_args(Blank)}  # fmt: skip
    positive, negative, unsure = ((before == value).sum() for value in (1, 0, -1))
    missing = before.isna().sum()
    assert counts["exclude", "exclude"] == {0: negative, 1: positive}
    assert counts["positive", "exclude"] == {0: negative, 1: positive + unsure}
    assert counts["negative", "negative"] == {0: negative + unsure + missing, 1: positive}
    assert labels["Mass"].equals(before)


def test_draws_handed_to_others_are_the_same_draws(labels: pd.DataFrame, tmp_path: Path) -> None:
    made = make_draws(labels, "Mass", shots=10, draws=6, seed=0)
    file = tmp_path / "draws.csv"
    file.write_bytes(write_draws({"Mass": made}, labels))
    (read,) = read_draws(file, labels).values()
    for name in ("positive", "negative", "test", "test_labels", "balanced"):
        assert np.array_equal(getattr(made, name), getattr(read, name)), name


@pytest.mark.parametrize(
    ("break_it", "wanted"),
    [(lambda table: table.assign(key="nobody"), "key nobody, and .* more, are not in these shards"),
     (lambda table: table.assign(role=table["role"].replace({"positive": "negative", "negative": "positive"})),
      "Mass: draw 0: not all of its positive examples are positive training images"),
     (lambda table: table[table["role"] != "test"], "draw 0: its test examples are not all labelled test images"),
     (lambda table: table.assign(key=table["key"].where(table.index != 1, table["key"][0])), "has a patient twice"),
     (lambda table: table.assign(task="Else"), "Else is not a finding"),
     (lambda table: table.drop(columns="role"), "its columns are task, draw, key"),
     (lambda table: table.assign(draw="first"), "not a table of draws")],
)  # fmt: skip
def test_draws_that_do_not_fit_are_refused(labels: pd.DataFrame, tmp_path: Path, break_it: Any, wanted: str) -> None:
    file = tmp_path / "draws.csv"
    file.write_bytes(write_draws({"Mass": make_draws(labels, "Mass", shots=5, draws=2, seed=0)}, labels))
    break_it(pd.read_csv(file, dtype={"key": str})).to_csv(file, index=False)
    with pytest.raises(InputError, match=rf"--draws-file=.*{wanted}"):
        read_draws(file, labels)
    with pytest.raises(InputError, match="no such file; a report writes one"):
        read_draws(tmp_path / "absent.csv", labels)


def test_standardising_looks_at_training_rows_alone_and_gives_length_one() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (500, 40)).astype(np.float32)
    train = np.arange(500) < 300
    standard = standardise(features, train)
    assert np.square(standard[train]).sum(axis=1).mean() == pytest.approx(1, abs=1e-3)
    moved = features.copy()
    moved[~train] += 100
    assert np.array_equal(standardise(moved, train)[train], standard[train])


def test_the_probe_finds_what_is_there_and_nothing_where_nothing_is(labels: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 16)).astype(np.float32)
    signal = noise.copy()
    signal[:, 3] += 3 * np.nan_to_num(labels["Mass"].to_numpy())
    draws = make_draws(labels, "Mass", shots=10, draws=40, seed=0)
    train = (labels["split"] == "train").to_numpy()
    found, nothing = (
        score(probe_draws(standardise(features, train), *draws.support(10), draws.test), draws.test_labels,
              labels["patient"].to_numpy()[draws.test], resample(40, 130, replicates=2), draws.balanced)
        for features in (signal, noise)
    )  # fmt: skip
    assert found.of("auroc").both[0] > 0.8 and found.of("accuracy").both[0] > 0.7
    for metric in ("auroc", "accuracy"):
        assert nothing.of(metric).both[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("width", "shots"), [(6, 10), (512, 10), (40, 1), (16, 50)])
@pytest.mark.parametrize("inverse_l2", [1e-2, 1.0, 100.0])
def test_decision_values_are_those_of_scikit_learn_draw_by_draw(width: int, shots: int, inverse_l2: float) -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(300, width)) / np.sqrt(width)).astype(np.float32)
    support = np.array([rng.choice(200, 2 * shots, replace=False) for _ in range(5)])
    classes, test = np.tile(np.repeat([1, 0], shots), (5, 1)), np.arange(200, 300)
    found = probe_draws(features, support, classes, test, inverse_l2=inverse_l2)
    for draw in range(5):
        probe = LogisticRegression(C=inverse_l2, tol=1e-10, max_iter=10_000)
        wanted = probe.fit(features[support[draw]].astype(float), classes[draw]).decision_function(features[test])
        assert np.abs(found[draw] - wanted).max() < 1e-4


def chance(rng: np.random.Generator) -> Scores:
    return Scores(rng.uniform(size=(41, 5)), rng.uniform(size=(41, 5)), rng.uniform(size=(8, 5)))


def test_the_table_has_the_published_layout_and_says_na_where_nothing_was_measured() -> None:
    encoders = [scratch_encoder("resnet18", 0), Encoder("ImageNet", "where from", None, missing="no network")]
    rng = np.random.default_rng(0)
    measured = {("Scratch", task, test): chance(rng) for task in ("A", "B") for test in (BALANCED, ALL)}
    replicates = with_mean(measured, encoders, ["A", "B"])
    table = score_table(encoders, replicates, ["A", "B"], 8)
    header, rows = layout(table, TABLES[0])
    assert header == ["", "A", "B", MEAN] and [row[0] for row in rows] == ["Scratch", "ImageNet (no network)"]
    assert rows[1][1:] == ["n/a"] * 3
    of_a, of_b = (measured["Scratch", task, ALL].of("auroc") for task in ("A", "B"))
    wanted = estimate(mean_of([of_a, of_b]))
    assert wanted.mean == (of_a.both[0] + of_b.both[0]) / 2
    assert rows[0][3] == f"{wanted.mean:.3f} [{wanted.low:.3f}, {wanted.high:.3f}]"
    chosen = (table["task"] == "A") & (table["metric"] == "accuracy") & (table["encoder"] == "Scratch")
    cell = table[chosen & (table["test"] == BALANCED)].iloc[0]
    assert cell["mean"] == measured["Scratch", "A", BALANCED].of("accuracy").both[0] and cell["draws"] == 8
    _, by_all = layout(table, TABLES[2], {"A": 0.75, "B": 0.5})
    assert by_all[-1] == ["Majority class", "75.0", "50.0", "62.5"]
    shown = to_markdown([("Accuracy", *layout(table, TABLES[1]))], ["note"])
    assert f"| {100 * cell['mean']:.1f} [" in shown and "**Accuracy**" in shown and "- note" in shown


def test_paired_differences_are_replicate_by_replicate_and_corrected_over_tasks() -> None:
    encoders = [Encoder(name, "", None) for name in ("Scratch", "SimCLR")]
    rng = np.random.default_rng(0)
    replicates = {("Scratch", task, ALL): chance(rng) for task in ("A", "B", "C")}
    for task in ("A", "B"):
        one = replicates["Scratch", task, ALL]
        replicates["SimCLR", task, ALL] = Scores(one.both + 0.1, one.patients + 0.1, one.draws + 0.1)
    table = difference_table(encoders, with_mean(replicates, encoders, ["A", "B", "C"]), ["A", "B", "C"])
    by_task = table.set_index("task")
    assert list(by_task.index) == ["A", "B", MEAN] and set(table["reference"]) == {"Scratch"}
    # The spread that both share is gone.
    assert by_task.loc["A", ["difference", "low", "high"]].to_numpy(float) == pytest.approx([0.1] * 3)
    assert by_task.loc["A", "p_holm"] == pytest.approx(2 * by_task.loc["A", "p"]) == pytest.approx(4 / 41)
    header, rows = layout_differences(table)
    assert header == ["", "A", "B", MEAN] and rows[0][:2] == ["SimCLR − Scratch", "+0.100 [+0.100, +0.100], p = 0.098"]


def test_the_thumbnail_is_the_mean_of_each_square_and_what_does_not_beat_it_is_called_so() -> None:
    image = torch.randn(2, 1, 64, 64)
    module = thumbnail_encoder().module
    assert module is not None
    wanted = image.unflatten(2, (16, 4)).unflatten(4, (16, 4)).mean((3, 5))
    assert torch.allclose(module(image), wanted.flatten(1), atol=1e-6)
    names = ("encoder", "reference", "task", "low")
    rows = [("SimCLR", THUMBNAIL, "A", 0.01), ("SimCLR", THUMBNAIL, "B", -0.01), ("ImageNet", THUMBNAIL, "A", -0.1),
            ("SimCLR", "Scratch", "B", 0.1), ("SimCLR", THUMBNAIL, MEAN, 0.1)]  # fmt: skip
    assert against_pixels(pd.DataFrame(rows, columns=names)) == [
        "SimCLR beats the 16×16 thumbnail on A. "
        "SimCLR does not beat the 16×16 thumbnail, with its whole interval, on B.",
        "ImageNet does not beat the 16×16 thumbnail, with its whole interval, on A.",
    ]


def test_imagenet_features_equal_torchvisions_on_the_grey_image_three_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "weights.pt")
    encoder = imagenet_encoder("resnet18", 0.53, 0.24, tmp_path / "weights.pt")
    assert isinstance(encoder.module, GreyAsColour)
    grey = torch.rand(2, 1, 64, 64)
    resnet.fc = torch.nn.Identity()
    colour = torchvision.transforms.functional.normalize(
        grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.inference_mode():
        assert torch.allclose(encoder.module((grey - 0.53) / 0.24), resnet.eval()(colour), atol=1e-4)


@pytest.mark.parametrize("content", ["missing", "no weights", "other arch"])
def test_imagenet_weights_that_do_not_fit_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "weights.pt"
    if content == "no weights":
        file.write_text("text")
    elif content == "other arch":
        torch.save(torchvision.models.resnet34(weights=None).state_dict(), file)
    with pytest.raises(InputError, match=r"--imagenet-weights=.*weights\.pt: no"):
        imagenet_encoder("resnet18", 0.5, 0.25, file)


def test_the_simclr_encoder_is_the_run_s(trained: Path) -> None:
    state = read_run(trained)
    encoder = simclr_encoder(state)
    assert encoder.module is not None
    weights = encoder.module.state_dict()
    assert all(torch.equal(value, state["model"][f"encoder.{name}"]) for name, value in weights.items())
    assert "epoch 2" in encoder.source


def test_features_repeat_to_the_bit_and_follow_the_labels_order(shards: Shards) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(1, 2, 3))[:, None]

    module = scratch_encoder("resnet18", 0).module
    assert module is not None
    splits = tuple(shards.manifest.counts)
    once, again = (
        extract_features([module, Mean()], shards.folder, shards.manifest, splits, size=32, mean=0.0, std=1.0,
                         batch_size=batch_size, device=torch.device("cpu"), workers=1)
        for batch_size in (32, 32)
    )  # fmt: skip
    assert np.array_equal(once[0], again[0]) and once[0].shape == (121, 512)
    labels = read_labels(shards.folder, shards.manifest, splits)
    assert len(labels) == 121
    means = {}
    for split in splits:
        images = Fetcher(shards.folder, shards.manifest, split)
        means |= {images.key(number): float(decode(images, number).mean()) for number in range(len(images))}
    wanted = np.array([means[key] for key in labels["key"]])
    assert np.abs(once[1][:, 0] - wanted).max() < 0.02 < wanted.std()
