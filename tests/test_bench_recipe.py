"""bench.recipe.study: trains each cell once, chooses on validation patients, looks at the test patients once."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.recipe import grid
from bench.recipe import study as recipe
from bench.recipe.evaluation import Candidates, Exam, correct, difference, set_exam
from bench.recipe.grid import BASE, CELLS, Cell, Trial, choose_cells
from bench.recipe.page import Page
from bench.recipe.result import Result, read_result, write_result
from bench.recipe.study import bench_recipe
from probe.statistics import Scores, holm, over_seeds
from shard.errors import InputError
from shard.manifest import read_manifest
from shard.write import build
from tests.conftest import Shards
from train.checkpoint import save_checkpoint
from train.config import Config
from train.journal import METRICS
from train.presets import PRESETS

QUICK: dict[str, Any] = {"arch": "resnet18", "size": 32, "epochs": 1, "batch_size": 16, "online_every": 1,
                         "device": "cpu", "precision": "fp32"}  # fmt: skip


@pytest.fixture(scope="module")
def three_splits(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The 121 radiographs from a plain table, whose patients a hash puts into train, valid and test."""
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


def test_every_cell_is_a_valid_run_and_the_chosen_preset_is_among_them(tmp_path: Path) -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names) == len({cell.folder for cell in CELLS})
    for cell in CELLS:
        config = Config(shards=tmp_path, out=tmp_path, **cell.all_settings())
        assert cell.rival in names and {**BASE, **cell.settings}.items() <= config.plain().items()
        rival = next(other for other in CELLS if other.name == cell.rival).all_settings()
        assert (rival["size"], rival["epochs"]) == (config.size, config.epochs)
        assert not {"patient_positive", "same_patient"} & rival.keys()
    recipe_names = PRESETS["patient"].keys() - {"schedule", "warmup_epochs"}
    defaults = PRESETS["published"]
    assert any(all(cell.all_settings().get(name, defaults[name]) == PRESETS["patient"][name] for name in recipe_names)
               for cell in CELLS)  # fmt: skip


def test_cells_by_name_come_with_what_they_are_compared_to() -> None:
    assert [cell.name for cell in choose_cells(["lead-no-flip-96-px-30-epochs"])] == [
        "published", "published, 96 px, 30 epochs", "lead, no flip, 96 px, 30 epochs"]  # fmt: skip
    assert choose_cells([]) == list(CELLS)
    with pytest.raises(InputError, match="--cells=leda: no such cell; there are: published; "):
        choose_cells(["leda"])


def test_draws_of_a_split_test_its_patients_alone(three_splits: Shards) -> None:
    exams = {split: set_exam(three_splits.folder, split, 5) for split in ("valid", "test")}
    for split, exam in exams.items():
        for draws in exam.drawn.values():
            assert set(exam.labels["split"].iloc[draws.test]) == {split}
            assert set(exam.labels["split"].iloc[np.concatenate([draws.positive, draws.negative]).ravel()]) == {"train"}
            assert len(np.unique(exam.patients[draws.test])) == exam.labels["patient"].iloc[draws.test].nunique()


