"""bench.recipe: trains each cell once, chooses on validation patients, evaluates test patients once."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.recipe import grid
from bench.recipe import study as recipe
from bench.recipe.comparison import by_task, correct_p_values, difference
from bench.recipe.evaluation import EncoderFeatures, EvaluationSet, make_evaluation_set
from bench.recipe.grid import BASE, CELLS, Cell, TrainingRun, choose_cells
from bench.recipe.page import Page
from bench.recipe.result import RunResult, read_result, write_result
from bench.recipe.study import Study, StudyScores, bench_recipe, check_shards
from probe.statistics import Scores, holm, over_seeds
from shard.errors import InputError
from shard.manifest import read_manifest
from shard.write import build
from tests.conftest import Shards
from train.checkpoint import save_checkpoint
from train.config import Config
from train.journal import METRICS
from train.recipe import recipe_of

QUICK: dict[str, Any] = {"arch": "resnet18", "size": 32, "epochs": 1, "batch_size": 16, "online_every": 1,
                         "device": "cpu", "precision": "fp32"}  # fmt: skip


@pytest.fixture(scope="module")
def three_splits(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards of the 121 radiographs with a plain table; a hash assigns the patients to train, valid and test."""
    folder = tmp_path_factory.mktemp("three")
    table = folder / "table.csv"
    with table.open("w", newline="") as file:
        rows = [row for name in ("train", "valid") for row in csv.DictReader((radiographs / f"{name}.csv").open())]
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "Cardiomegaly", "Pleural Effusion"])
        for row in rows:
            path = re.sub("^.*?/(?=train/|valid/)", "", row["Path"])
            labels = [str(float(float(row[name] or 0) == 1)) for name in ("Cardiomegaly", "Pleural Effusion")]
            writer.writerow([path, re.search(r"patient\d+", path)[0], *labels])  # type: ignore[index]
    out = folder / "shards"
    build(radiographs, out, dataset="csv", table=table, size=64, partners=2, workers=1)
    return Shards(out, read_manifest(out))


def test_every_cell_is_a_valid_config_and_has_a_comparable_reference(tmp_path: Path) -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names) == len({cell.folder for cell in CELLS})
    for cell in CELLS:
        config = Config(shards=tmp_path, out=tmp_path, **cell.all_settings())
        assert cell.reference in names and {**BASE, **cell.settings}.items() <= config.plain().items()
        reference = next(other for other in CELLS if other.name == cell.reference).all_settings()
        assert (reference["size"], reference["epochs"]) == (config.size, config.epochs)
        assert not {"patient_positive", "same_patient"} & reference.keys()


def test_patient_preset_is_a_cell_of_the_grid() -> None:
    patient, defaults = recipe_of("patient"), recipe_of("published")
    names = patient.keys() - {"schedule", "warmup_epochs"}
    assert any(all(cell.all_settings().get(name, defaults[name]) == patient[name] for name in names)
               for cell in CELLS)  # fmt: skip


def test_named_cells_come_with_their_references() -> None:
    assert [cell.name for cell in choose_cells(["lead-no-flip-96-px-30-epochs"])] == [
        "published", "published, 96 px, 30 epochs", "lead, no flip, 96 px, 30 epochs"]  # fmt: skip
    assert choose_cells([]) == list(CELLS)
    with pytest.raises(InputError, match="--cells=leda: no such cell; available: published; "):
        choose_cells(["leda"])


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_set_tests_patients_of_its_split_alone(three_splits: Shards, split: str) -> None:
    evaluation_set = make_evaluation_set(three_splits.folder, split, 5)
    labels = evaluation_set.labels
    for draws in evaluation_set.draws.values():
        assert set(labels["split"].iloc[draws.test]) == {split}
        assert set(labels["split"].iloc[np.concatenate([draws.positive, draws.negative]).ravel()]) == {"train"}
        assert len(np.unique(evaluation_set.patients[draws.test])) == labels["patient"].iloc[draws.test].nunique()


