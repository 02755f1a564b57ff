"""What every format returns, and helpers that several formats share.

Cells are the text of the table, blank as "": shard.table checks them and turns labels into numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from shard.errors import InputError
from shard.note import Note
from shard.tabular.csv_file import has_columns, tables_in
from shard.tabular.ids import one_form

SPLITS = ("train", "valid", "test")
ENDING = r"(?i)\.(?:jpe?g|png|tiff?|dcm|dicom|bmp|jp2|webp|gif|pgm)$"


class Rows(NamedTuple):
    """What a format reads: the frame, which of its columns are findings, what a build should say of the table, and
    which tables were read, each with its number of rows."""

    findings: tuple[str, ...]
    frame: pd.DataFrame
    notes: tuple[Note, ...] = ()
    tables: tuple[tuple[Path, int], ...] = ()


class Format(NamedTuple):
    """A format of folders: its name in --dataset, whether a folder holds it, and how that is read."""

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Rows]


def hashed_splits(patient: pd.Series) -> pd.Series:
    """60 % of patients to train, 20 % to valid, 20 % to test, by a hash of the patient alone.

    Independent of the seed and of the other rows, so that a patient never changes sides when a table grows; and of how
    the id is written, see shard.tabular.ids.
    """
    def split(name: str) -> str:
        place = int.from_bytes(hashlib.sha256(one_form(name).encode()).digest()[:8], "big") / 2**64
        return "train" if place < 0.6 else "valid" if place < 0.8 else "test"

    return patient.map({name: split(name) for name in patient.unique()})


def find_one(src: Path, pattern: str, columns: tuple[str, ...] = ()) -> Path:
    """The file of that name or else, where columns are given, the table that has them; a name that says what is wanted
    where there is none."""
    found = sorted(src.glob(pattern))
    if not found and columns:
        found = [table for table in tables_in(src) if has_columns(table, *columns)]
    if len(found) > 1:
        raise InputError(f"{src}: has {' and '.join(file.name for file in found)}; which one is it? Keep one there")
    return found[0] if found else src / pattern


def column(raw: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, or blanks if the table has no such column."""
    # A column that one of several joined tables lacks holds NaN, which is no text.
    return raw[name].astype("str").fillna("") if name in raw.columns else pd.Series("", index=raw.index)