@pytest.mark.long
def test_the_whole_study_goes_on_where_it_stopped_and_looks_at_test_patients_once(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partners = {"patient_positive": 0.5, "same_patient": "masked"}
    cells = (Cell("published", {}, repeated=True), Cell("temperature 0.2", {"temperature": 0.2}),
             Cell("with partners", partners, repeated=True))  # fmt: skip
    monkeypatch.setattr(grid, "BASE", QUICK)
    monkeypatch.setattr(recipe, "BASE", QUICK)
    monkeypatch.setattr(grid, "CELLS", cells)
    monkeypatch.setattr("bench.recipe.evaluation.SHOTS", 3)
    looked: list[str] = []

    def look(shards: Path, split: str, draws: int) -> Exam:
        looked.append(split)
        return set_exam(shards, split, draws)

    monkeypatch.setattr(recipe, "set_exam", look)
    out, page = tmp_path / "out", tmp_path / "recipe.md"
    bench_recipe(three_splits.folder, out=out, seeds=1, draws=5)
    said = capsys.readouterr().out
    assert looked == ["valid"] and "with partners | patient positive 0.5, same patient masked" in said
    first = {path: path.read_bytes() for path in out.rglob(METRICS)}
    assert len(first) == 3
    page.write_text("# Ours\n\nWritten by hand.\n\n---\n\nold\n")
    shutil.rmtree(out / "temperature-0.2")  # what it came to is kept
    for _ in range(2):
        bench_recipe(three_splits.folder, out=out, seeds=2, draws=5, claim=True, page=page)
    said = capsys.readouterr().out
    assert looked == ["valid", "valid", "test", "valid"]  # the second claim is the first
    assert said.count("seed 1, ") == 2 and "seed 0, " not in said and all(
        path.read_bytes() == content for path, content in first.items() if path.exists())  # fmt: skip
    text = page.read_text()
    seeds = [line.split("|")[6].strip() for line in text.splitlines() if re.match(r"\| .*\d\.\d \|$", line)]
    assert seeds == list("212")
    assert text.startswith("# Ours\n\nWritten by hand.\n\n---\n") and "old" not in text
    assert "## On test patients: the claim" in text and "less Thumbnail" in text and "(recipe.svg)" in text
    assert (tmp_path / "recipe.svg").read_text().startswith("<?xml")
    claim = json.loads((out / "claim.json").read_text())
    best = claim["cell"]
    trained = Candidates(three_splits.folder, out / "features", 1)
    exam = set_exam(three_splits.folder, "test", 5)
    scored = [exam.score(trained.trained(Trial(Cell(best, {}), seed, three_splits.folder, out).run))
              for seed in range(2)]  # fmt: skip
    references = {"Scratch": [exam.score(trained.scratch("resnet18", seed, 32)) for seed in range(2)],
                  "published": [exam.score(trained.trained(Trial(cells[0], seed, three_splits.folder, out).run))
                                for seed in range(2)],
                  "Thumbnail": [exam.score(trained.thumbnail(32))] * 2}  # fmt: skip
    wanted = {(name, task): over_seeds([one[task] - other[task] for one, other in zip(scored, others, strict=True)])
              for name, others in references.items() if name != best for task in exam.drawn}  # fmt: skip
    for ((name, task), effect), p in zip(wanted.items(), holm([one.p for one in wanted.values()]), strict=True):
        found = claim["differences"][name][task]
        assert claim["withheld"].keys() == exam.withheld().keys() - {"mean"}
        assert found == ([effect.mean, None, None, None, 2] if task in claim["withheld"] else
                         pytest.approx([*effect[:3], p, 2], nan_ok=True))  # fmt: skip
        assert claim["auroc"][task] == pytest.approx(np.mean([one[task].both[0] for one in scored]))


def test_a_result_is_read_back_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {task: Scores(*rng.uniform(0.4, 0.9, (3, 50))) for task in ("Lung Opacity", "mean")}
    kept = Result(12.5, {"online": np.array([[1, 0.5], [2, 0.625]]), "loss": np.empty((0, 2))}, scores)
    path = tmp_path / "results" / "lead.npz"
    assert read_result(path, {"seed": 0}) is None
    write_result(path, {"seed": 0}, kept)
    back = read_result(path, {"seed": 0})
    assert back is not None and back.seconds == 12.5 and list(back.scores) == list(scores)
    for task, one in scores.items():
        for part in ("both", "patients", "draws"):
            assert np.allclose(getattr(back.scores[task], part), getattr(one, part), atol=1e-7)
    assert all(np.array_equal(back.curves[name], values) for name, values in kept.curves.items())
    assert read_result(path, {"seed": 1}) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert read_result(path, {"seed": 0}) is None


def test_a_trial_is_trained_with_its_settings_and_its_seed_and_its_result_is_of_nothing_else(tmp_path: Path) -> None:
    one, other = Cell("one", {"temperature": 0.2}), Cell("one", {"temperature": 0.1})
    command = Trial(one, 2, tmp_path / "shards", tmp_path).command(1)
    assert {"--temperature=0.2", "--seed=2", f"--shards={tmp_path / 'shards'}"} <= {*command}

    def identity(cell: Cell = one, seed: int = 0, draws: int = 5, shards: str = "a") -> str:
        manifest: Any = SimpleNamespace(fingerprint=lambda: shards)
        study = recipe._Study(tmp_path, tmp_path, [cell], 3, draws, 1, manifest)
        return json.dumps(study._identity(Trial(cell, seed, tmp_path, tmp_path)))

    assert len({identity(), identity(other), identity(seed=1), identity(draws=6), identity(shards="b")}) == 5


def test_a_cell_is_compared_to_its_rival_and_corrected_for_all_cells(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exam, "withheld", lambda self: {})  # these few phantoms have too few patients for a p value
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (4, 3, 40))
    noise[..., 0] = 0
    names = ("published", "published, large", "small", "large")
    cells = [Cell(names[0], {}), Cell(names[1], {}, names[1]), Cell(names[2], {}), Cell(names[3], {}, names[1])]
    scored = {name: {"mean": [Scores(*(value + one))]}
           for name, value, one in zip(names, (0.6, 0.7, 0.61, 0.72), noise, strict=True)}  # fmt: skip
    study = recipe._Study(three_splits.folder, tmp_path, cells, 1, 5, 1, three_splits.manifest)
    rows = {row.name: row for row in study.rows(recipe._Scored(scored, {}, scored["published"]))}
    alone = {name: difference(scored[name]["mean"], scored[rival]["mean"])
             for name, rival in (("small", names[0]), ("large", names[1]))}  # fmt: skip
    for name, p in zip(alone, holm([effect.p for effect in alone.values()]), strict=True):
        assert rows[name].to_published == {"mean": alone[name]._replace(p=p)}
    assert not rows[names[0]].to_published and not rows[names[1]].to_published


