"""Synthetic radiographs in CheXpert's layout: what the project trains on where no real data is at hand.

A patient is one body, a study one state of its health, a view one exposure, position and breath.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shard.cli import check_numbers
from shard.errors import InputError
from shard.files import write_bytes
from shard.formats import (
    CHEXPERT_FINDINGS,
    TASKS,  # State's order is that of TASKS
)
from shard.machine import cores
from shard.phantom.anatomy import State, device, expose, frontal, lateral
from shard.pool import parallel_map, tick

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
MARK = "SYNTHETIC radiographs: drawn by cxr-simclr's phantom, no patient was ever imaged."
FIRST_VALID = 64541  # CheXpert numbers its validation patients from here
CHUNK = 8  # patients handed to a worker at a time


class View(NamedTuple):
    """One image of the table, and what keys its random streams."""

    patient: int
    study: int
    view: int
    lateral: bool
    portable: bool  # taken in bed, front to back: AP
    female: bool
    age: int

    def path(self, split: str) -> str:
        """Where its image lies in a split, as in CheXpert."""
        kind = "lateral" if self.lateral else "frontal"
        return f"{split}/patient{self.patient:05d}/study{self.study}/view{self.view}_{kind}.jpg"


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def state_of(seed: int, patient: int, study: int) -> State:
    """The health of a patient at a study: mildly correlated severities, a slow drift, a gap about 0.5."""
    own, now = _rng(seed, 1, patient), _rng(seed, 2, patient, study)
    z = 0.5 * own.standard_normal() + 0.8 * own.standard_normal(4) + 0.3 * now.standard_normal(4)
    far = z - 0.3  # about 38 % positive
    severity = 0.5 + np.sign(far) * (0.06 + 0.44 * (1 - np.exp(-1.2 * np.abs(far))))
    heart, opacity, effusion, mediastinum = severity.tolist()
    return State(heart, opacity, effusion, mediastinum, device=bool(now.random() < 0.2))


def render(seed: int, view: View) -> Image.Image:
    """The radiograph of one view: 8-bit grey, about 390x320 or 320x390."""
    state, rng = state_of(seed, view.patient, view.study), _rng(seed, 3, *view[:3])
    body, breath, turn = _rng(seed, 4, view.patient), rng.uniform(-1, 1), rng.normal(0, 0.5)
    breath -= 0.4 * view.portable
    image = lateral(state, body, breath) if view.lateral else frontal(state, body, view.female, breath, turn)
    if state.device:
        image += np.float32(0.3) * device(_rng(seed, 5, view.patient, view.study))
    return expose(image, rng, 1.5 if view.portable else 1.0)


def _plan(seed: int, count: int, first: int, studies: int) -> list[list[View]]:
    """Patients from number `first` on, of up to `studies` studies each, until there are `count` views."""
    plan: list[list[View]] = []
    while count > 0:
        patient, views = first + len(plan), []
        rng = _rng(seed, 6, patient)
        female, age = bool(rng.random() < 0.45), int(rng.integers(18, 91))
        for study in range(1, 1 + min(studies, int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))))):
            second, portable = rng.random(), bool(rng.random() < 0.6)
            for view in (1, 2) if second < 0.3 else (1,):
                side = view == 2 and second < 0.16
                views.append(View(patient, study, view, side, portable and not side, female, age))
        plan.append(views[:count])
        count -= len(views)
    return plan


def _row(seed: int, view: View, split: str) -> dict[str, str]:
    """A view's line of the CSV; the views of a study share one report."""
    state, report = state_of(seed, view.patient, view.study), _rng(seed, 7, view.patient, view.study)
    row = {"Path": f"CheXpert-v1.0-small/{view.path(split)}", "Age": str(view.age)}
    row["Sex"] = "Female" if view.female else "Male"
    row["Frontal/Lateral"] = "Lateral" if view.lateral else "Frontal"
    row["AP/PA"] = "" if view.lateral else "AP" if view.portable else "PA"
    for task, severity in zip(TASKS, state[:4], strict=True):
        silence, doubt = report.random(2)
        row[task] = "1.0" if severity > 0.5 else "0.0"
        if split == "train" and silence < 0.3:
            row[task] = ""
        elif split == "train" and doubt < 0.6 * np.exp(-(((severity - 0.5) / 0.13) ** 2)):
            row[task] = "-1.0"  # the nearer the threshold, the likelier
    row["No Finding"] = "1.0" if max(state[:4]) < 0.5 and "-1.0" not in row.values() else ""
    row["Support Devices"] = "1.0" if state.device else ""
    return row


def _draw(job: tuple[list[list[View]], Path, int, str]) -> None:
    """Draw some patients' views into a folder."""
    patients, out, seed, split = job
    # Freeing one large block makes glibc keep the small ones, not hand them back: half the time a view.
    np.empty(1 << 24, np.uint8)
    for view in (view for patient in patients for view in patient):
        jpeg, path = io.BytesIO(), out / view.path(split)
        render(seed, view).save(jpeg, "JPEG", quality=90)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, jpeg.getvalue())
        tick()


def _claim(out: Path, readme: str) -> None:
    """Make `out` ours or refuse; what another phantom left is cleared away, what this one left is written over."""
    mark = out / "README.txt"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; name a folder that is new or empty")
    ours = is_phantom(out)
    if not ours and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files that are not a phantom's; name a folder that is new or empty")
    if ours and mark.read_text() != readme:
        for split in ("train", "valid"):
            (out / f"{split}.csv").unlink(missing_ok=True)  # before the images that it names
            shutil.rmtree(out / split, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(mark, readme.encode())


def is_phantom(folder: Path) -> bool:
    """Whether the folder holds synthetic radiographs, as its README.txt says."""
    mark = folder / "README.txt"
    return mark.is_file() and mark.read_text(errors="replace").startswith(MARK)


def phantom(out: Path, *, images: int = 2000, seed: int = 0, workers: int = 0) -> None:
    """Write --images synthetic radiographs to the folder OUT in CheXpert's layout, a fifth of them in valid.

    8-bit grey JPEGs of about 390x320; the tables come last, so a table in place names whole images only. The same
    --images and --seed give the same bytes, however many --workers (0: one a core) draw them.

    Raises InputError where a number is out of range or OUT holds anything but a phantom.
    """
    # Fewer would not fill two splits; of more, patients of train would be numbered into those of valid.
    check_numbers(images=(images, 20, 100_000), seed=(seed, 0, 2**63), workers=(workers, 0, 4096))
    _claim(out, f"{MARK}\nMade by: python -m shard phantom OUT --images={images} --seed={seed}\n")
    held = max(8, round(0.2 * images))
    plans = {"train": _plan(seed, images - held, 1, 3), "valid": _plan(seed, held, FIRST_VALID, 1)}
    jobs = [
        (plan[start : start + CHUNK], out, seed, split)
        for split, plan in plans.items()
        for start in range(0, len(plan), CHUNK)
    ]
    for _ in parallel_map(jobs, len(jobs), _draw, images=images, label="drawing", workers=workers or cores()):
        pass
    for split, plan in plans.items():
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(_row(seed, view, split) for patient in plan for view in patient)
        write_bytes(out / f"{split}.csv", text.getvalue().encode())
    print(f"{out}: {images} SYNTHETIC radiographs, {held} of them in valid")
