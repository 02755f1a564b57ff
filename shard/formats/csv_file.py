"""Read a CSV as the text it holds, and refuse one that is cut short or lacks a column."""

from __future__ import annotations

import csv as csv_module
import gzip
import zlib
from collections import defaultdict
from pathlib import Path

import pandas as pd

from shard.errors import InputError

UNLIKE = ("key",)  # beside those wanted, columns whose cells differ row by row


def read_csv(csv: Path, wanted: tuple[str, ...], any_case: tuple[str, ...] = ()) -> pd.DataFrame:
    """A CSV's cells as the text they are, blank as "": patient 007 is not 7, and NA may be a name.

    The columns `wanted` are of dtype str and without blanks around them, the others categories. any_case: columns that
    may be called so in capitals too. Raises InputError where there is no such file, table, row, or column of those
    `wanted`, or one of any_case is there twice.
    """
    try:
        names = {name: name.strip().lower() for name in _read_header(csv) if name.strip().lower() in any_case}
        # Few words, often repeated, are kept once: the table of an archive takes megabytes, not gigabytes.
        own = [name for name in names if names[name] in (*wanted, *UNLIKE)]
        kinds = defaultdict(lambda: "category", dict.fromkeys((*wanted, *UNLIKE, *own), "str"))
        frame: pd.DataFrame = pd.read_csv(csv, dtype=kinds, keep_default_na=False, index_col=False)
        frame = frame.rename(columns=names)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file; the data set's table is wanted there") from None
    except (ValueError, OSError, EOFError, zlib.error, csv_module.Error) as error:  # pandas' own are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{csv}: not a readable CSV ({reason}); replace it by the original") from None
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        shown = " and ".join(name for name in names if names[name] == twice[0])
        raise InputError(f"{csv}: columns {shown} are both its {twice[0]}; leave one out")
    for column in wanted:
        if column not in frame.columns:
            raise InputError(f"{csv}: column {column!r} is missing; it has: {', '.join(map(str, frame.columns[:20]))}")
        frame[column] = frame[column].str.strip()  # "1" and " 1" are one patient, who must not be in two splits
    if frame.empty:
        raise InputError(f"{csv}: no rows below the header; replace it by the original")
    return frame


def _read_header(csv: Path) -> list[str]:
    """The names of the columns. Every row must have as many cells: pandas fills up one cut short, and says nothing."""
    with (gzip.open if csv.suffix == ".gz" else open)(csv, "rt", encoding="utf-8-sig", newline="") as file:
        rows = csv_module.reader(file)
        header = next(rows, [])
        for number, row in enumerate(rows, 1):
            if row and len(row) != len(header):
                raise InputError(f"{csv}: row {number} has {len(row)} cells, the header {len(header)}; "
                                 "replace it by the original")
    return header
