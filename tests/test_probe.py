"""Draws, probes, intervals, tables and encoders, each against something made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from sklearn.linear_model import LogisticRegression

from pipeline.reference import decode
from probe.encoders import Encoder, GreyAsColour, imagenet_encoder, read_run, scratch_encoder, simclr_encoder
from probe.features import extract_features
from probe.fewshot import NotMeasurable, make_draws
from probe.linear import Scores, interval, probe_draws, standardise
from probe.table import MEAN, layout, score_table, to_markdown
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
    for draw in make_draws(labels, "Mass", shots=10, draws=30, seed=0):
        support, test = labels.iloc[draw.support], labels.iloc[draw.test]
        assert len(support) == 20 and support["patient"].nunique() == 20
        assert (support["Mass"].to_numpy() == draw.support_labels).all() and draw.support_labels.sum() == 10
        assert (test["Mass"].to_numpy() == draw.test_labels).all() and draw.test_labels.mean() == 0.5
        assert test["key"].is_unique
        assert not set(support["patient"]) & set(test["patient"])
        assert len(test) == 2 * min((labels[labels["split"] == "test"]["Mass"] == value).sum() for value in (0, 1))


def test_draws_differ_and_repeat_with_the_seed(labels: pd.DataFrame) -> None:
    once, again, other = (make_draws(labels, "Mass", shots=5, draws=10, seed=seed) for seed in (0, 0, 1))
    assert all((a.support == b.support).all() and (a.test == b.test).all() for a, b in zip(once, again, strict=True))
    assert len({tuple(sorted(draw.support)) for draw in [*once, *other]}) == 20


def test_every_patient_is_as_likely_however_many_images_it_has() -> None:
    patients = ["many"] * 50 + [f"p{number}" for number in range(9)]
    frame = pd.DataFrame({
        "patient": [*patients, *(f"n{number}" for number in range(30)), *(f"t{number}" for number in range(8))],
        "split": ["train"] * 89 + ["test"] * 8, "Mass": [1.0] * 59 + [0.0] * 30 + [1.0, 0.0] * 4,
    })  # fmt: skip
    draws = make_draws(frame, "Mass", shots=3, draws=1000, seed=0)
    share = np.mean(["many" in frame["patient"][draw.support].tolist() for draw in draws])
    assert share == pytest.approx(0.3, abs=0.06)  # 3 of 10 patients


def test_too_few_examples_are_counted_not_guessed(labels: pd.DataFrame) -> None:
    with pytest.raises(NotMeasurable, match="patients with positive training images, 80 wanted"):
        make_draws(labels, "Mass", shots=80, draws=1, seed=0)
    with pytest.raises(NotMeasurable, match="0 positive and"):
        make_draws(labels[(labels["split"] == "train") | (labels["Mass"] != 1)], "Mass", shots=3, draws=1, seed=0)


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
    found, nothing = (probe_draws(standardise(features, train), draws) for features in (signal, noise))
    assert found.auroc.mean() > 0.8 and found.accuracy.mean() > 0.7
    assert nothing.auroc.mean() == pytest.approx(0.5, abs=0.05)
    assert nothing.accuracy.mean() == pytest.approx(0.5, abs=0.05)


def test_scores_equal_those_counted_by_hand(labels: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 6)).astype(np.float32)
    draws = make_draws(labels, "Mass", shots=10, draws=3, seed=0)
    scores = probe_draws(features, draws)
    for number, draw in enumerate(draws):
        probe = LogisticRegression().fit(features[draw.support], draw.support_labels)
        decision = probe.decision_function(features[draw.test])
        positive, negative = decision[draw.test_labels == 1], decision[draw.test_labels == 0]
        pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
        assert scores.auroc[number] == pytest.approx(pairs, abs=1e-12)
        assert scores.accuracy[number] == pytest.approx(((positive > 0).mean() + (negative <= 0).mean()) / 2, abs=1e-12)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [low <= 0.6 <= high for _ in range(2000) for _, low, high in [interval(rng.normal(0.6, 0.1, 20))]]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(interval(np.array([0.6]))[1])


def test_the_table_has_the_published_layout_and_says_na_where_nothing_was_measured() -> None:
    encoders = [scratch_encoder("resnet18", 0), Encoder("ImageNet", "where from", None, missing="no network")]
    rng = np.random.default_rng(0)
    scores = {("Scratch", task): Scores(rng.uniform(size=8), rng.uniform(size=8)) for task in ("A", "B")}
    table = score_table(encoders, scores, ["A", "B"])
    header, rows = layout(table, "auroc")
    assert header == ["", "A", "B", MEAN] and [row[0] for row in rows] == ["Scratch", "ImageNet (no network)"]
    assert rows[1][1:] == ["n/a"] * 3
    by_hand = (scores["Scratch", "A"].auroc + scores["Scratch", "B"].auroc) / 2
    assert rows[0][3].startswith(f"{by_hand.mean():.3f} [")
    cell = table[(table["task"] == "A") & (table["metric"] == "accuracy") & (table["encoder"] == "Scratch")].iloc[0]
    assert cell["mean"] == pytest.approx(scores["Scratch", "A"].accuracy.mean()) and cell["draws"] == 8
    assert f"{100 * cell['mean']:.1f} [" in to_markdown(table, ["note"]) and "- note" in to_markdown(table, ["note"])


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
