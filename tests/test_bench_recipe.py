"""bench.recipe: trains each cell once, chooses on validation patients, looks at the test patients once."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import grid, recipe
from bench.grid import BASE, CELLS, Cell, Trial, choose_cells
from bench.judge import Candidates, Exam, correct, difference, set_exam
from bench.recipe import bench_recipe
from bench.result import Result, read_result, write_result
from probe.statistics import Scores, over_seeds
from shard.errors import InputError
from shard.manifest import read_manifest
from shard.write import build
from tests.conftest import Shards
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


def test_the_whole_study_goes_on_where_it_stopped_and_looks_at_test_patients_once(
    three_splits: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partners = {"patient_positive": 0.5, "same_patient": "masked"}
    cells = (Cell("published", {}, repeated=True), Cell("temperature 0.2", {"temperature": 0.2}),
             Cell("with partners", partners, repeated=True))  # fmt: skip
    monkeypatch.setattr(grid, "BASE", QUICK)
    monkeypatch.setattr(recipe, "BASE", QUICK)
    monkeypatch.setattr(grid, "CELLS", cells)
    monkeypatch.setattr("bench.judge.SHOTS", 3)
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
    sat = [exam.sit(trained.trained(Trial(Cell(best, {}), seed, three_splits.folder, out).run)) for seed in range(2)]
    thumbnail = exam.sit(trained.thumbnail(32))
    for task in exam.drawn:
        assert claim["auroc"][task] == pytest.approx(np.mean([one[task].both[0] for one in sat]))
        wanted = over_seeds([one[task] - thumbnail[task] for one in sat])
        found = claim["differences"]["Thumbnail"][task]
        assert found[:3] == pytest.approx(list(wanted[:3])) and found[4] == 2


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


def test_only_a_cell_with_every_seed_is_chosen(three_splits: Shards, tmp_path: Path) -> None:
    cells = [Cell("published", {}, repeated=True), Cell("lucky", {}), Cell("sure", {}, repeated=True)]
    study = recipe._Study(three_splits.folder, tmp_path, cells, 3, 5, 1, three_splits.manifest)
    assert [len(study.trials(cell)) for cell in cells] == [3, 1, 3]
    values = {"published": [0.5, 0.6, 0.5], "lucky": [0.9], "sure": [0.6, 0.5, 0.6]}
    sat = recipe._Sat({name: {"mean": [Scores(*np.full((3, 9), value)) for value in seeds]}
                       for name, seeds in values.items()}, {}, {})  # fmt: skip
    assert study.choose(sat).name == "sure"


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