def test_a_run_of_other_settings_or_shards_is_not_taken_for_a_cells(three_splits: Shards, tmp_path: Path) -> None:
    cell = Cell("one", {"temperature": 0.2})
    trial = Trial(cell, 0, three_splits.folder, tmp_path)
    config = {**cell.all_settings(), "seed": 0}
    state = {"config": config, "shards": three_splits.manifest.fingerprint(), "epoch": config["epochs"] - 1}
    assert not trial.is_done()
    save_checkpoint(trial.run, 5, state)
    assert not trial.is_done()  # whatever its journal says
    save_checkpoint(trial.run, 6, {**state, "epoch": config["epochs"]})
    assert trial.is_done()
    for other in ({"config": {**config, "temperature": 0.1}}, {"config": {**config, "seed": 1}}, {"shards": "others"}):
        save_checkpoint(trial.run, 7, {**state, **other})
        with pytest.raises(InputError, match=r"is of another run .* there, .* now\); choose another --out"):
            trial.is_done()


def test_partners_and_seeds_that_a_study_lacks_are_told_of_first(three_splits: Shards, tmp_path: Path) -> None:
    bare = replace(three_splits.manifest, settings={})
    with pytest.raises(InputError, match=r"as cell 'partners' wants; build others with: .* --partners=3"):
        recipe._check(three_splits.folder, bare, CELLS)
    study = recipe._Study(three_splits.folder, tmp_path, [*CELLS[:1]], 1, 5, 1, three_splits.manifest)
    with pytest.raises(InputError, match="--claim: 'published' has one seed and was no choice of the study"):
        study.claim(CELLS[0])


def test_seeds_are_compared_in_pairs_and_a_lone_one_with_each() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = ([Scores(*rng.uniform(0.4, 0.9, (3, 30))) for _ in range(3)] for _ in range(2))
    assert difference(mine, theirs) == over_seeds([one - other for one, other in zip(mine, theirs, strict=True)])
    assert difference(mine, theirs[1:2]) == over_seeds([one - theirs[1] for one in mine])


