"""Write synthetic radiographs in CheXpert's layout or as a folder of DICOM files, for training without real data.

A patient has one body. A study is one state of its pathology. A view is one exposure, position and breath.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image

from shard.errors import InputError
from shard.files import write_bytes
from shard.flags import WORKERS, Flag, validate_call
from shard.formats import CHEXPERT_FINDINGS, TASKS
from shard.machine import cores
from shard.phantom.anatomy import Pathology, render_frontal, render_lateral
from shard.phantom.dicom_file import Tags, encode_dicom
from shard.phantom.film import expose_film
from shard.phantom.structures import render_device
from shard.pool import parallel_map, tick

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
README_HEADER = "SYNTHETIC radiographs: drawn by cxr-simclr's phantom, no patient was ever imaged."
FIRST_VALID = 64541  # the number of CheXpert's first validation patient
PATIENTS_PER_JOB = 8
Layout = Literal["chexpert", "dicom"]
LABELS, DICOM_FOLDER = "labels.csv", "images"  # of the layout "dicom"


class View(NamedTuple):
    """One image: its row in the table, and the keys of its random streams."""

    patient: int
    study: int
    view: int
    lateral: bool
    portable: bool  # AP, taken in bed
    female: bool
    age: int

    def path(self, folder: str, suffix: str = "jpg") -> str:
        """Return the path of the image, as in CheXpert. folder: the split there."""
        kind = "lateral" if self.lateral else "frontal"
        return f"{folder}/patient{self.patient:05d}/study{self.study}/view{self.view}_{kind}.{suffix}"

    def tags(self) -> Tags:
        """Return what a DICOM file of the image says."""
        position, sex = "LL" if self.lateral else "AP" if self.portable else "PA", "F" if self.female else "M"
        return Tags(f"patient{self.patient:05d}", self.study, self.view, sex, self.age, position)


def _make_rng(*key: int) -> np.random.Generator:
    """Seed an independent generator by (--seed, number of the stream, patient, …)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def sample_pathology(seed: int, patient: int, study: int) -> Pathology:
    """Sample the pathology of a study. Severities correlate, drift between studies, and avoid values near 0.5."""
    patient_rng, study_rng = _make_rng(seed, 1, patient), _make_rng(seed, 2, patient, study)
    z = 0.5 * patient_rng.standard_normal() + 0.8 * patient_rng.standard_normal(4)
    z += 0.3 * study_rng.standard_normal(4)
    excess = z - 0.3  # about 38 % are positive
    severity = 0.5 + np.sign(excess) * (0.06 + 0.44 * (1 - np.exp(-1.2 * np.abs(excess))))
    heart, opacity, effusion, mediastinum = severity.tolist()
    return Pathology(heart, opacity, effusion, mediastinum, device=bool(study_rng.random() < 0.2))


def render_view(seed: int, view: View) -> Image.Image:
    """Render a radiograph: 8-bit grey, about 390x320 or 320x390."""
    pathology, rng = sample_pathology(seed, view.patient, view.study), _make_rng(seed, 3, *view[:3])
    body_rng, breath, rotation = _make_rng(seed, 4, view.patient), rng.uniform(-1, 1), rng.normal(0, 0.5)
    breath -= 0.4 * view.portable
    if view.lateral:
        image = render_lateral(pathology, body_rng, breath)
    else:
        image = render_frontal(pathology, body_rng, view.female, breath, rotation)
    if pathology.device:
        image += np.float32(0.3) * render_device(_make_rng(seed, 5, view.patient, view.study))
    return expose_film(image, rng, misalignment=1.5 if view.portable else 1.0)


def sample_patients(seed: int, count: int, first_patient: int, max_studies: int) -> list[list[View]]:
    """Sample patients until they have `count` views. Return the views of each patient.

    first_patient: the number of the first patient. max_studies: of each patient.
    """
    patients: list[list[View]] = []
    while count > 0:
        patient, views = first_patient + len(patients), []
        rng = _make_rng(seed, 6, patient)
        female, age = bool(rng.random() < 0.45), int(rng.integers(18, 91))
        for study in range(1, 1 + min(max_studies, int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))))):
            second_view, portable = rng.random(), bool(rng.random() < 0.6)
            for view in (1, 2) if second_view < 0.3 else (1,):
                is_lateral = view == 2 and second_view < 0.16
                views.append(View(patient, study, view, is_lateral, portable and not is_lateral, female, age))
        patients.append(views[:count])
        count -= len(views)
    return patients


