"""A synthetic archive in CheXpert's layout and of its size: a few radiographs, linked under the names of all images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from shard.errors import InputError
from shard.files import write_bytes
from shard.formats import CHEXPERT_FINDINGS
from shard.phantom.archive import COLUMNS, FIRST_VALID, README_HEADER

ROOT = "CheXpert-v1.0-small"
LEAST_IMAGES = 100
LATERAL = 32_387 / 35_773  # of the second views of CheXpert's training studies
PORTABLE = 0.85  # share of AP among frontal views
# Percentages of positive, negative and uncertain labels, about those of CheXpert's train.csv; all others are blank.
LABELS = {
    "No Finding": (10, 0, 0), "Enlarged Cardiomediastinum": (5, 10, 6), "Cardiomegaly": (12, 5, 4),
    "Lung Opacity": (47, 3, 3), "Lung Lesion": (4, 1, 1), "Edema": (23, 9, 6), "Consolidation": (7, 13, 12),
    "Pneumonia": (3, 1, 8), "Atelectasis": (15, 1, 15), "Pneumothorax": (9, 25, 1), "Pleural Effusion": (39, 16, 5),
    "Pleural Other": (2, 0, 1), "Fracture": (4, 1, 0), "Support Devices": (52, 3, 0),
}  # fmt: skip
# Percentages of positive labels in valid.csv and test.csv, which have neither blank nor uncertain ones; those of the
# findings that a report probes are CheXpert's.
HELD_OUT = {**{name: positive for name, (positive, _, _) in LABELS.items()}, "Cardiomegaly": 29, "Lung Opacity": 54,
            "Pleural Effusion": 29, "Enlarged Cardiomediastinum": 47}  # fmt: skip


class SplitSize(NamedTuple):
    """The numbers of images, studies and patients of a split."""

    images: int
    studies: int
    patients: int


CHEXPERT = {"train": SplitSize(223_414, 187_641, 64_540), "valid": SplitSize(234, 200, 200),
            "test": SplitSize(668, 500, 500)}  # fmt: skip


def split_sizes(images: int) -> dict[str, SplitSize]:
    """Return the size of each split of an archive of `images` images: CheXpert's proportions, but at least 60 images
    (of fewer than 240: a quarter) in valid and test together, so that a small archive can be probed too.
    """
    complete = sum(size.images for size in CHEXPERT.values())
    share = {name: size.images * images / complete for name, size in CHEXPERT.items()}
    held_out = max(round(share["valid"] + share["test"]), min(60, images // 4))
    valid = round(held_out * share["valid"] / (share["valid"] + share["test"]))
    counts = {"train": images - held_out, "valid": valid, "test": held_out - valid}
    return {name: SplitSize(count, round(count * CHEXPERT[name].studies / CHEXPERT[name].images),
                            round(count * CHEXPERT[name].patients / CHEXPERT[name].images))
            for name, count in counts.items()}  # fmt: skip


def sample_table(split: str, size: SplitSize, rng: np.random.Generator) -> pd.DataFrame:
    """Sample the table of a split, with CheXpert's columns. Labels do not depend on the pictures.

    Few patients have many studies, as in CheXpert; all images of a study have the same labels.
    """
    first = {"train": 1, "valid": FIRST_VALID, "test": FIRST_VALID + CHEXPERT["valid"].patients}[split]
    weights = rng.exponential(size=size.patients)
    studies = 1 + rng.multinomial(size.studies - size.patients, weights / weights.sum())
    patient = np.repeat(np.arange(size.patients), studies)  # of each study
    number = 1 + np.arange(size.studies) - np.repeat(np.cumsum(studies) - studies, studies)
    views = np.ones(size.studies, np.int64)
    views[rng.choice(size.studies, size.images - size.studies, replace=False)] = 2
    study = np.repeat(np.arange(size.studies), views)  # of each image
    view = 1 + np.arange(size.images) - np.repeat(np.cumsum(views) - views, views)
    lateral = (view == 2) & (rng.random(size.images) < LATERAL)
    kind = np.where(lateral, "Lateral", "Frontal")
    table = pd.DataFrame({
        "Path": [f"{ROOT}/{split}/patient{first + p:05d}/study{s}/view{v}_{k.lower()}.jpg" for p, s, v, k in
                 zip(patient[study].tolist(), number[study].tolist(), view.tolist(), kind.tolist(), strict=True)],
        "Sex": np.where(rng.random(size.patients) < 0.41, "Female", "Male")[patient[study]],
        "Age": rng.integers(18, 91, size.patients)[patient[study]], "Frontal/Lateral": kind,
        "AP/PA": np.where(lateral, "", np.where(rng.random(size.images) < PORTABLE, "AP", "PA")),
        **{finding: _sample_labels(finding, split, size.studies, rng)[study] for finding in CHEXPERT_FINDINGS},
    })  # fmt: skip
    ordered: pd.DataFrame = table[list(COLUMNS)]
    return ordered


def _sample_labels(finding: str, split: str, count: int, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    if split == "train":
        positive, negative, uncertain = LABELS[finding]
        shares = np.array([positive, negative, uncertain, 100 - positive - negative - uncertain])
    else:
        shares = np.array([HELD_OUT[finding], 100 - HELD_OUT[finding], 0, 0])
    return np.array(["1.0", "0.0", "-1.0", ""])[rng.choice(4, count, p=shares / 100)]


def write_tree(pictures: Path, folder: Path, images: int, seed: int = 0) -> None:
    """Write the archive: hard links to the radiographs of the phantom `pictures` (else copies), then the tables.

    Continues one that was interrupted; does nothing if it is complete. Raises InputError if the folder contains
    anything else.
    """
    readme = (f"{README_HEADER}\nLinks to the radiographs in {pictures.name} under {images} names, with random labels, "
              f"made by: python -m bench.archive --images={images}\n")  # fmt: skip
    if folder.exists() and not ((folder / "README.txt").is_file() and (folder / "README.txt").read_text() == readme):
        raise InputError(f"{folder}: contains something else than the archive of {images} images that --images="
                         f"{images} asks for; name another folder as --out, or remove that one")  # fmt: skip
    sizes = split_sizes(images)
    if all((folder / f"{split}.csv").exists() for split in sizes):
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "README.txt", readme.encode())
    rng = np.random.default_rng(seed)
    tables = {split: sample_table(split, size, rng) for split, size in sizes.items()}
    drawn = {kind: sorted(pictures.glob(f"**/*_{kind}.jpg")) for kind in ("frontal", "lateral")}
    with tqdm(total=images, desc="linking", unit=" images", disable=None) as bar:
        for table in tables.values():
            for number, path in enumerate(table["Path"].tolist()):
                kind = drawn["lateral" if path.endswith("_lateral.jpg") else "frontal"]
                _link(kind[number % len(kind)], folder / path.removeprefix(f"{ROOT}/"))
                bar.update()
    for split, table in tables.items():  # last: the archive is complete when they exist
        write_bytes(folder / f"{split}.csv", table.to_csv(index=False, lineterminator="\n").encode())


def _link(picture: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(picture, target)
    except FileExistsError:  # an interrupted command made it
        return
    except OSError:  # no hard links here, or the file system's largest number of links to a file
        copy = target.with_suffix(".part")
        shutil.copyfile(picture, copy)
        copy.replace(target)
