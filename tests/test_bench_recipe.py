"""bench.recipe: chooses on validation patients, tests all others once by cross-fitting, and resumes from results."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from simplejpeg import decode_jpeg

from bench.recipe import choice as choosing
from bench.recipe import claim as claiming
from bench.recipe import design, evaluation, grid
from bench.recipe.choice import CHOICE, RIVALS, Choice, choose, find_candidates, read_choice
from bench.recipe.claim import Outcome, claim_cells, claim_jobs, collect, is_same_machine, make_claim
from bench.recipe.comparison import MEAN, claim_effects, correct_p_values, difference, with_mean, worth
from bench.recipe.design import IMAGENET, SCRATCH, THUMBNAIL, Study, check_shards
from bench.recipe.evaluation import EvaluationSet, choose_curve_tasks, choose_tasks, make_evaluation_set
from bench.recipe.folds import FOLDS, assign_folds, build_fold_shards, fold_splits
from bench.recipe.grid import BASE, CELLS, CONTINUED, LITE0, RANDOM, Cell, choose_cells
from bench.recipe.job import Job, is_trained
from bench.recipe.jobs import job_workers
from bench.recipe.page import describe_changes
from bench.recipe.pooling import POOLINGS, with_pooling
from bench.recipe.result import RunResult, read_result, write_result
from bench.recipe.study import bench_recipe
from probe.baselines import scratch_encoder
from probe.statistics import Scores, estimate, holm, mean_over_folds, over_seeds
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.phantom.archive import phantom
from shard.read import read_labels
from shard.write import build
from tests.conftest import Shards
from train.checkpoint import save_checkpoint
from train.config import Config
from train.recipe import recipe_of
from train.weights.preprocessing import Input

FINDINGS = ("Cardiomegaly", "Pleural Effusion")


def build_three_splits(radiographs: Path, folder: Path, **flags: Any) -> Shards:
    """Shards of phantoms with a plain table; a hash assigns the patients to train, valid and test."""
    table = folder / "table.csv"
    with table.open("w", newline="") as file:
        rows = [row for name in ("train", "valid") for row in csv.DictReader((radiographs / f"{name}.csv").open())]
        writer = csv.writer(file)
        writer.writerow(["path", "patient", *FINDINGS])
        for row in rows:
            path = re.sub("^.*?/(?=train/|valid/)", "", row["Path"])
            labels = [str(float(float(row[name] or 0) == 1)) for name in FINDINGS]
            writer.writerow([path, re.search(r"patient\d+", path)[0], *labels])  # type: ignore[index]
    out = folder / "shards"
    build(radiographs, out, **{"dataset": "csv", "table": table, "size": 64, "partners": 2, "workers": 1, **flags})
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="module")
def three_splits(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Such shards of the 121 radiographs."""
    return build_three_splits(radiographs, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of EfficientNet-Lite0, in place of ImageNet's."""
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
    return file


def make_study(shards: Shards, out: Path, imagenet: Path = Path("none"), cells: Any = CELLS, seeds: int = 2) -> Study:
    return Study(shards.folder, shards.manifest, imagenet, out, out / "results", [*cells], seeds, 5, 1)


# The folds and tasks


def test_each_fold_tests_other_patients_and_as_many_of_each_finding() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{number}" for number in range(300)], 2)
    labels = pd.DataFrame({"patient": patients, "split": np.repeat(rng.choice(["train", "valid", "test"], 300), 2)})
    labels["rare"] = np.repeat(rng.random(300) < 0.1, 2).astype(float)
    labels["common"] = np.repeat(rng.random(300) < 0.4, 2).astype(float)
    folds = assign_folds(labels, ("rare", "common"))
    assert set(folds[labels["split"] == "valid"]) == {-1}
    tested = labels.assign(fold=folds)[labels["split"] != "valid"]
    assert set(tested["fold"]) == set(range(FOLDS)) and (tested.groupby("patient")["fold"].nunique() == 1).all()
    for finding in (None, "rare", "common"):
        chosen = tested if finding is None else tested[tested[finding] == 1]
        counts = chosen.groupby("fold")["patient"].nunique()
        assert counts.max() - counts.min() <= (3 if finding == "common" else 1)
    assert not np.array_equal(folds, assign_folds(labels, ("rare", "common"), seed=1))


def test_shards_of_a_fold_train_on_all_other_patients_with_the_same_pixels(
    three_splits: Shards, tmp_path: Path
) -> None:
    manifest = three_splits.manifest
    labels = read_labels(three_splits.folder, manifest, tuple(manifest.counts))
    folds = assign_folds(labels, manifest.findings)
    shards = build_fold_shards(three_splits.folder, manifest, folds, tmp_path)
    of_fold = read_manifest(shards[1])
    found = read_labels(shards[1], of_fold, tuple(of_fold.counts))
    expected = fold_splits(labels, folds, 1).set_index("key")
    assert found.set_index("key")[["split", *manifest.findings]].sort_index().equals(
        expected[["split", *manifest.findings]].sort_index())  # fmt: skip
    assert set(labels["patient"][folds == 1]) == set(found.loc[found["split"] == "test", "patient"])
    originals = {}
    for split in manifest.counts:
        fetcher = Fetcher(three_splits.folder, manifest, split)
        originals |= {fetcher.key(number): fetcher.read(number) for number in range(len(fetcher))}
    copies = Fetcher(shards[1], of_fold, "train")
    for number in range(len(copies)):  # only the header may differ
        copy, original = (decode_jpeg(jpeg, "GRAY") for jpeg in (copies.read(number), originals[copies.key(number)]))
        assert np.array_equal(copy, original)
    before = (shards[1] / "manifest.json").stat().st_mtime_ns
    build_fold_shards(three_splits.folder, manifest, folds, tmp_path)
    assert (shards[1] / "manifest.json").stat().st_mtime_ns == before


def test_raw_shards_are_refused(three_splits: Shards, tmp_path: Path) -> None:
    raw = replace(three_splits.manifest, settings={**three_splits.manifest.settings, "encoding": "raw"})
    with pytest.raises(InputError, match="contains raw images"):
        build_fold_shards(three_splits.folder, raw, np.zeros(3, np.int64), tmp_path)


def test_tasks_are_all_findings_with_enough_tested_patients() -> None:
    labels = pd.DataFrame({"patient": [f"p{number}" for number in range(120)],
                           "split": ["valid"] * 40 + ["train"] * 50 + ["test"] * 30})  # fmt: skip
    for name, positive in (("A", range(60, 80)), ("B", range(61, 80)), ("C", range(20, 59)), ("D", range(20, 60))):
        labels[name] = labels.index.isin(positive).astype(float)
    assert choose_tasks(labels, ("A", "B", "C", "D")) == ("A", "D")  # C has 19 outside split valid
    folds = np.arange(120) % FOLDS
    assert choose_curve_tasks(labels, folds, ("A", "D")) == {100: (), 200: ()}
    many = pd.concat([labels] * 10).assign(patient=[f"p{number}" for number in range(1200)])
    chosen = choose_curve_tasks(many, np.arange(1200) % FOLDS, ("A", "D"))
    assert chosen == {100: ("A", "D"), 200: ("D",)}


@pytest.mark.parametrize("fold", [None, 0, 4])
def test_evaluation_set_tests_patients_of_its_fold_by_labels_of_others(
    fold: int | None, three_splits: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SHOTS", 2)
    manifest = three_splits.manifest
    labels = read_labels(three_splits.folder, manifest, tuple(manifest.counts))
    folds = assign_folds(labels, manifest.findings)
    tested = set(labels["patient"][folds == fold] if fold is not None else labels["patient"][folds == -1])
    in_test = set(labels["patient"][labels["split"] == "test"])
    found = make_evaluation_set(three_splits.folder, fold, folds, FINDINGS, {}, 5)
    for draws in found.draws.values():
        assert set(labels["patient"].iloc[draws.test]) == tested
        supports = set(labels["patient"].iloc[np.concatenate([draws.positive, draws.negative]).ravel()])
        assert not supports & (tested if fold is not None else tested | in_test)
        assert len(np.unique(found.patients[draws.test])) == len(tested)
    assert fold is not None or in_test


def test_scores_use_the_labels_of_each_task_and_resample_folds_independently(
    three_splits: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SHOTS", 2)
    manifest = three_splits.manifest
    labels = read_labels(three_splits.folder, manifest, tuple(manifest.counts))
    folds = assign_folds(labels, manifest.findings)
    rng = np.random.default_rng(0)
    features = np.c_[labels[list(FINDINGS)].to_numpy() + rng.normal(0, 0.1, (len(labels), 2)),
                     rng.normal(0, 1, (len(labels), 3))].astype(np.float32)  # fmt: skip
    sets = [make_evaluation_set(three_splits.folder, fold, folds, FINDINGS, {}, 8) for fold in (0, 1)]
    first, second = (one.score(features) for one in sets)
    assert list(first) == [*FINDINGS] and first[FINDINGS[0]].both[0] > 0.8 and len(first[FINDINGS[0]].draws) == 8
    assert first[FINDINGS[0]].both.shape == (evaluation.REPLICATES + 1,)
    swapped = sets[0].score(features[:, [2, 1, 0, 3, 4]])  # no order of columns matters
    assert swapped[FINDINGS[1]].both == pytest.approx(first[FINDINGS[1]].both, abs=1e-9, nan_ok=True)
    read = {task: replace(scores, rarer=0, supports=None) for task, scores in first.items()}
    for task, scores in sets[0].complete(read).items():
        assert scores.rarer == first[task].rarer and scores.supports is not None
        assert np.array_equal(scores.supports.patients, first[task].supports.patients)  # type: ignore[union-attr]
    joint = mean_over_folds([first[FINDINGS[0]], second[FINDINGS[0]]])
    assert joint.both[0] == pytest.approx((first[FINDINGS[0]].both[0] + second[FINDINGS[0]].both[0]) / 2)


# The grid


def test_every_cell_is_a_valid_config(tmp_path: Path) -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names) == len({cell.folder for cell in CELLS})
    for cell in CELLS:
        settings = cell.all_settings() | ({"init": "weights.pth"} if "init" in cell.settings else {})
        config = Config(shards=tmp_path, out=tmp_path, **settings)
        assert {**BASE, **cell.settings}.items() <= {**config.plain(), "init": ""}.items()
        assert ("init" in cell.settings) == (cell.arm == CONTINUED or cell.trained != "")


@pytest.mark.parametrize(("preset", "name"), [("patient", "ResNet-18, patient"), ("published", "ResNet-18, published"),
                                              ("continued", "continued, frozen BatchNorm")])  # fmt: skip
def test_presets_are_cells_of_the_grid(preset: Any, name: str) -> None:
    (cell,) = [cell for cell in CELLS if cell.name == name]
    recipe, defaults = recipe_of(preset), recipe_of("published")
    for setting in recipe.keys() - {"schedule", "warmup_epochs"}:  # all cells have the same
        assert cell.all_settings().get(setting, defaults[setting]) == recipe[setting]


def test_cells_are_chosen_by_name() -> None:
    assert [cell.name for cell in choose_cells(["continued-flip", "continued, base"])] == [
        "continued, base", "continued, flip"]  # fmt: skip
    assert choose_cells([]) == list(CELLS)
    with pytest.raises(InputError, match="--cells=leda: no such cell; available: continued-base; "):
        choose_cells(["leda"])


def test_changes_are_those_to_the_first_cell_of_the_same_start() -> None:
    base, flip = (next(cell for cell in CELLS if cell.name == f"continued, {name}") for name in ("base", "flip"))
    assert describe_changes(flip, CELLS) == "flip 0.5"
    assert describe_changes(base, CELLS).startswith("from ImageNet, epochs 10, arch timm/tf_efficientnet_lite0, temp")
    pooled = next(cell for cell in CELLS if cell.pooling == "max")
    assert describe_changes(pooled, CELLS) == "freeze batchnorm True, features: max"


def test_cells_of_other_features_evaluate_the_run_of_their_cell(three_splits: Shards, tmp_path: Path) -> None:
    study = make_study(three_splits, tmp_path, cells=[cell for cell in CELLS if cell.pooling == "max"], seeds=1)
    (cell,) = study.cells
    (plain,) = choose_cells([cell.trained])
    own, pooled = study.run(plain, 3, None, (96,)), study.run(cell, 3, None, (96,))
    assert replace(pooled, cell=own.cell, result=own.result, pooling="") == own and pooled.result != own.result
    assert cell.arm == "" and [(job.kind, study.name(job)) for job in study.choice_jobs() if job.pooling] == [
        ("imagenet", "frozen ImageNet, max"), ("run", "continued, frozen BatchNorm, max")]  # fmt: skip


@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 512), ("timm/test_efficientnet", 256)])
def test_poolings_of_the_last_feature_map_by_hand(arch: str, channels: int) -> None:
    encoder = scratch_encoder(arch, 0, Input(128, 0.5, 0.25))
    network, images = encoder.module, torch.randn(2, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    assert network is not None
    pooled = {name: with_pooling(encoder, name) for name in POOLINGS}
    with torch.no_grad():
        own = network(images)
        found = {name: one.module(images) for name, one in pooled.items()}  # type: ignore[misc]
    parts = found["2x2 means"].reshape(2, channels, 4)
    assert torch.allclose(parts.mean(2), own, atol=1e-5) and parts.std(2).max() > 1e-3  # of a map of 4 × 4
    assert torch.equal(found["mean and max"], torch.cat([own, found["max"]], dim=1))
    assert (found["max"] >= parts.amax(2)).all() and found["max"].shape == (2, channels)
    assert len({encoder.sha256(), *(one.sha256() for one in pooled.values())}) == 4  # none is read from another's cache


# Results


def make_scores(rng: np.random.Generator, mean: float, replicates: int = 60, draws: int = 20) -> Scores:
    """Scores whose first replicate is the mean of the draws."""
    of_draws = mean + rng.normal(0, 0.03, draws)
    both, patients = (np.r_[of_draws.mean(), of_draws.mean() + rng.normal(0, 0.02, replicates)] for _ in range(2))
    return Scores(both, patients, of_draws, 50)


def test_result_is_read_back_only_with_its_identity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {size: {task: make_scores(rng, 0.6) for task in ("Lung Opacity", "No Finding")} for size in (64, 96)}
    curve = {"1 labels": make_scores(rng, 0.55).both}
    scores[64]["No Finding"].both[[5, 9]] = curve["1 labels"][3] = np.nan  # replicates without a patient of one class
    result = RunResult(12.5, np.array([[1, 5.25], [2, 4.5]]), scores, curve, {"processor": "a b"})
    path = tmp_path / "results" / "lead.npz"
    assert read_result(path, {"seed": 0}) is None
    write_result(path, {"seed": 0}, result)
    back = read_result(path, {"seed": 0})
    assert back is not None and (back.seconds, back.machine) == (12.5, {"processor": "a b"})
    assert np.array_equal(back.loss, result.loss) and list(back.scores) == [64, 96]
    assert back.curve["1 labels"] == pytest.approx(curve["1 labels"], abs=5e-4, nan_ok=True)
    for size, tasks in scores.items():
        for task, one in tasks.items():
            other = back.scores[size][task]
            assert other.draws == pytest.approx(one.draws, abs=1e-7) and other.both[0] == pytest.approx(one.both[0])
            assert np.array_equal(np.isnan(other.both), np.isnan(one.both))
            found, expected = estimate(replace(other, rarer=50)), estimate(one)
            assert found.error == pytest.approx(expected.error, rel=0.005)
    assert read_result(path, {"seed": 1}) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert read_result(path, {"seed": 0}) is None


def make_job(shards: Shards, tmp_path: Path, **changes: Any) -> Job:
    study = make_study(shards, tmp_path)
    job = study.run(Cell("one", "", {"arch": "timm/test_resnet", "lr": 1e-3}), 0, None, (32,))
    return replace(job, **changes)


def test_identity_depends_on_what_decides_the_result_and_not_on_paths(three_splits: Shards, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "copy").write_bytes(b"a")
    base = {"arch": "timm/test_resnet", "init": str(tmp_path / "a")}

    def identity(**changes: Any) -> str:
        return json.dumps(make_job(three_splits, tmp_path, **{"settings": base, **changes}).identity())

    assert identity(settings={**base, "init": str(tmp_path / "copy")}, folder="elsewhere", workers=7) == identity()
    different = [{"seed": 1}, {"draws": 6}, {"fold": 2}, {"sizes": (64,)}, {"tasks": ("Edema",)}, {"curve": {100: ()}},
                 {"settings": {**base, "lr": 2.0}}, {"settings": {**base, "init": str(tmp_path / "b")}},
                 {"kind": "scratch"}, {"pooling": "max"}]  # fmt: skip
    assert len({identity(), *(identity(**change) for change in different)}) == len(different) + 1
    job = make_job(three_splits, tmp_path, curve={100: ("A", "B")})
    assert Job.from_json(job.json()) == job


def test_checkpoint_of_other_settings_seed_or_shards_is_refused(three_splits: Shards, tmp_path: Path) -> None:
    job = make_job(three_splits, tmp_path)
    config = {**job.settings, "seed": 0, "init": "moved.pth"}
    state = {"config": config, "shards": three_splits.manifest.fingerprint(), "epoch": config["epochs"] - 1}
    assert not is_trained(job)
    save_checkpoint(Path(job.folder), 5, state)
    assert not is_trained(job)
    save_checkpoint(Path(job.folder), 6, {**state, "epoch": config["epochs"]})
    assert is_trained(job)
    for other in ({"config": {**config, "lr": 0.1}}, {"config": {**config, "seed": 1}}, {"shards": "others"}):
        save_checkpoint(Path(job.folder), 7, {**state, **other})
        with pytest.raises(InputError, match=r"belongs to another run .*; choose another --out"):
            is_trained(job)


@pytest.mark.long
def test_failed_job_is_named_and_the_others_go_on(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One job has a finding that the shards lack, which ends its process; another has no file of weights.

    Idle processes end at the end of their input, even without a signal.
    """
    study = make_study(three_splits, tmp_path)
    good = replace(study.baselines(None, (32,), 1)[0], sizes=(32,), tasks=FINDINGS, draws=2)
    bad = replace(good, tasks=("Sarcoidosis",), result=str(tmp_path / "bad.npz"))
    missing = replace(good, kind="imagenet", settings={"arch": LITE0, "weights": str(tmp_path / "none.pth")},
                      result=str(tmp_path / "missing.npz"))  # fmt: skip
    failed = pytest.raises(InputError, match="2 of 3 runs failed, the first: bad: its process ended with status 1")
    monkeypatch.setattr(subprocess.Popen, "terminate", lambda process: None)  # as if the process missed the signal
    with job_workers(1, tmp_path / "workers.log") as workers, failed:
        workers.run([bad, missing, good])
    assert good.result_path.exists() and not bad.result_path.exists()
    assert "3 of 3: thumbnail.seed-0, " in capfd.readouterr().out
    late = pytest.raises(InputError, match="1 of 1 runs were not started; run the same command again")
    with job_workers(1, tmp_path / "workers.log", minutes=1e-9) as workers, late:
        workers.run([good])


# The choice and the claim


def fill(study: Study, values: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the study read results with these means over two tasks, a number for each seed."""
    def read(job: Job) -> RunResult | None:
        means = values[study.name(job)]
        if job.seed >= len(means):
            return None
        key = [job.seed, len(study.name(job)), job.fold or 0]  # the same noise at all sizes
        curve = {evaluation.curve_name(pool, shots): np.full(61, means[job.seed] + shots / 1000)
                 for pool in (100, 200) for shots in evaluation.CURVE if shots <= pool}  # fmt: skip
        scores = {size: {task: make_scores(np.random.default_rng(key), means[job.seed] + 1e-4 * size)
                         for task in FINDINGS} for size in job.sizes}  # fmt: skip
        return RunResult(60.0 * (job.kind == "run"), np.empty((0, 2)), scores, curve, {"processor": "one"})

    monkeypatch.setattr(Study, "read", lambda self, job: read(job))
    monkeypatch.setattr(EvaluationSet, "complete", lambda self, scores: dict(scores))
    monkeypatch.setattr(Study, "evaluation_set", lambda self, fold: EvaluationSet(fold, pd.DataFrame(), {},
                                                                                 np.zeros(1, np.int64), {}))
    monkeypatch.setattr(Study, "tasks", FINDINGS)
    monkeypatch.setattr(Study, "curve", {100: FINDINGS, 200: ()})


BASELINES = {THUMBNAIL: [0.55], IMAGENET: [0.57], **{name: [0.52] * 9 for name in SCRATCH.values()}}


def test_best_cell_with_every_seed_is_chosen_once(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell("lucky", CONTINUED), Cell("sure", CONTINUED), Cell("worse", CONTINUED), Cell("own", RANDOM)]
    study = make_study(three_splits, tmp_path, cells=cells)
    values = {**BASELINES, "lucky": [0.9], "sure": [0.7, 0.7], "worse": [0.6, 0.6], "own": [0.5, 0.5]}
    fill(study, values, monkeypatch)
    chosen = choose(study, 5)
    # A larger size is better by 1e-4 a pixel, for cells and for ImageNet's weights.
    assert chosen.cells == {CONTINUED: ("sure", BASE["size"] + 32), RANDOM: ("own", BASE["size"] + 32)}
    assert chosen.imagenet_size == 224 and chosen.power.keys() == RIVALS.keys()
    candidates = find_candidates(study)
    assert len(candidates["lucky", BASE["size"]].scores) == 1 and candidates["sure", BASE["size"]].seconds == 60
    fill(study, {**values, "worse": [0.8, 0.8]}, monkeypatch)
    assert choose(study, 5) == chosen == read_choice(study.results / CHOICE)
    (study.results / CHOICE).write_text("{}")
    with pytest.raises(InputError, match=r"choice.json: not a choice .*; restore the original"):
        choose(study, 5)
    (study.results / CHOICE).unlink()
    with pytest.raises(InputError, match="--claim: no cell 'continued' has a result of each of 3 seeds"):
        choose(replace(study, seeds=3), 5)


def test_detectable_difference_follows_the_variances_by_hand(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(three_splits, tmp_path)
    rng = np.random.default_rng(0)
    scores = [with_mean({"A": make_scores(rng, 0.6 + shift)}) for shift in (0, 0.02, 0.05)]
    reference = [with_mean({"A": make_scores(rng, 0.5)})]
    found = choosing.detectable_difference(study, scores, reference, 5)
    pairs = [one[MEAN] - reference[0][MEAN] for one in scores]
    within = estimate(choosing.mean_of(pairs)).error ** 2
    labels = study.labels.drop_duplicates("patient")
    share = (labels["split"] == "valid").sum() / (labels["split"] != "valid").sum()
    between = np.var([pair.both[0] for pair in pairs], ddof=1)
    assert found == pytest.approx(2.801585 * math.sqrt(within * share + between / 5), rel=1e-5)


def test_claim_compares_all_folds_and_seeds_with_each_rival(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(three_splits, tmp_path)
    choice = Choice({CONTINUED: ("continued, base", 128), RANDOM: ("ResNet-18, patient", 96)}, 160, {})
    ours = "continued, base"
    fill(study, {**BASELINES, ours: [0.7, 0.71], claiming.SAME_FROM_RANDOM: [0.6]}, monkeypatch)
    jobs = claim_jobs(study, choice, 3)  # the third seed of ours has no result
    assert [(job.kind, job.seed, job.fold) for job in jobs[:5]] == [("run", 0, fold) for fold in range(FOLDS)]
    assert {job.sizes for job in jobs if job.kind == "imagenet"} == {(160,)}
    tested = collect(study, jobs)
    assert len(tested[ours].scores) == 2 and len(tested[THUMBNAIL].scores) == 1
    one = study.read(jobs[0])
    folds = [study.read(job).scores[128][FINDINGS[0]] for job in jobs[:5]]  # type: ignore[union-attr]
    assert tested[ours].scores[0][FINDINGS[0]].both == pytest.approx(np.mean([fold.both for fold in folds], axis=0))
    assert one is not None and tested[ours].curves[100][10][0] == pytest.approx(0.715)
    claim = make_claim(study, choice, 3)
    assert claim is not None and claim.effects == claim_effects(
        tested[ours].scores, {rival: tested[rival].scores for rival in RIVALS}, FINDINGS)  # fmt: skip
    assert claim.effects[IMAGENET, MEAN].seeds == 2 and claim.effects[IMAGENET, MEAN].mean > 0.1
    assert claim.worth[100][THUMBNAIL].labels == math.inf and (claiming.SAME_FROM_RANDOM, IMAGENET) in claim.others
    fill(study, {**BASELINES, ours: [], claiming.SAME_FROM_RANDOM: []}, monkeypatch)
    assert make_claim(study, choice, 3) is None


def test_seed_counts_once_all_its_folds_have_results(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(three_splits, tmp_path)
    choice = Choice({CONTINUED: ("continued, base", 128)}, 160, {})
    fill(study, {**BASELINES, "continued, base": [0.7, 0.71], claiming.SAME_FROM_RANDOM: [0.6]}, monkeypatch)
    jobs = claim_jobs(study, choice, 2)
    assert len(collect(study, jobs)["continued, base"].scores) == 2
    unfinished = [job for job in jobs if (job.kind, job.seed, job.fold) != ("run", 1, FOLDS - 1)]
    assert len(unfinished) == len(jobs) - 1
    tested = collect(study, unfinished)
    assert len(tested["continued, base"].scores) == 1 and len(tested[SCRATCH[LITE0]].scores) == 2
    assert tested["continued, base"].curves[100][10][0] == pytest.approx(0.71)  # of the first seed: 0.7 + 10 / 1000


def test_rival_from_random_weights_differs_in_what_weights_decide() -> None:
    (ours, size), (other, other_size) = claim_cells(Choice({CONTINUED: ("continued, frozen BatchNorm", 128)}, 160, {}))
    differing = {name for name in {*ours.all_settings(), *other.all_settings()}
                 if ours.all_settings().get(name) != other.all_settings().get(name)}  # fmt: skip
    assert differing == {"init", "init_input", "freeze_batchnorm", "lr"} and size == other_size == 128


def test_trained_encoders_are_compared_on_one_kind_of_machine() -> None:
    def outcome(seconds: float, *processors: str) -> Outcome:
        return Outcome([], {}, seconds, processors)

    assert is_same_machine(outcome(1, "a"), outcome(1, "a")) and is_same_machine(outcome(1, "a"), outcome(0, "b"))
    assert not is_same_machine(outcome(1, "a"), outcome(1, "b"))
    assert not is_same_machine(outcome(1, "a", "b"), outcome(1, "a"))


def test_worth_in_labels_is_read_off_the_rivals_curve() -> None:
    rival = {1: np.array([0.5, 0.5, 0.5]), 10: np.array([0.6, 0.6, 0.6]), 100: np.array([0.7, 0.59, 0.7])}
    found = worth(np.array([0.65, 0.65, 0.6]), rival)
    assert found.labels == pytest.approx(math.sqrt(1000)) and found.low == pytest.approx(10) and found.high == math.inf
    assert worth(np.full(3, 0.4), rival).labels == 1


def test_p_values_of_the_mean_and_of_tasks_are_corrected_apart() -> None:
    rng = np.random.default_rng(0)
    def seeds(shift: float) -> list[dict[str, Scores]]:
        return [with_mean({task: make_scores(rng, shift) for task in "AB"}) for _ in range(3)]

    ours, rivals = seeds(0.62), {"x": seeds(0.6), "y": seeds(0.59)}
    found = claim_effects(ours, rivals, ("A", "B"))
    alone = {(rival, task): difference(ours, rivals[rival], task) for rival in rivals for task in ("A", "B", MEAN)}
    means, tasks = ([key for key in alone if (key[1] == MEAN) == is_mean] for is_mean in (True, False))
    for keys in (means, tasks):
        for key, p in zip(keys, holm([alone[key].p for key in keys]), strict=True):
            assert found[key] == alone[key]._replace(p=p)
    four = correct_p_values(dict.fromkeys("abcd", alone["x", "A"]))
    assert all(effect.p == pytest.approx(min(1, 4 * alone["x", "A"].p)) for effect in four.values())


def test_difference_pairs_seeds_and_compares_a_lone_reference_with_each() -> None:
    rng = np.random.default_rng(0)
    scores, reference = ([{"A": make_scores(rng, 0.6)} for _ in range(3)] for _ in range(2))
    assert difference(scores, reference, "A") == over_seeds(
        [one["A"] - other["A"] for one, other in zip(scores, reference, strict=True)])  # fmt: skip
    assert difference(scores, reference[:1], "A") == over_seeds([one["A"] - reference[0]["A"] for one in scores])


def test_unfit_shards_and_missing_weights_are_refused(
    shards: Shards, three_splits: Shards, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no images in split test; NIH's shards have all three"):
        bench_recipe(shards.folder, imagenet=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"as the recipe requires; build shards with: .* --partners=3"):
        check_shards(three_splits.folder, replace(three_splits.manifest, settings={}))
    with pytest.raises(InputError, match=r"--imagenet=.*none\.pth: no such file"):
        bench_recipe(three_splits.folder, imagenet=tmp_path / "none.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_study_resumes_and_its_page_is_made_again_from_its_results(
    lite0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study of phantoms with a cell for each arm, of one epoch; it is killed after the choice."""
    radiographs = tmp_path / "radiographs"
    phantom(radiographs, images=400, seed=1, workers=2)
    shards = build_three_splits(radiographs, tmp_path, size=32)
    quick = {"size": 32, "epochs": 1, "batch_size": 64, "precision": "fp32"}
    cells = (Cell("continued, base", CONTINUED, {"arch": LITE0, **grid.FROM_IMAGENET, **quick}),
             Cell("own", RANDOM, {"arch": "timm/test_resnet", "lr": 1e-3, **quick}))  # fmt: skip
    cells += (replace(cells[0], name="pooled", arm="", pooling="max", trained=cells[0].name),)
    for module in (grid, claiming):
        monkeypatch.setattr(module, "CELLS", cells)
    monkeypatch.setattr(design, "BASELINE_SIZES", (32,))
    monkeypatch.setattr(choosing, "BASELINE_SIZES", (32,))
    for module in (design, choosing):
        monkeypatch.setattr(module, "SMALL", 32)
    monkeypatch.setattr(choosing, "RIVALS", dict.fromkeys(RIVALS, 32))
    monkeypatch.setattr(evaluation, "LEAST_PATIENTS", 5)
    flags: Any = {"imagenet": lite0, "out": tmp_path / "out", "seeds": 1, "draws": 4, "jobs": 2}
    bench_recipe(shards.folder, **flags)
    printed = capsys.readouterr().out
    assert "| continued, base | 32 | 1 |" in printed and printed.count(" s\n") == 8
    assert "| pooled | 64 | 1 |" in printed and "| frozen ImageNet, max | 32 | 1 |" in printed
    page = tmp_path / "page.md"
    page.write_text("# Ours\n\nWritten by hand.\n\n---\n\nold\n")
    bench_recipe(shards.folder, **flags, claim=1, page=page)
    printed = capsys.readouterr().out
    assert "30 of 30: " in printed  # ours, the same from random weights, and four baselines, in five folds
    text = page.read_text()
    assert text.startswith("# Ours\n\nWritten by hand.\n\n---\n") and "\nold\n" not in text
    assert "## On all other patients: the claim" in text and "(page.svg)" in text and "no p" in text
    assert (tmp_path / "page.svg").read_text().startswith("<?xml")
    again = tmp_path / "again.md"
    moved = tmp_path / "moved"
    (tmp_path / "out" / "results").rename(moved)
    bench_recipe(shards.folder, imagenet=lite0, out=tmp_path / "none", results=moved, seeds=1, draws=4, claim=1,
                 train=False, page=again)  # fmt: skip
    assert again.read_text().partition("---")[2] == text.partition("---")[2].replace("page.svg", "again.svg")
    assert not (tmp_path / "none").exists()
