"""Read a CSV as text in any common encoding and dialect. Refuse a truncated file and one without a required column."""

from __future__ import annotations

import csv as csv_module
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pandas as pd
from pandas.api.types import union_categoricals

from shard.errors import InputError
from shard.note import Note, counted
from shard.tabular import columns
from shard.tabular.columns import ColumnNames
from shard.tabular.dialect import Dialect, sniff
from shard.tabular.ids import normalise_ids
from shard.tabular.text_file import open_text

_UNIQUE = ("key",)  # optional columns whose cells differ row by row
_BLANKS = "".join(map(chr, (*range(33), 0x85, 0xA0, 0x200B, 0x2028, 0x2029, 0x202F, 0x3000, 0xFEFF)))
_BLOCK = 1 << 15  # rows parsed at a time


def read_csv(
    csv: Path, required: tuple[str, ...], optional: ColumnNames | None = None, ids: tuple[str, ...] = (),
    own: bool = False, only: bool = False,
) -> tuple[pd.DataFrame, list[Note]]:  # fmt: skip
    """Read the cells of a CSV as text, with notes. Blank cells are "", 007 stays 007, and NA may be a name.

    required: columns that must exist, returned as dtype str and stripped of blanks; other columns are categories.
    optional: other known columns, and second names of all. Known columns are renamed to the known name. ids: columns
    whose cells are ids, which are normalised. Rows without any cell are dropped. own: the table is the user's own, so
    it can be corrected. only: read the required and optional columns alone; others may be gigabytes of reports.
    Raises InputError if the file is missing, is not a table or has no rows, two columns match one name, or a required
    column is missing.
    """
    cure = "correct it" if own else (f"replace it with the original file, or pass your own table: --dataset=csv "
                                     f"--table={csv}")  # fmt: skip
    known = {**dict.fromkeys(required, ()), **(optional or {})}
    try:
        dialect = sniff(csv)
        blank = _check_rows(csv, dialect, cure)
        names, renamed = _name_columns(csv, dialect, known)
        _check_columns(csv, dialect, names, required, cure="" if own else cure)
        names = columns.unique_names(names)
        used = [name for name in names if not only or name in known]
        frame, id_notes = _read_cells(csv, dialect, names, used, required, ids)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file; the data set's table is expected there") from None
    except (ValueError, OSError, EOFError, zlib.error, csv_module.Error) as error:  # pandas' own are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{csv}: not a readable CSV ({reason}); {cure}") from None
    notes = []
    if dialect.encoding != "utf-8-sig" or dialect.separator != ",":
        notes.append(Note(f"{csv.name}: {dialect}"))
    if blank:
        filled = pd.concat([frame[name].astype("str").str.strip() != "" for name in frame], axis=1)
        frame = frame[filled.any(axis=1)].reset_index(drop=True)
        notes.append(Note(f"{csv.name}: {counted(blank, 'blank row', 'blank rows')} skipped"))
    if frame.empty:
        raise InputError(f"{csv}: no rows below the header; {cure}")
    return frame, notes + renamed + id_notes


def _name_columns(csv: Path, dialect: Dialect, known: ColumnNames) -> tuple[list[str], list[Note]]:
    """The name of each column, known names replaced, with a note for each replacement by another word."""
    indices = columns.match_columns(csv, dialect.header, known)
    names = columns.unique_names(dialect.header)
    notes = list[Note]()
    for name, index in indices.items():
        names[index] = name
        if columns.fold_name(dialect.header[index]) != columns.fold_name(name):
            notes.append(Note(f"{csv.name}: column {dialect.header[index].strip()} read as {name}"))
    return names, notes


def _check_columns(csv: Path, dialect: Dialect, names: list[str], required: tuple[str, ...], cure: str) -> None:
    """Raise InputError if a required column is missing. cure: blank for a user's own table, which can be corrected."""
    own_cure = ("save it with commas between its cells" if len(dialect.header) == 1
                else "rename the column that contains it")  # fmt: skip
    for name in required:
        if name not in names:
            raise InputError(f"{csv}: column {name!r} is missing; it has: {', '.join(dialect.header[:20])} "
                             f"({dialect}); {cure or own_cure}")  # fmt: skip


def _read_cells(
    csv: Path, dialect: Dialect, names: list[str], used: list[str], required: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Note]]:  # fmt: skip
    with open_text(csv, dialect.encoding) as file:
        reader = csv_module.reader(file, delimiter=dialect.separator)
        for _ in range(dialect.skip + 1):
            next(reader, None)
        try:
            blocks = pd.read_csv(file, sep=dialect.separator, header=None, names=names, usecols=used, dtype="str",
                                 index_col=False, keep_default_na=False, na_filter=False, chunksize=_BLOCK)  # fmt: skip
            frame = _concat_blocks(blocks, (*required, *_UNIQUE, *ids))
        except pd.errors.EmptyDataError:  # nothing below the header
            return pd.DataFrame(columns=used), []
    notes = list[Note]()
    for name in dict.fromkeys((*required, *(column for column in ids if column in names))):
        if name in ids:
            frame[name], id_notes = normalise_ids(frame[name], name)
            notes += [note._replace(text=f"{csv.name}: {note.text}") for note in id_notes]
        else:
            frame[name] = frame[name].str.strip(_BLANKS)
    return frame, notes


def _concat_blocks(blocks: Iterable[pd.DataFrame], texts: tuple[str, ...]) -> pd.DataFrame:
    """Concatenate blocks, with all columns but `texts` as categories: a table then takes megabytes, not gigabytes.

    pandas' own dtype="category" would turn 007 into 7.
    """
    kept = [block.astype({name: "category" for name in block.columns if name not in texts}) for block in blocks]
    frame: pd.DataFrame = pd.DataFrame({
        name: pd.concat([block[name] for block in kept], ignore_index=True) if name in texts
        else union_categoricals([block[name] for block in kept]) for name in kept[0].columns
    })  # fmt: skip
    return frame


def _check_rows(csv: Path, dialect: Dialect, cure: str) -> int:
    """Count the rows without any cell. Raises InputError if a row's length differs from the header's.

    pandas silently pads a truncated row.
    """
    blank = 0
    with open_text(csv, dialect.encoding) as file:
        rows = csv_module.reader(file, delimiter=dialect.separator)
        for number, row in enumerate(islice(rows, dialect.skip + 1, None), 1):
            if row and len(row) != len(dialect.header):
                raise InputError(f"{csv}: row {number} has {len(row)} cells, the header {len(dialect.header)} "
                                 f"({dialect}); {cure}")  # fmt: skip
            blank += bool(row) and not any(map(str.strip, row))
    return blank