def make_row(seed: int, view: View, split: str) -> dict[str, str]:
    """Make the CSV row of a view, by column. All views of a study have the same labels.

    Only the train split has blank and uncertain labels.
    """
    pathology = sample_pathology(seed, view.patient, view.study)
    report_rng = _make_rng(seed, 7, view.patient, view.study)
    row = {"Path": f"CheXpert-v1.0-small/{view.path(split)}", "Age": str(view.age)}
    row["Sex"] = "Female" if view.female else "Male"
    row["Frontal/Lateral"] = "Lateral" if view.lateral else "Frontal"
    row["AP/PA"] = "" if view.lateral else "AP" if view.portable else "PA"
    for task, severity in zip(TASKS, pathology[:4], strict=True):
        blank, uncertain = report_rng.random(2)
        row[task] = "1.0" if severity > 0.5 else "0.0"
        if split == "train" and blank < 0.3:
            row[task] = ""
        elif split == "train" and uncertain < 0.6 * np.exp(-(((severity - 0.5) / 0.13) ** 2)):
            row[task] = "-1.0"  # likelier near the threshold
    row["No Finding"] = "1.0" if max(pathology[:4]) < 0.5 and "-1.0" not in row.values() else ""
    row["Support Devices"] = "1.0" if pathology.device else ""
    return row


def _write_images(job: tuple[list[list[View]], Path, int, str, bool]) -> None:
    """Render the views of some patients, and write them to a folder.

    job: patients, folder, seed, the folder in it (of a split), and whether to write DICOM files instead of JPEGs.
    """
    patients, out, seed, folder, dicom = job
    # After freeing a large block, glibc keeps small ones instead of returning them. This halves the time of a view.
    np.empty(1 << 24, np.uint8)
    for view in (view for patient in patients for view in patient):
        image = render_view(seed, view)
        path = out / view.path(folder, "dcm" if dicom else "jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode_dicom(image, view.tags()) if dicom else _encode_jpeg(image))
        tick()


def _encode_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _prepare_folder(out: Path, readme: str) -> None:
    """Create the folder and its README.txt. Delete the files of another phantom; those of this one are overwritten.

    Raises InputError if the folder contains other files.
    """
    readme_file = out / "README.txt"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder")
    existing = is_phantom(out)
    if not existing and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: contains files that phantom did not write; name a new or empty folder")
    if existing and readme_file.read_text() != readme:
        for table, folder in (("train.csv", "train"), ("valid.csv", "valid"), (LABELS, DICOM_FOLDER)):
            (out / table).unlink(missing_ok=True)  # before the images that it lists
            shutil.rmtree(out / folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(readme_file, readme.encode())


def is_phantom(folder: Path) -> bool:
    """Whether the folder contains synthetic radiographs, according to its README.txt."""
    readme = folder / "README.txt"
    return readme.is_file() and readme.read_text(errors="replace").startswith(README_HEADER)


@validate_call
def phantom(
    out: Annotated[Path, Flag("Folder to write to.")], *,
    # Two splits need 20 images. Beyond 100,000, patient numbers of train and valid would overlap.
    images: Annotated[int, Flag("Number of images; in CheXpert's layout a fifth of them are in valid.",
                                low=20, high=100_000)] = 2000,
    layout: Annotated[Layout, Flag("chexpert: JPEGs in CheXpert's folders, with its tables. dicom: a folder of DICOM "
                                   "files, as a hospital exports them, with labels.csv.")] = "chexpert",
    seed: Annotated[int, Flag("Seed of the images.", low=0, high=2**63)] = 0,
    workers: Annotated[int, WORKERS] = 0,
) -> None:  # fmt: skip
    """Write synthetic radiographs, grey images of about 390×320 pixels.

    The same flags give the same bytes with any number of workers.

    Raises InputError if a number is out of range, OUT contains anything but a phantom, or pydicom is missing.

        python -m shard phantom out/radiographs --images=2400
        python -m shard phantom out/export --images=1000 --layout=dicom
    """
    dicom = layout == "dicom"
    if dicom and importlib.util.find_spec("pydicom") is None:
        raise InputError("--layout=dicom: pydicom is missing; pip install '.[dicom]'")
    flags = f"--images={images} --seed={seed}" + " --layout=dicom" * dicom
    _prepare_folder(out, f"{README_HEADER}\nMade by: python -m shard phantom OUT {flags}\n")
    valid_images = 0 if dicom else max(8, round(0.2 * images))
    folders = {DICOM_FOLDER if dicom else "train": sample_patients(seed, images - valid_images, 1, max_studies=3)}
    if not dicom:
        folders["valid"] = sample_patients(seed, valid_images, first_patient=FIRST_VALID, max_studies=1)
    jobs = [
        (patients[start : start + PATIENTS_PER_JOB], out, seed, folder, dicom)
        for folder, patients in folders.items()
        for start in range(0, len(patients), PATIENTS_PER_JOB)
    ]
    for _ in parallel_map(jobs, len(jobs), _write_images, images=images, label="rendering", workers=workers or cores()):
        pass
    for folder, patients in folders.items():
        views = [view for patient in patients for view in patient]
        if dicom:
            rows = [{**make_row(seed, view, "train"), "path": view.path(folder, "dcm")} for view in views]
            _write_table(out / LABELS, ("path", *TASKS), rows)
        else:
            _write_table(out / f"{folder}.csv", COLUMNS, [make_row(seed, view, folder) for view in views])
    print(f"{out}: {images} SYNTHETIC radiographs" + (f", {valid_images} of them in valid" if valid_images else ""))


def _write_table(file: Path, columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    """Write rows as CSV. Cells of other columns are left out."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(file, text.getvalue().encode())