@pytest.mark.long
def test_study_resumes_and_evaluates_test_patients_once(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partners = {"patient_positive": 0.5, "same_patient": "masked"}
    cells = (Cell("published", {}, repeated=True), Cell("temperature 0.2", {"temperature": 0.2}),
             Cell("with partners", partners, repeated=True))  # fmt: skip
    monkeypatch.setattr(grid, "BASE", QUICK)
    monkeypatch.setattr(recipe, "BASE", QUICK)
    monkeypatch.setattr(grid, "CELLS", cells)
    monkeypatch.setattr("bench.recipe.evaluation.SHOTS", 3)
    evaluated: list[str] = []

    def record(shards: Path, split: str, draws: int) -> EvaluationSet:
        evaluated.append(split)
        return make_evaluation_set(shards, split, draws)

    monkeypatch.setattr(recipe, "make_evaluation_set", record)
    out, page = tmp_path / "out", tmp_path / "recipe.md"
    bench_recipe(three_splits.folder, out=out, seeds=1, draws=5)
    printed = capsys.readouterr().out
    assert evaluated == ["valid"] and "with partners | patient positive 0.5, same patient masked" in printed
    first = {path: path.read_bytes() for path in out.rglob(METRICS)}
    assert len(first) == 3
    page.write_text("# Ours\n\nWritten by hand.\n\n---\n\nold\n")
    shutil.rmtree(out / "temperature-0.2")  # its result remains
    for _ in range(2):
        bench_recipe(three_splits.folder, out=out, seeds=2, draws=5, claim=True, page=page)
    printed = capsys.readouterr().out
    assert evaluated == ["valid", "valid", "test", "valid"]  # the second claim is read from the file
    assert printed.count("seed 1, ") == 2 and "seed 0, " not in printed and all(
        path.read_bytes() == content for path, content in first.items() if path.exists())  # fmt: skip
    text = page.read_text()
    seeds = [line.split("|")[6].strip() for line in text.splitlines() if re.match(r"\| .*\d\.\d \|$", line)]
    assert seeds == list("212")
    assert text.startswith("# Ours\n\nWritten by hand.\n\n---\n") and "old" not in text
    assert "## On test patients: the claim" in text and "less Thumbnail" in text and "(recipe.svg)" in text
    assert (tmp_path / "recipe.svg").read_text().startswith("<?xml")
    check_claim(json.loads((out / "claim.json").read_text()), three_splits, out)


def check_claim(claim: dict[str, Any], shards: Shards, out: Path) -> None:
    """Compute the claim again, from the features of each encoder."""
    best, features = claim["cell"], EncoderFeatures(shards.folder, out / "features", 1)
    test_set = make_evaluation_set(shards.folder, "test", 5)

    def trained(cell: str) -> list[dict[str, Scores]]:
        runs = [TrainingRun(Cell(cell, {}), seed, shards.folder, out) for seed in range(2)]
        return [test_set.score(features.trained(run.folder)) for run in runs]

    scores = trained(best)
    references = {"Scratch": [test_set.score(features.scratch("resnet18", seed, 32)) for seed in range(2)],
                  "published": trained("published"),
                  "Thumbnail": [test_set.score(features.thumbnail(32))] * 2}  # fmt: skip
    expected = {(name, task): over_seeds([one[task] - other[task] for one, other in zip(scores, others, strict=True)])
                for name, others in references.items() if name != best for task in test_set.draws}  # fmt: skip
    assert claim["withheld"].keys() == test_set.withheld().keys() - {"mean"}
    for ((name, task), effect), p in zip(expected.items(), holm([one.p for one in expected.values()]), strict=True):
        assert claim["differences"][name][task] == (
            [effect.mean, None, None, None, 2] if task in claim["withheld"] else
            pytest.approx([*effect[:3], p, 2], nan_ok=True))  # fmt: skip
        assert claim["auroc"][task] == pytest.approx(np.mean([one[task].both[0] for one in scores]))


def test_result_is_read_back_only_with_its_identity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {task: Scores(*rng.uniform(0.4, 0.9, (3, 50)), 0) for task in ("Lung Opacity", "mean")}
    result = RunResult(12.5, {"online": np.array([[1, 0.5], [2, 0.625]]), "loss": np.empty((0, 2))}, scores)
    path = tmp_path / "results" / "lead.npz"
    assert read_result(path, {"seed": 0}) is None
    write_result(path, {"seed": 0}, result)
    back = read_result(path, {"seed": 0})
    assert back is not None and back.seconds == 12.5 and list(back.scores) == list(scores)
    for task, one in scores.items():
        for part in ("both", "patients", "draws"):
            assert np.allclose(getattr(back.scores[task], part), getattr(one, part), atol=1e-7)
    assert all(np.array_equal(back.curves[name], values) for name, values in result.curves.items())
    assert read_result(path, {"seed": 1}) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert read_result(path, {"seed": 0}) is None


def test_run_is_trained_with_the_settings_of_its_cell_and_its_seed(tmp_path: Path) -> None:
    command = TrainingRun(Cell("one", {"temperature": 0.2}), 2, tmp_path / "shards", tmp_path).command(1)
    assert {"--temperature=0.2", "--seed=2", f"--shards={tmp_path / 'shards'}"} <= {*command}


def test_identity_of_a_result_depends_on_settings_seed_draws_and_shards(tmp_path: Path) -> None:
    cell, other = Cell("one", {"temperature": 0.2}), Cell("one", {"temperature": 0.1})

    def identity(cell: Cell = cell, seed: int = 0, draws: int = 5, shards: str = "a") -> str:
        manifest: Any = SimpleNamespace(fingerprint=lambda: shards)
        study = Study(tmp_path, tmp_path, [cell], 3, draws, 1, manifest)
        return json.dumps(study.identity(TrainingRun(cell, seed, tmp_path, tmp_path)))

    assert len({identity(), identity(other), identity(seed=1), identity(draws=6), identity(shards="b")}) == 5


def make_study(shards: Shards, out: Path, cells: Sequence[Cell], seeds: int = 3) -> Study:
    return Study(shards.folder, out, [*cells], seeds, 5, 1, shards.manifest)


def test_cell_is_compared_with_its_reference_and_corrected_for_all_cells(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluationSet, "withheld", lambda self: {})  # too few phantoms for a p value
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (4, 2, 3, 40))
    noise[..., 0] = 0
    names = ("published", "published, large", "small", "large")
    cells = [Cell(names[0], {}), Cell(names[1], {}, names[1]), Cell(names[2], {}), Cell(names[3], {}, names[1])]
    scores = {name: {"mean": [Scores(*(value + one), 100) for one in of_seeds]}
              for name, value, of_seeds in zip(names, (0.6, 0.7, 0.61, 0.72), noise, strict=True)}  # fmt: skip
    study = make_study(three_splits, tmp_path, cells, 2)
    rows = {row.name: row for row in study.rows(StudyScores(scores, {}, scores["published"]))}
    alone = {name: difference(scores[name]["mean"], scores[reference]["mean"])
             for name, reference in (("small", names[0]), ("large", names[1]))}  # fmt: skip
    for name, p in zip(alone, holm([effect.p for effect in alone.values()]), strict=True):
        assert rows[name].to_published == {"mean": alone[name]._replace(p=p)}
    assert not rows[names[0]].to_published and not rows[names[1]].to_published


