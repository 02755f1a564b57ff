"""The phantom: CheXpert's layout, reproducible bytes, and signs in the right anatomical places."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS, TASKS
from shard.phantom.anatomy import Pathology, heart_border, render_frontal, render_lateral
from shard.phantom.archive import View, make_row, phantom, render_view, sample_pathology, sample_patients
from shard.phantom.structures import Plane, U, V

IMAGES = 90
HEALTHY = Pathology(heart=0.1, opacity=0.0, effusion=0.0, mediastinum=0.0)
HEART_LEVEL = (V > 0.6) & (V < 0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "one"
    phantom(out, images=IMAGES, seed=3, workers=1)
    return out


def read_rows(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def frontal_view(pathology: Pathology, seed: int) -> Plane:
    return render_frontal(pathology, np.random.default_rng(seed), female=False, breath=0.0, rotation=0.0)


def broadcast(mask: np.ndarray, image: Plane) -> np.ndarray:
    return np.broadcast_to(mask, image.shape)


def test_number_of_workers_does_not_change_files(folder: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "two", images=IMAGES, seed=3, workers=2)
    assert read_files(tmp_path / "two") == read_files(folder)


def test_dicom_files_have_the_images_and_patients_of_the_table(folder: Path, tmp_path: Path) -> None:
    """A hospital's folder: the same images as in CheXpert's layout, with their patients in the tags."""
    pydicom = pytest.importorskip("pydicom")
    out = tmp_path / "export"
    phantom(out, images=20, seed=3, layout="dicom", workers=1)
    with (out / "labels.csv").open(newline="") as file:
        paths = [Path(row["path"]) for row in csv.DictReader(file)]
    assert len(paths) == 20 and paths == sorted(path.relative_to(out) for path in out.rglob("*.dcm"))
    for path in paths:
        data = pydicom.dcmread(out / path)
        assert data.PatientID == path.parts[1] and data.StudyDate.startswith("2019") and data.Modality == "DX"
        assert (data.ViewPosition == "LL") == path.stem.endswith("lateral")
        drawn = Image.open(folder / "train" / path.relative_to("images").with_suffix(".jpg"))
        assert np.abs(data.pixel_array - np.asarray(drawn, float)).mean() < 3  # JPEG of quality 90


def test_dicom_files_are_the_same_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        phantom(tmp_path / str(number), images=20, layout="dicom", workers=number)
    assert read_files(tmp_path / "1") == read_files(tmp_path / "2")


def test_another_layout_replaces_the_first(tmp_path: Path) -> None:
    phantom(tmp_path, images=20, layout="dicom", workers=1)
    phantom(tmp_path, images=20, workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"README.txt", "train", "train.csv", "valid", "valid.csv"}


def test_another_seed_renders_other_images(folder: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "other", images=20, seed=4, workers=1)
    first, other = read_files(folder), read_files(tmp_path / "other")
    shared = [name for name in first.keys() & other.keys() if name.endswith(".jpg")]
    assert shared and all(first[name] != other[name] for name in shared)


def test_rerun_repairs_files_and_other_arguments_replace_them(tmp_path: Path) -> None:
    phantom(tmp_path, images=24, seed=1, workers=1)
    expected = read_files(tmp_path)
    damaged = next(tmp_path.rglob("*.jpg"))
    damaged.write_bytes(b"")
    phantom(tmp_path, images=24, seed=1, workers=1)
    assert read_files(tmp_path) == expected
    phantom(tmp_path, images=20, seed=1, workers=1)
    assert len(list(tmp_path.rglob("*.jpg"))) == 20


def test_tables_have_chexperts_columns_and_list_every_image_once(folder: Path) -> None:
    listed = []
    for split in ("train", "valid"):
        header = (folder / f"{split}.csv").read_text().splitlines()[0]
        assert header == ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS))
        for row in read_rows(folder, split):
            prefix, path = row["Path"].split("/", 1)
            assert prefix == "CheXpert-v1.0-small" and path.startswith(f"{split}/patient")
            assert row["Sex"] in ("Female", "Male") and 18 <= int(row["Age"]) <= 90
            assert ("lateral" in path) == (row["Frontal/Lateral"] == "Lateral") == (row["AP/PA"] == "")
            assert all(row[finding] in ("1.0", "0.0", "-1.0", "") for finding in CHEXPERT_FINDINGS)
            listed.append(path)
    assert sorted(listed) == sorted(name for name in read_files(folder) if name.endswith(".jpg"))
    assert len(listed) == IMAGES and len(read_rows(folder, "valid")) == IMAGES // 5


def test_images_are_grey_and_have_chexpert_smalls_size(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "L" and min(image.size) == 320 and 350 <= max(image.size) < 400


def test_no_patient_is_in_both_splits(folder: Path) -> None:
    rows = {split: read_rows(folder, split) for split in ("train", "valid")}
    train, valid = ({row["Path"].split("/")[2] for row in rows[split]} for split in rows)
    assert train and len(valid) >= 5 and not train & valid


def test_only_train_has_blank_and_uncertain_labels() -> None:
    views = [view for patient in sample_patients(0, 600, 1, 3) for view in patient]
    train, valid = ([make_row(0, view, split) for view in views] for split in ("train", "valid"))
    for task, severity in zip(TASKS, Pathology._fields[:4], strict=True):
        labels = [row[task] for row in train]
        assert 0.2 < labels.count("") / len(labels) < 0.4 and 0 < labels.count("-1.0") / len(labels) < 0.2
        truth = [getattr(sample_pathology(0, view.patient, view.study), severity) > 0.5 for view in views]
        assert [row[task] for row in valid] == ["1.0" if positive else "0.0" for positive in truth]
        assert 0.28 < sum(truth) / len(truth) < 0.48
    without_finding = [row for row in train if row["No Finding"] == "1.0"]
    assert without_finding
    assert not any({"1.0", "-1.0"} & {row[task] for task in TASKS} for row in without_finding)
    assert {row["Support Devices"] for row in train} == {"1.0", ""}
    assert 0.08 < sum(view.lateral for view in views) / len(views) < 0.17


def test_patients_have_exactly_the_requested_number_of_views() -> None:
    for count in range(12, 40):
        assert sum(len(patient) for patient in sample_patients(5, count, 1, 3)) == count


@pytest.mark.parametrize("seed", range(3))
def test_cardiomegaly_widens_only_the_heart(seed: int) -> None:
    change = frontal_view(HEALTHY._replace(heart=0.9), seed) - frontal_view(HEALTHY, seed)
    lateral_to_heart = HEART_LEVEL & (U > 0.50) & (U < 0.70)  # the border is at 0.44 if healthy, else at 0.86
    assert change[lateral_to_heart].min() > 0.1
    assert np.abs(change[(V < 0.2) | (np.abs(U) > 0.95) & (V < 2)]).max() < 0.02
    ratio = sum(float(heart_border(HEALTHY._replace(heart=0.5), side).max()) for side in (-1, 1)) / 2
    assert ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_effusion_fills_the_costophrenic_angle_first(seed: int) -> None:
    none, subtle, obvious = (frontal_view(HEALTHY._replace(effusion=severity), seed) for severity in (0.0, 0.56, 1.0))
    sides = [side for side in (-1, 1) if np.abs((obvious - none)[(np.sign(U) == side) & (V > 0)]).max() > 0.1]
    assert sides
    for side in sides:
        angle = (V > 1.03) & (V < 1.12) & (U * side > 0.86) & (U * side < 0.93)
        mid_lung = (V > 0.45) & (V < 0.55) & (U * side > 0.6) & (U * side < 0.8)
        assert (subtle - none)[angle].max() > 0.15 and np.abs((subtle - none)[mid_lung]).max() < 0.02
        assert (obvious - none)[mid_lung].mean() > 0.15
    assert np.abs((obvious - none)[broadcast(V < 0.05, none)]).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_widened_mediastinum_grows_with_severity_above_the_heart(seed: int) -> None:
    none, subtle, obvious = (
        frontal_view(HEALTHY._replace(mediastinum=severity), seed) for severity in (0.0, 0.56, 1.0)
    )
    paramediastinal = (V > 0.12) & (V < 0.3) & (np.abs(U) > 0.27) & (np.abs(U) < 0.33)
    assert (obvious - none)[paramediastinal].mean() > (subtle - none)[paramediastinal].mean() + 0.03 > 0.06
    assert np.abs((obvious - none)[broadcast(V > 0.75, none)]).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_opacities_change_only_the_lungs(seed: int) -> None:
    none, subtle, obvious = (frontal_view(HEALTHY._replace(opacity=severity), seed) for severity in (0.0, 0.6, 1.0))
    lungs = (V > 0.25) & (V < 0.85) & (np.abs(U) > 0.5) & (np.abs(U) < 0.85)
    assert (obvious - none)[lungs].mean() > (subtle - none)[lungs].mean() > 0.01
    assert (obvious - none)[lungs].std() > 0.03
    assert np.abs((obvious - none)[broadcast((np.abs(U) > 1.05) | (V > 1.3), none)]).max() < 1e-6


def test_every_finding_is_visible_in_the_lateral_view() -> None:
    def lateral_view(pathology: Pathology) -> Plane:
        return render_lateral(pathology, np.random.default_rng(0), breath=0.0)

    for pathology in (Pathology(1, 0, 0, 0), Pathology(0.1, 1, 0, 0), Pathology(0.1, 0, 1, 0), Pathology(0.1, 0, 0, 1)):
        change = lateral_view(pathology) - lateral_view(HEALTHY)
        assert 0.01 < (np.abs(change) > 0.05).mean() < 0.3


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="contains files that phantom did not write"):
        phantom(tmp_path, images=20)
    with pytest.raises(InputError, match="is a file; name a new or empty folder"):
        phantom(tmp_path / "thesis.txt", images=20)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--images=19"):
        phantom(tmp_path / "new", images=19)
    assert not (tmp_path / "new").exists()


def test_interrupted_run_leaves_no_partial_image_and_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantom(tmp_path, images=24, seed=1, workers=1)
    calls = iter(range(100))

    def interrupted(seed: int, view: View) -> Image.Image:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return render_view(seed, view)

    monkeypatch.setattr("shard.phantom.archive.render_view", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom(tmp_path, images=26, seed=1, workers=1)
    assert not list(tmp_path.glob("*.csv"))
    assert len(list(tmp_path.rglob("*.jpg"))) == 5
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).load()
