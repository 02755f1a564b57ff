"""Select the findings among the columns of a user's own table: by --findings, or by their cells and names."""

from __future__ import annotations

import csv as csv_module
import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.note import Note, commonest, listed
from shard.tabular.columns import fold_name
from shard.tabular.finding_names import SECOND, has_name, is_well_known, may_be_finding
from shard.tabular.label import read_labels

_FLAG = "--findings=A,B"


def select_findings(
    raw: pd.DataFrame, others: Collection[str], csv: Path, named: str | None = None, used: Collection[str] = ()
) -> tuple[pd.DataFrame, list[Note]]:
    """Return the columns of a table that are findings, with their names stripped of blanks, and notes.

    others: columns that are not findings. used: columns that are findings only if they are named. named: column
    names, separated by commas; a name with a comma is in double quotes. If None, findings are the columns whose cells
    are all 1, 0, -1 or blank and whose name may be a finding's: not "Unnamed: 9", "Edema.1", "fold" or "notes". Of
    columns with equal names and labels, the first is a finding.
    Raises InputError if a named column is missing, a named column or well-known finding has other cells, or columns
    with equal names differ.
    """
    if named is not None:
        return _select_named(raw, others, csv, named, used)
    names: dict[str, str] = {}  # column → the finding's name
    rejected: dict[str, list[str]] = {"no name": [], "name": [], "cells": [], "repeats": []}
    example = ""
    for column in (name for name in raw.columns if name not in (*others, *used)):
        wrong = read_labels(raw[column])[1]
        if wrong.any() and is_well_known(column):
            raise _wrong_label(raw, column, csv, wrong)
        if not has_name(column):
            rejected["no name"].append(column)
        elif wrong.any():
            rejected["cells"].append(column)
            example = example or f"{commonest(raw[column][wrong])} in {column}"
        elif first := _find_earlier(column, names, raw, csv):
            rejected["repeats"].append(f"{column!r} (repeats {first!r})")
        elif not may_be_finding(column):
            rejected["name"].append(column)
        else:
            names[column] = _strip(column)
            _check_printable(names[column], csv)
    return raw[list(names)].rename(columns=names), _note_rejected(rejected, example, list(names.values()))


def _note_rejected(rejected: dict[str, list[str]], example: str, selected: list[str]) -> list[Note]:
    """A note per reason why columns are not findings, and one about the columns that are."""
    reasons = {"no name": "no name", "name": "a name that is not a finding's",
               "cells": "cells other than 1, 0, -1 and blank", "repeats": "the name and labels of another"}  # fmt: skip
    notes = [Note(f"columns not read as findings, with {text} ({len(rejected[why])}): {listed(rejected[why])}",
                  example if why == "cells" else "")
             for why, text in reasons.items() if rejected[why]]  # fmt: skip
    if notes:
        notes.append(Note(f"columns read as findings ({len(selected)}): {listed(selected) or 'none'}; {_FLAG} selects "
                          "others"))  # fmt: skip
    return notes


def _select_named(
    raw: pd.DataFrame, others: Collection[str], csv: Path, named: str, used: Collection[str]
) -> tuple[pd.DataFrame, list[Note]]:
    names: dict[str, str] = {}
    columns = [str(column) for column in raw.columns]
    for name in _split_names(named, columns):
        column = _find_column(name, columns, csv)
        if column in others:
            raise InputError(f"--findings: {name!r} is the column of {csv} for the {column}, not a finding; omit it")
        if column in names:
            raise InputError(f"--findings: names column {column!r} of {csv} twice; keep one")
        wrong = read_labels(raw[column])[1]
        if wrong.any():
            raise _wrong_label(raw, column, csv, wrong)
        for second in columns:
            found = SECOND.fullmatch(second)
            if found and found[1] == column:
                _check_same(raw, column, second, csv)
        names[column] = _strip(column)
        _check_printable(names[column], csv)
    unread = [column for column in columns if column not in (*names, *others, *used)]
    notes = [Note(f"columns that --findings does not name are not read ({len(unread)}): {listed(unread)}")]
    return raw[list(names)].rename(columns=names), notes if unread else []


def _split_names(named: str, columns: Sequence[str]) -> list[str]:
    """Split --findings at its commas, unless all of it is the name of one column."""
    if named.strip() in map(str.strip, columns):
        return [named.strip()]
    names = [name.strip() for name in next(csv_module.reader([named], skipinitialspace=True))]
    if not all(names):
        raise InputError(f"--findings={named}: a name is blank; give names of columns, as in {_FLAG}")
    return names


def _find_column(name: str, columns: Sequence[str], csv: Path) -> str:
    """The column with a name: exactly, stripped of blanks, or in another spelling that no other column has."""
    for same in (lambda column: column == name, lambda column: _strip(column) == name,
                 lambda column: fold_name(column) == fold_name(name)):  # fmt: skip
        found = [column for column in columns if same(column)]
        if len(found) > 1:
            raise InputError(f"--findings: {name!r} is ambiguous: it matches the columns "
                             f"{listed(map(repr, found))} of {csv}; spell it as in the table, or remove the others")
        if found:
            return found[0]
    closest = difflib.get_close_matches(fold_name(name), map(fold_name, columns), n=1)
    near = next((column for column in columns if [fold_name(column)] == closest), None)
    raise InputError(f"--findings: {csv} has no column {name!r}; " + (f"did you mean {near!r}? " if near else "")
                     + f"It has: {listed(columns, 20)} (put a name with a comma in double quotes)")  # fmt: skip


def _find_earlier(column: str, names: dict[str, str], raw: pd.DataFrame, csv: Path) -> str | None:
    """The earlier finding with the same name, in another spelling or with pandas' suffix of a second column."""
    second = SECOND.fullmatch(column)
    for first in names:
        if fold_name(first) == fold_name(column) or (second and fold_name(second[1]) == fold_name(first)):
            _check_same(raw, first, column, csv)
            return first
    return None


def _check_same(raw: pd.DataFrame, first: str, second: str, csv: Path) -> None:
    one, other = (read_labels(raw[column])[0] for column in (first, second))
    differ = ~((one == other) | (one.isna() & other.isna()))
    if differ.any():
        raise InputError(f"{csv}: columns {first!r} and {second!r} have the same name, but differ in {differ.sum()} of "
                         f"{len(raw)} rows; rename one of them or remove it")  # fmt: skip


def _wrong_label(raw: pd.DataFrame, column: str, csv: Path, wrong: pd.Series) -> InputError:
    row = raw[wrong].iloc[0]
    of = f" of {row['path']}" if "path" in raw.columns else ""
    return InputError(f"{csv}: finding {column!r}: label {str(row[column])!r}{of} is not 1, 0, -1 or blank; "
                      f"correct the table, or name the columns that are findings with {_FLAG}")  # fmt: skip


def _check_printable(name: str, csv: Path) -> None:
    if not name.isprintable():
        raise InputError(f"{csv}: column {name!r}: the name of a finding must be printable, without line "
                         "breaks; rename it")  # fmt: skip


def _strip(column: str) -> str:
    """Strip blanks and invisible characters from a column's name."""
    return re.sub(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$", "", column)
