"""Read a CSV as the text it holds, whatever its encoding and separator; refuse one cut short or without a column."""

from __future__ import annotations

import csv as csv_module
import io
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from pandas.api.types import union_categoricals

from shard.errors import InputError
from shard.note import Note, counted
from shard.tabular import columns
from shard.tabular.columns import ColumnNames
from shard.tabular.ids import in_one_form
from shard.tabular.text_file import encoding_of, name_of, open_text

UNLIKE = ("key",)  # beside those wanted, columns whose cells differ row by row
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_EDGES = "".join(map(chr, (*range(33), 0x85, 0xA0, 0x200B, 0x2028, 0x2029, 0x202F, 0x3000, 0xFEFF)))
_TRIED = 50  # rows that tell a separator
_BLOCK = 1 << 15  # rows parsed at a time


class Form(NamedTuple):
    """How a CSV is written: its encoding, its separator, lines before the header, and the header."""

    encoding: str
    separator: str
    skip: int
    header: list[str]

    def __str__(self) -> str:
        separator = SEPARATORS.get(self.separator, repr(self.separator))
        return f"read as {name_of(self.encoding)}, separated by {separator}"


def read_csv(
    csv: Path, wanted: tuple[str, ...], known: ColumnNames | None = None, ids: tuple[str, ...] = (), own: bool = False,
    only: bool = False,
) -> tuple[pd.DataFrame, list[Note]]:  # fmt: skip
    """A CSV's cells as the text they are, blank as "": patient 007 is not 7, and NA may be a name. And what a build
    should say of the file.

    wanted: columns that must be there; they are of dtype str and without blanks around their cells, the others are
    categories. known: other columns that are looked for, and second names of all. Columns found bear the name looked
    for, whatever the file calls them; the others keep theirs. ids: columns that hold ids, which are brought into one
    form. Rows without a cell are left out. own: the table is the user's own, and there is no original
    to replace it by. only: no other columns than those, of which there may be many, and reports of gigabytes.
    Raises InputError where there is no such file, table or row, two columns are one, or one of those wanted is missing.
    """
    cure = "mend it" if own else f"replace it by the original, or name a table of your own: --dataset=csv --table={csv}"
    known = {**dict.fromkeys(wanted, ()), **(known or {})}
    try:
        form = form_of(csv)
        blank = _check_rows(csv, form, cure)
        places = columns.match(csv, form.header, known)
        names = columns.unique(form.header)
        renamed = [Note(f"{csv.name}: column {form.header[place].strip()} read as {name}")
                   for name, place in places.items()
                   if columns.fold(form.header[place]) != columns.fold(name)]  # fmt: skip
        for name, place in places.items():
            names[place] = name
        for name in wanted:
            if name not in places:
                raise InputError(f"{csv}: column {name!r} is missing; it has: {', '.join(form.header[:20])} ({form}); "
                                 + (_rename(form) if own else cure))  # fmt: skip
        names = columns.unique(names)
        taken = [name for name in names if not only or name in known]
        frame, told = _read_cells(csv, form, names, taken, wanted, ids)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file; the data set's table is wanted there") from None
    except (ValueError, OSError, EOFError, zlib.error, csv_module.Error) as error:  # pandas' own are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{csv}: not a readable CSV ({reason}); {cure}") from None
    notes = []
    if form.encoding != "utf-8-sig" or form.separator != ",":
        notes.append(Note(f"{csv.name}: {form}"))
    if blank:
        filled = pd.concat([frame[name].astype("str").str.strip() != "" for name in frame], axis=1)
        frame = frame[filled.any(axis=1)].reset_index(drop=True)
        notes.append(Note(f"{csv.name}: {counted(blank, 'row', 'rows')} without a cell left out"))
    if frame.empty:
        raise InputError(f"{csv}: no rows below the header; {cure}")
    return frame, notes + renamed + told


def _rename(form: Form) -> str:
    """What to do about a column that a user's own table lacks."""
    if len(form.header) == 1:
        return "save it with commas between its cells"
    return "rename the one that holds it"


def _read_cells(
    csv: Path, form: Form, names: list[str], taken: list[str], wanted: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Note]]:  # fmt: skip
    with open_text(csv, form.encoding) as file:
        reader = csv_module.reader(file, delimiter=form.separator)
        for _ in range(form.skip + 1):
            next(reader, None)
        try:
            blocks = pd.read_csv(file, sep=form.separator, header=None, names=names, usecols=taken, dtype="str",
                                 index_col=False, keep_default_na=False, na_filter=False, chunksize=_BLOCK)  # fmt: skip
            frame = _join_blocks(blocks, (*wanted, *UNLIKE, *ids))
        except pd.errors.EmptyDataError:  # nothing below the header
            return pd.DataFrame(columns=taken), []
    notes = list[Note]()
    for name in dict.fromkeys((*wanted, *(column for column in ids if column in names))):
        if name in ids:
            frame[name], told = in_one_form(frame[name], name)
            notes += [note._replace(text=f"{csv.name}: {note.text}") for note in told]
        else:
            frame[name] = frame[name].str.strip(_EDGES)
    return frame, notes


