"""The phantom keeps CheXpert's form, repeats itself to the byte, and puts its signs where anatomy does."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS, TASKS
from shard.phantom import archive as module
from shard.phantom.anatomy import Plane, State, U, V, frontal, heart_edge, lateral
from shard.phantom.archive import View, phantom, state_of

IMAGES = 90
WELL = State(heart=0.1, opacity=0.0, effusion=0.0, mediastinum=0.0)
HEART_BELT = (V > 0.6) & (V < 0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "one"
    phantom(out, images=IMAGES, seed=3, workers=1)
    return out


def rows_of(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(state: State, seed: int) -> Plane:
    return frontal(state, np.random.default_rng(seed), female=False, breath=0.0, turn=0.0)


def test_workers_do_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "two", images=IMAGES, seed=3, workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(folder)


def test_another_seed_draws_other_images(folder: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "other", images=20, seed=4, workers=1)
    one, other = bytes_of(folder), bytes_of(tmp_path / "other")
    shared = [name for name in one.keys() & other.keys() if name.endswith(".jpg")]
    assert shared and all(one[name] != other[name] for name in shared)


def test_a_rerun_mends_to_the_same_bytes_and_other_arguments_leave_nothing_behind(tmp_path: Path) -> None:
    phantom(tmp_path, images=24, seed=1, workers=1)
    first = bytes_of(tmp_path)
    damaged = next(tmp_path.rglob("*.jpg"))
    damaged.write_bytes(b"")
    phantom(tmp_path, images=24, seed=1, workers=1)
    assert bytes_of(tmp_path) == first
    phantom(tmp_path, images=20, seed=1, workers=1)
    assert len(list(tmp_path.rglob("*.jpg"))) == 20


def test_tables_have_chexperts_columns_and_name_every_image_once(folder: Path) -> None:
    named = []
    for split in ("train", "valid"):
        header = (folder / f"{split}.csv").read_text().splitlines()[0]
        assert header == ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS))
        for row in rows_of(folder, split):
            prefix, path = row["Path"].split("/", 1)
            assert prefix == "CheXpert-v1.0-small" and path.startswith(f"{split}/patient")
            assert row["Sex"] in ("Female", "Male") and 18 <= int(row["Age"]) <= 90
            assert ("lateral" in path) == (row["Frontal/Lateral"] == "Lateral") == (row["AP/PA"] == "")
            assert all(row[finding] in ("1.0", "0.0", "-1.0", "") for finding in CHEXPERT_FINDINGS)
            named.append(path)
    assert sorted(named) == sorted(name for name in bytes_of(folder) if name.endswith(".jpg"))
    assert len(named) == IMAGES and len(rows_of(folder, "valid")) == IMAGES // 5


def test_images_are_grey_and_of_chexpert_smalls_shape(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "L" and min(image.size) == 320 and 350 <= max(image.size) < 400


def test_patients_do_not_cross_the_splits(folder: Path) -> None:
    rows = {split: rows_of(folder, split) for split in ("train", "valid")}
    train, valid = ({row["Path"].split("/")[2] for row in rows[split]} for split in rows)
    assert train and len(valid) >= 5 and not train & valid


def test_only_train_has_blanks_and_doubts() -> None:
    plan = [view for patient in module._plan(0, 600, 1, 3) for view in patient]
    train, valid = ([module._row(0, view, split) for view in plan] for split in ("train", "valid"))
    for task, severity in zip(TASKS, State._fields[:4], strict=True):
        told = [row[task] for row in train]
        assert 0.2 < told.count("") / len(told) < 0.4 and 0 < told.count("-1.0") / len(told) < 0.2
        truth = [getattr(state_of(0, view.patient, view.study), severity) > 0.5 for view in plan]
        assert [row[task] for row in valid] == ["1.0" if sick else "0.0" for sick in truth]
        assert 0.28 < sum(truth) / len(truth) < 0.48
    sound = [row for row in train if row["No Finding"] == "1.0"]
    assert sound and not any({"1.0", "-1.0"} & {row[task] for task in TASKS} for row in sound)
    assert {row["Support Devices"] for row in train} == {"1.0", ""}
    assert 0.08 < sum(view.lateral for view in plan) / len(plan) < 0.17


def test_a_smaller_request_is_a_view_count_not_a_rounding() -> None:
    for count in range(12, 40):
        assert sum(len(patient) for patient in module._plan(5, count, 1, 3)) == count


@pytest.mark.parametrize("seed", range(3))
def test_cardiomegaly_widens_the_heart_and_nothing_else(seed: int) -> None:
    change = draw(WELL._replace(heart=0.9), seed) - draw(WELL, seed)
    beside = HEART_BELT & (U > 0.50) & (U < 0.70)  # the healthy border is at 0.44, the sick at 0.86
    assert change[beside].min() > 0.1
    assert np.abs(change[(V < 0.2) | (np.abs(U) > 0.95) & (V < 2)]).max() < 0.02
    ratio = sum(float(heart_edge(WELL._replace(heart=0.5), side).max()) for side in (-1, 1)) / 2
    assert ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_effusion_fills_the_costophrenic_corner_first(seed: int) -> None:
    well, subtle, plain = (draw(WELL._replace(effusion=severity), seed) for severity in (0.0, 0.56, 1.0))
    sides = [side for side in (-1, 1) if np.abs((plain - well)[(np.sign(U) == side) & (V > 0)]).max() > 0.1]
    assert sides
    for side in sides:
        corner = (V > 1.03) & (V < 1.12) & (U * side > 0.86) & (U * side < 0.93)
        middle = (V > 0.45) & (V < 0.55) & (U * side > 0.6) & (U * side < 0.8)
        assert (subtle - well)[corner].max() > 0.15 and np.abs((subtle - well)[middle]).max() < 0.02
        assert (plain - well)[middle].mean() > 0.15
    assert np.abs((plain - well)[np.broadcast_to(V < 0.05, well.shape)]).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_widened_mediastinum_is_graded_and_above_the_heart(seed: int) -> None:
    well, subtle, plain = (draw(WELL._replace(mediastinum=severity), seed) for severity in (0.0, 0.56, 1.0))
    beside = (V > 0.12) & (V < 0.3) & (np.abs(U) > 0.27) & (np.abs(U) < 0.33)
    assert (plain - well)[beside].mean() > (subtle - well)[beside].mean() + 0.03 > 0.06
    assert np.abs((plain - well)[np.broadcast_to(V > 0.75, well.shape)]).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_opacities_make_the_lungs_patchy_and_leave_the_rest(seed: int) -> None:
    well, subtle, plain = (draw(WELL._replace(opacity=severity), seed) for severity in (0.0, 0.6, 1.0))
    lungs = (V > 0.25) & (V < 0.85) & (np.abs(U) > 0.5) & (np.abs(U) < 0.85)
    assert (plain - well)[lungs].mean() > (subtle - well)[lungs].mean() > 0.01
    assert (plain - well)[lungs].std() > 0.03
    assert np.abs((plain - well)[np.broadcast_to((np.abs(U) > 1.05) | (V > 1.3), well.shape)]).max() < 1e-6


def test_the_lateral_shows_the_signs_too() -> None:
    def side_view(state: State) -> Plane:
        return lateral(state, np.random.default_rng(0), breath=0.0)

    for sick in (State(1, 0, 0, 0), State(0.1, 1, 0, 0), State(0.1, 0, 1, 0), State(0.1, 0, 0, 1)):
        change = side_view(sick) - side_view(WELL)
        assert 0.01 < (np.abs(change) > 0.05).mean() < 0.3


def test_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a phantom's"):
        phantom(tmp_path, images=20)
    with pytest.raises(InputError, match="a file"):
        phantom(tmp_path / "thesis.txt", images=20)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_refuses_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--images=19"):
        phantom(tmp_path / "new", images=19)
    assert not (tmp_path / "new").exists()


def test_a_killed_run_leaves_whole_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom(tmp_path, images=24, seed=1, workers=1)
    render, calls = module.render, iter(range(100))

    def dying(seed: int, view: View) -> Image.Image:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return render(seed, view)

    monkeypatch.setattr(module, "render", dying)
    with pytest.raises(KeyboardInterrupt):
        phantom(tmp_path, images=26, seed=1, workers=1)
    assert not list(tmp_path.glob("*.csv"))
    assert len(list(tmp_path.rglob("*.jpg"))) == 5
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).load()
