"""Check the rows of a table before a build."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.dicom import image as dicom
from shard.errors import InputError
from shard.formats import SPLITS
from shard.note import Note, counted
from shard.paths import OUTSIDE
from shard.tabular.ids import NORMALISED


def check_rows(rows: pd.DataFrame, source: Path, notes: list[Note]) -> None:
    """Raise InputError for a blank path or patient, an unknown split, or a patient in more than one split."""
    for name in ("path", "patient"):
        blank = rows[rows[name].str.strip() == ""]
        if len(blank):
            row = f"row {blank.index[0] + 1} of {len(rows)}"
            raise InputError(f"{source}: {name} is blank in {row}; fill it in or remove the row")
    unknown = rows[~rows["split"].isin(SPLITS)]
    if len(unknown):
        split, path = unknown["split"].iloc[0], unknown["path"].iloc[0]
        raise InputError(f"{source}: split {split!r} of {path}: not one of {', '.join(SPLITS)}; correct it")
    splits = rows.groupby("patient")["split"].nunique()
    if len(leaks := splits.index[splits > 1]):
        patients = counted(len(leaks), "such patient", "such patients")
        where = sorted(rows["split"][rows["patient"] == leaks[0]].unique())
        spelt = next((f"; ids are normalised, {note.example}" for note in notes if NORMALISED in note.text), "")
        raise InputError(f"{source}: patient {leaks[0]!r} is in more than one split, {' and '.join(where)} "
                         f"({patients}{spelt}); move all images of a patient into one split")  # fmt: skip


def check_inside(paths: pd.Series, src: Path) -> None:
    """Raise InputError if a path leads out of `src`: a table of unknown origin must not expose other files.

    Links inside `src` are allowed, because its owner created them.
    """
    outside = paths[paths.str.contains(OUTSIDE)]
    if len(outside):
        more = f", and {counted(len(outside) - 1, 'more does', 'more do')}" if len(outside) > 1 else ""
        raise InputError(f"{src}: path {outside.iloc[0]!r} leads out of it{more}; make them "
                         "relative to SRC or, if you trust the table, add --allow-outside=true")  # fmt: skip


def check_usable(rows: pd.DataFrame, src: Path, source: Path, training: bool = True) -> None:
    """Raise InputError if there is nothing to train on, no image is found, or no library reads the DICOM files.

    training: whether anything is to be trained on.
    """
    if training and not (rows["split"] == "train").any():
        raise InputError(f"{source}: no row is in split 'train', so there is nothing to train on; correct the splits")
    if not len(rows):
        raise InputError(f"{source}: every row repeats or contradicts another, so that none is left; correct the table")
    tried = rows["path"].sample(min(200, len(rows)), random_state=0)
    if not any((src / path).exists() for path in tried):
        raise InputError(f"{src / rows['path'].iloc[0]}: no such image; none of the {len(tried)} paths tried exists; "
                         "SRC is the folder that the table's paths are relative to")
    if dicom.any_dicom_suffix(rows["path"]) and not dicom.has_pydicom():
        raise InputError(f"{src}: contains DICOM files; to read them: pip install '.[dicom]'")
