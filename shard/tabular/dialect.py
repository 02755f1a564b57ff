"""Detect how a CSV is written: its encoding, separator and header."""

from __future__ import annotations

import csv as csv_module
import io
import re
import zlib
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from shard.errors import InputError
from shard.tabular import columns
from shard.tabular.text_file import detect_encoding, encoding_name, open_text

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_HEAD = 1 << 18  # characters that determine the separator
_HEAD_ROWS = 50  # rows that determine the separator


class Dialect(NamedTuple):
    """How a CSV is written: its encoding, separator, number of lines above the header, and header."""

    encoding: str
    separator: str
    skip: int
    header: list[str]

    def __str__(self) -> str:
        separator = SEPARATORS.get(self.separator, repr(self.separator))
        return f"read as {encoding_name(self.encoding)}, separated by {separator}"


def sniff(csv: Path, head_only: bool = False) -> Dialect:
    """Determine how a CSV is written. head_only: detect the encoding from the start of the file alone.

    The separator is the one that splits the header, and the first rows into as many cells as the header; if several do,
    the comma. Raises InputError, ValueError, OSError or csv.Error if the file can't be read.
    """
    encoding = detect_encoding(csv, head_only)
    with open_text(csv, encoding, errors="replace") as file:
        text = file.read(_HEAD)
    if not text.strip():
        raise ValueError("it is empty")
    if declared := re.match("\ufeff?(?i:sep)=(.)[\r\n]", text):  # Excel's declaration of the separator
        return Dialect(encoding, declared[1], 1, _first_rows(text, declared[1], 1, 1)[0])
    above = re.match(r"\ufeff?((?:[ \t]*(?:\r\n|\r|\n))*)", text)
    skip = len(above[1].splitlines()) if above else 0  # blank lines above the header
    headers = {separator: _first_rows(text, separator, skip, 1)[0] for separator in SEPARATORS}
    candidates = [separator for separator, header in headers.items() if len(header) > 1] or [","]
    if len(candidates) > 1:
        complete = len(text) < _HEAD
        even = [separator for separator in candidates
                if _is_even(_first_rows(text, separator, skip, _HEAD_ROWS), complete)]  # fmt: skip
        candidates = even or candidates
    separator = "," if "," in candidates else candidates[0]
    return Dialect(encoding, separator, skip, headers[separator])


def _first_rows(text: str, separator: str, skip: int, count: int) -> list[list[str]]:
    reader = csv_module.reader(io.StringIO(text, newline=""), delimiter=separator)
    return list(islice(reader, skip, skip + count)) or [[]]


def _is_even(rows: list[list[str]], complete: bool) -> bool:
    """Whether all rows have the same number of cells. If the text is not complete, the last row may be truncated."""
    checked = rows if complete or len(rows) == _HEAD_ROWS else rows[:-1]
    return len({len(row) for row in checked if row}) == 1


def read_header(csv: Path) -> list[str]:
    """Return the column names of a table; none if the file can't be read as a table."""
    try:
        state = csv.stat()
        return list(_read_header(csv, state.st_mtime_ns, state.st_size))
    except (InputError, OSError, EOFError, ValueError, zlib.error, csv_module.Error):
        return []


@lru_cache(maxsize=4096)  # every format checks every table
def _read_header(csv: Path, mtime_ns: int, size: int) -> tuple[str, ...]:
    return tuple(sniff(csv, head_only=True).header)


def has_columns(csv: Path, *names: str) -> bool:
    """Whether a file is a table with all these columns, in any spelling."""
    return columns.header_has(read_header(csv), *names)


def tables_in(folder: Path) -> list[Path]:
    """List the CSV and TSV files of a folder, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES) and file.is_file())