@pytest.mark.parametrize("positive", [9, 10])
def test_of_few_patients_the_claim_has_no_interval_and_no_p(
    positive: int, three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of task B there are that many test patients with a positive image, of A thirty."""
    rng = np.random.default_rng(0)
    def scores(shift: float) -> dict[str, Scores]:
        return {task: Scores(*rng.normal(0.5 + shift, 0.01, (3, 50))) for task in ("A", "B", "mean")}

    patients = np.arange(60)
    def drawn(count: int) -> Any:
        return SimpleNamespace(test=patients, test_labels=(patients < count).astype(int))

    exam = Exam("test", pd.DataFrame(), {"A": drawn(30), "B": drawn(positive)}, patients)
    monkeypatch.setattr(Exam, "score", lambda self, features: scores(features))
    for name, value in (("set_exam", lambda *given: exam), ("train_all", lambda *given: None)):
        monkeypatch.setattr(recipe, name, value)
    cells = [Cell("published", {}, repeated=True), Cell("sure", {}, repeated=True)]
    study = recipe._Study(three_splits.folder, tmp_path, cells, 3, 5, 1, three_splits.manifest)
    study.__dict__["candidates"] = SimpleNamespace(trained=lambda run: 0.2 * ("sure" in str(run)),
                                                   scratch=lambda *given: 0.0, thumbnail=lambda size: 0.1)  # fmt: skip
    study.claim(cells[1])
    made = study.claim(cells[1])  # as it is read back
    assert made.withheld == ({"B": "9 positive test patients"} if positive == 9 else {})
    for effects in made.differences.values():
        assert np.isfinite(effects["A"]).all() and np.isfinite(effects["B"][1:4]).all() == (positive == 10)
    cells_scores = {cell.name: recipe.by_task([scores(0.1)] * 3) for cell in cells}
    rows = study.rows(recipe._Scored(cells_scores, {}, recipe.by_task([scores(0.0)])))
    assert [np.isfinite(rows[-1].to_thumbnail[task].p) for task in ("A", "B", "mean")] == [True, *[positive == 10] * 2]
    page = Page("shards", {}, 5, {}, rows, "sure", made, {}, exam.withheld()).text()
    assert page.count("no interval, p value or verdict for B (9 positive test patients)") == 2 * (positive == 9)
    assert "+nan" not in page and page.count("no p |") == 6 * (positive == 9)


def test_only_a_cell_with_every_seed_is_chosen(three_splits: Shards, tmp_path: Path) -> None:
    cells = [Cell("published", {}, repeated=True), Cell("lucky", {}), Cell("sure", {}, repeated=True)]
    study = recipe._Study(three_splits.folder, tmp_path, cells, 3, 5, 1, three_splits.manifest)
    assert [len(study.trials(cell)) for cell in cells] == [3, 1, 3]
    values = {"published": [0.6, 0.5, 0.5], "lucky": [0.9], "sure": [0.55, 0.55, 0.6]}
    scored = recipe._Scored({name: {"mean": [Scores(*np.full((3, 9), value)) for value in seeds]}
                       for name, seeds in values.items()}, {}, {})  # fmt: skip
    assert study.choose(scored).name == "sure"


def test_shards_that_cannot_carry_the_study_are_refused(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images in split test; NIH's shards have all three"):
        bench_recipe(shards.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named_with_its_log(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "BASE", {**QUICK, "batch_size": 10**5})
    with pytest.raises(InputError, match=r"seed-0: the run ended with status 1, see .*log.txt"):
        bench_recipe(three_splits.folder, out=tmp_path, cells=("published",), seeds=1)
    assert "--batch-size=100000" in (tmp_path / "published" / "seed-0" / "log.txt").read_text()


def test_p_values_are_corrected_for_all_names() -> None:
    rng = np.random.default_rng(0)
    def seeds(shift: float) -> list[Scores]:
        return [Scores(np.r_[shift, shift + rng.normal(0, 0.01, 200)], np.r_[shift, shift + rng.normal(0, 0.008, 200)],
                       shift + rng.normal(0, 0.02, 10)) for _ in range(3)]  # fmt: skip

    alone = difference(seeds(0.6), seeds(0.59))
    four = correct(dict.fromkeys("abcd", alone))
    assert 0 < alone.p < 0.25
    assert all(effect == alone._replace(p=pytest.approx(4 * alone.p)) for effect in four.values())