def test_checkpoint_of_other_settings_seed_or_shards_is_refused(three_splits: Shards, tmp_path: Path) -> None:
    cell = Cell("one", {"temperature": 0.2})
    run = TrainingRun(cell, 0, three_splits.folder, tmp_path)
    config = {**cell.all_settings(), "seed": 0}
    state = {"config": config, "shards": three_splits.manifest.fingerprint(), "epoch": config["epochs"] - 1}
    assert not run.is_done()
    save_checkpoint(run.folder, 5, state)
    assert not run.is_done()
    save_checkpoint(run.folder, 6, {**state, "epoch": config["epochs"]})
    assert run.is_done()
    for other in ({"config": {**config, "temperature": 0.1}}, {"config": {**config, "seed": 1}}, {"shards": "others"}):
        save_checkpoint(run.folder, 7, {**state, **other})
        with pytest.raises(InputError, match=r"belongs to another run .*; choose another --out"):
            run.is_done()


def test_shards_without_partners_are_refused(three_splits: Shards) -> None:
    bare = replace(three_splits.manifest, settings={})
    with pytest.raises(InputError, match=r"as cell 'partners' requires; build shards with: .* --partners=3"):
        check_shards(three_splits.folder, bare, CELLS)


def test_claim_for_a_cell_with_one_seed_is_refused(three_splits: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--claim: 'published' has one seed and was not chosen by the study"):
        make_study(three_splits, tmp_path, CELLS[:1], 1).claim(CELLS[0])


def test_corrupt_claim_is_refused_and_not_made_again(three_splits: Shards, tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text("{}")
    with pytest.raises(InputError, match=r"claim.json: not a claim .*; restore the original"):
        make_study(three_splits, tmp_path, CELLS[:1]).read_claim()


def test_difference_pairs_seeds_and_compares_a_lone_reference_with_each() -> None:
    rng = np.random.default_rng(0)
    scores, reference = ([Scores(*rng.uniform(0.4, 0.9, (3, 30)), 100) for _ in range(3)] for _ in range(2))
    paired = [one - other for one, other in zip(scores, reference, strict=True)]
    assert difference(scores, reference) == over_seeds(paired)
    assert difference(scores, reference[1:2]) == over_seeds([one - reference[1] for one in scores])


@pytest.mark.parametrize("positive", [9, 10])
def test_claim_withholds_interval_and_p_value_with_few_patients(
    positive: int, three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task A has thirty positive test patients, task B has `positive` of them."""
    rng = np.random.default_rng(0)
    def scores(shift: float) -> dict[str, Scores]:
        return {task: Scores(*rng.normal(0.5 + shift, 0.01, (3, 50)), 100) for task in ("A", "B", "mean")}

    patients = np.arange(60)
    def draws(count: int) -> Any:
        return SimpleNamespace(test=patients, test_labels=(patients < count).astype(int))

    evaluation_set = EvaluationSet("test", pd.DataFrame(), {"A": draws(30), "B": draws(positive)}, patients)
    monkeypatch.setattr(EvaluationSet, "score", lambda self, features: scores(features))
    features = SimpleNamespace(trained=lambda run: 0.2 * ("sure" in str(run)), scratch=lambda *_: 0.0,
                               thumbnail=lambda size: 0.1)  # fmt: skip
    for name, value in (("make_evaluation_set", evaluation_set), ("train_all", None), ("EncoderFeatures", features)):
        monkeypatch.setattr(recipe, name, lambda *_, value=value: value)
    cells = [Cell("published", {}, repeated=True), Cell("sure", {}, repeated=True)]
    study = make_study(three_splits, tmp_path, cells)
    study.claim(cells[1])
    claim = study.claim(cells[1])  # read from the file
    assert claim.withheld == ({"B": "9 positive test patients"} if positive == 9 else {})
    for effects in claim.differences.values():
        assert np.isfinite(effects["A"]).all() and np.isfinite(effects["B"][1:4]).all() == (positive == 10)
    cell_scores = {cell.name: by_task([scores(0.1)] * 3) for cell in cells}
    rows = study.rows(StudyScores(cell_scores, {}, by_task([scores(0.0)])))
    assert [np.isfinite(rows[-1].to_thumbnail[task].p) for task in ("A", "B", "mean")] == [True, *[positive == 10] * 2]
    page = Page("shards", {}, 5, {}, rows, "sure", claim, {}, evaluation_set.withheld()).text()
    assert page.count("B (9 positive test patients)") == 2 * (positive == 9)
    assert "+nan" not in page and page.count("no p |") == 6 * (positive == 9)


def test_only_a_cell_with_every_seed_is_chosen(three_splits: Shards, tmp_path: Path) -> None:
    cells = [Cell("published", {}, repeated=True), Cell("lucky", {}), Cell("sure", {}, repeated=True)]
    study = make_study(three_splits, tmp_path, cells)
    assert [len(study.runs(cell)) for cell in cells] == [3, 1, 3]
    values = {"published": [0.6, 0.5, 0.5], "lucky": [0.9], "sure": [0.55, 0.55, 0.6]}
    scores = StudyScores({name: {"mean": [Scores(*np.full((3, 9), value), 100) for value in seeds]}
                          for name, seeds in values.items()}, {}, {})  # fmt: skip
    assert study.choose(scores).name == "sure"


def test_shards_without_a_test_split_are_refused(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images in split test; NIH's shards have all three"):
        bench_recipe(shards.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_run_is_reported_with_its_log(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "BASE", {**QUICK, "batch_size": 10**5})
    with pytest.raises(InputError, match=r"seed-0: the run ended with status 1, see .*log.txt"):
        bench_recipe(three_splits.folder, out=tmp_path, cells=("published",), seeds=1)
    assert "--batch-size=100000" in (tmp_path / "published" / "seed-0" / "log.txt").read_text()


def test_p_values_are_corrected_for_the_number_of_effects() -> None:
    rng = np.random.default_rng(0)
    def seeds(shift: float) -> list[Scores]:
        return [Scores(np.r_[shift, shift + rng.normal(0, 0.01, 200)], np.r_[shift, shift + rng.normal(0, 0.008, 200)],
                       shift + rng.normal(0, 0.02, 10), 100) for _ in range(3)]  # fmt: skip

    alone = difference(seeds(0.6), seeds(0.59))
    four = correct_p_values(dict.fromkeys("abcd", alone))
    assert 0 < alone.p < 0.25
    assert all(effect == alone._replace(p=pytest.approx(4 * alone.p)) for effect in four.values())