def _join_blocks(blocks: Iterable[pd.DataFrame], unlike: tuple[str, ...]) -> pd.DataFrame:
    """One frame of all blocks; of columns that are not `unlike`, few words often repeated, each word is kept once: the
    table of an archive takes megabytes, not gigabytes. (pandas' own dtype="category" makes a 7 of 007.)"""
    kept = [block.astype({name: "category" for name in block.columns if name not in unlike}) for block in blocks]
    frame: pd.DataFrame = pd.DataFrame({
        name: pd.concat([block[name] for block in kept], ignore_index=True) if name in unlike
        else union_categoricals([block[name] for block in kept]) for name in kept[0].columns
    })  # fmt: skip
    return frame


def form_of(csv: Path, head_only: bool = False) -> Form:
    """How a CSV is written. head_only: judged by its beginning.

    The separator is the one that cuts the header, and under which the first rows have as many cells as it; commas,
    where there are several. Raises InputError, OSError and csv.Error where it can't be read.
    """
    encoding = encoding_of(csv, head_only)
    with open_text(csv, encoding, errors="replace") as file:
        text = file.read(1 << 18)
    if not text.strip():
        raise ValueError("it is empty")
    if said := re.match("\ufeff?(?i:sep)=(.)[\r\n]", text):  # as Excel writes it, for itself
        return Form(encoding, said[1], 1, _first_rows(text, said[1], 1, 1)[0])
    lines = re.match(r"\ufeff?((?:[ \t]*(?:\r\n|\r|\n))*)", text)
    blank = len(lines[1].splitlines()) if lines else 0  # above the header
    cut = {mark: _first_rows(text, mark, blank, 1)[0] for mark in SEPARATORS}
    marks = [mark for mark, header in cut.items() if len(header) > 1] or [","]
    if len(marks) > 1:
        whole = len(text) < 1 << 18
        even = [mark for mark in marks if _is_even(_first_rows(text, mark, blank, _TRIED), whole)]
        marks = even or marks
    mark = "," if "," in marks else marks[0]
    return Form(encoding, mark, blank, cut[mark])


def _first_rows(text: str, mark: str, skip: int, count: int) -> list[list[str]]:
    reader = csv_module.reader(io.StringIO(text, newline=""), delimiter=mark)
    return list(islice(reader, skip, skip + count)) or [[]]


def _is_even(rows: list[list[str]], whole: bool) -> bool:
    """Whether all rows have as many cells; the last may be cut short where the text is not whole."""
    checked = rows if whole or len(rows) == _TRIED else rows[:-1]
    return len({len(row) for row in checked if row}) == 1


def header_of(csv: Path) -> list[str]:
    """The names of a table's columns; none where it can't be read as one."""
    try:
        state = csv.stat()
        return list(_header(csv, state.st_mtime_ns, state.st_size))
    except (InputError, OSError, EOFError, ValueError, zlib.error, csv_module.Error):
        return []


@lru_cache(maxsize=4096)  # every format looks at every table
def _header(csv: Path, mtime_ns: int, size: int) -> tuple[str, ...]:
    return tuple(form_of(csv, head_only=True).header)


def has_columns(csv: Path, *names: str) -> bool:
    """Whether a file is a table with all these columns, in any spelling."""
    return columns.has(header_of(csv), *names)


def tables_in(folder: Path) -> list[Path]:
    """The CSV and TSV files of a folder, by name."""
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(ENDINGS) and file.is_file())


def _check_rows(csv: Path, form: Form, cure: str) -> int:
    """How many rows have no cell. Every row must have as many as the header: pandas fills up one cut short, and says
    nothing."""
    blank = 0
    with open_text(csv, form.encoding) as file:
        rows = csv_module.reader(file, delimiter=form.separator)
        for number, row in enumerate(islice(rows, form.skip + 1, None), 1):
            if row and len(row) != len(form.header):
                raise InputError(f"{csv}: row {number} has {len(row)} cells, the header {len(form.header)} ({form}); "
                                 f"{cure}")  # fmt: skip
            blank += bool(row) and not any(map(str.strip, row))
    return blank
