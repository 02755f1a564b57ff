"""The result of every format, and helpers that several formats share.

Cells are the text of the table, blank as "". shard.table checks them and turns labels into numbers.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from shard.errors import InputError
from shard.note import Note
from shard.tabular.dialect import has_columns, tables_in
from shard.tabular.ids import normalise_id

SPLITS = ("train", "valid", "test")
IMAGE_SUFFIX = r"(?i)\.(?:jpe?g|png|tiff?|dcm|dicom|bmp|jp2|webp|gif|pgm)$"


class Rows(NamedTuple):
    """The result of reading a data set in some format.

    findings: the columns of `frame` that are findings. notes: facts that the build prints. tables: each table file that
    was read, with its number of rows.
    """

    findings: tuple[str, ...]
    frame: pd.DataFrame
    notes: tuple[Note, ...] = ()
    tables: tuple[tuple[Path, int], ...] = ()


def hashed_splits(patient: pd.Series) -> pd.Series:
    """Assign 60 % of patients to train, 20 % to valid and 20 % to test, by a hash of the patient alone.

    A patient's split depends neither on the seed nor on other rows, so it never changes when a table grows. Nor does it
    depend on how the id is written, see shard.tabular.ids.
    """
    def split(name: str) -> str:
        fraction = int.from_bytes(hashlib.sha256(normalise_id(name).encode()).digest()[:8], "big") / 2**64
        return "train" if fraction < 0.6 else "valid" if fraction < 0.8 else "test"

    return patient.map({name: split(name) for name in patient.unique()})


def find_file(src: Path, pattern: str, columns: tuple[str, ...] = ()) -> Path:
    """Find the one file that matches a glob pattern or, failing that, the one table that has the given columns.

    Returns the pattern itself as a path if there is none. Raises InputError if there are several.
    """
    found = sorted(src.glob(pattern))
    if not found and columns:
        found = [table for table in tables_in(src) if has_columns(table, *columns)]
    if len(found) > 1:
        raise InputError(f"{src}: contains {' and '.join(file.name for file in found)}; keep only one of them")
    return found[0] if found else src / pattern


def text_column(raw: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as text, or blanks if the table lacks it."""
    # A column that only some of several joined tables have contains NaN.
    if name not in raw.columns:
        return pd.Series("", index=raw.index)
    text: pd.Series = raw[name].astype("object").fillna("").astype("str")
    return text


def strip_suffix(path: str) -> str:
    """Remove the suffix of an image file, such as .jpg or .dcm."""
    return re.sub(IMAGE_SUFFIX, "", path)


def strip_suffixes(paths: pd.Series) -> pd.Series:
    """Remove the suffix of each image file, such as .jpg or .dcm."""
    return paths.str.replace(IMAGE_SUFFIX, "", regex=True)
