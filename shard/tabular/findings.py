"""Select the findings among the columns of a user's own table: by --findings, or by their cells and names."""

from __future__ import annotations

import csv as csv_module
import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import CHEXPERT_FINDINGS
from shard.formats.nih import NIH_FINDINGS
from shard.note import Note, commonest, listed
from shard.tabular.columns import fold_name
from shard.tabular.label import read_labels
from shard.tabular.sex import coded_columns
from shard.tabular.words import fold, says_unknown

# Names of columns that may contain 0 and 1 but are not findings: partitions, readers, acquisition, the patient.
# Whole names (without blanks, underscores and digits), first words, and last words.
_NOT_FINDINGS = {
    "whole": """unnamed fold folds split subset partition set index idx id row rowid number no nr num order rank seed
        random study series exam examination visit followup session scan slice frame image picture file filename path
        folder weight weights height width bmi size rows columns bits year month day date time datetime age group
        cohort stratum cluster batch chunk part shard site center centre hospital institution clinic ward department
        source dataset database origin scanner machine manufacturer vendor modality reader readers rater raters
        annotator annotators radiologist notes note comment comments remark remarks text report impression history
        indication quality inverted rotation view views projection viewposition laterality side portable lateral
        frontal ap pa appa erect supine version sex gender male female race ethnicity train training istrain intrain
        test testing istest intest valid isvalid val isval validation isvalidation holdout isholdout exclude
        excluded include included keep drop usable corrupt duplicate duplicated checked reviewed verified flag""",
    "first": """n num number count nb id age sex gender view fold split unnamed race ethnicity insurance site hospital
        center centre scanner vendor manufacturer reader rater annotator""",
    "last": """id ids idx index no nr num number uid uuid count counts weight weights group fold folds split set date
        time datetime year years month months age path file filename folder notes note comment comments seed pred preds
        prediction predictions prob probability score scores logit logits confidence hash train
        training validation val remark remarks report text""",
}
_WHOLE, _FIRST, _LAST = ({*words.split()} for words in _NOT_FINDINGS.values())
_COMPOUND = re.compile("(?:patient|subject|image|study|series|case|sample|scan|exam|record|row|file|site|hospital)"
                     "(?:id|no|nr|number|uid|index|idx|name|date|age|sex)")  # fmt: skip
_SECOND = re.compile(r"(.+)\.\d+")  # Edema.1, pandas' name for a second Edema
_FLAG = "--findings=A,B"


def select_findings(
    raw: pd.DataFrame, others: Collection[str], csv: Path, named: str | None = None, used: Collection[str] = ()
) -> tuple[pd.DataFrame, list[Note]]:
    """Return the columns of a table that are findings, with their names stripped of blanks, and notes.

    others: columns that are something else. used: columns that are something else unless they are named. named: column
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
        if wrong.any() and _is_well_known(column):
            raise _wrong_label(raw, column, csv, wrong)
        if not _has_name(column):
            rejected["no name"].append(column)
        elif wrong.any():
            rejected["cells"].append(column)
            example = example or f"{commonest(raw[column][wrong])} in {column}"
        elif first := _find_earlier(column, names, raw, csv):
            rejected["repeats"].append(f"{column!r} (repeats {first!r})")
        elif not _may_be_finding(column):
            rejected["name"].append(column)
        else:
            names[column] = _strip(column)
            _check_printable(names[column], csv)
    return raw[list(names)].rename(columns=names), _note_rejected(rejected, example, list(names.values()))


def _note_rejected(rejected: dict[str, list[str]], example: str, selected: list[str]) -> list[Note]:
    """A note per reason why columns are not findings, and one about the columns that are."""
    reasons = {"no name": "no name", "name": "a name that is not a finding's",
               "cells": "other cells than 1, 0, -1 and blank", "repeats": "another's name and labels"}  # fmt: skip
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
            found = _SECOND.fullmatch(second)
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
            raise InputError(f"--findings: {name!r} may be any of {csv}'s columns {listed(map(repr, found))}; spell "
                             "it as in the table, or remove the others")  # fmt: skip
        if found:
            return found[0]
    closest = difflib.get_close_matches(fold_name(name), map(fold_name, columns), n=1)
    near = next((column for column in columns if [fold_name(column)] == closest), None)
    raise InputError(f"--findings: {csv} has no column {name!r}; " + (f"did you mean {near!r}? " if near else "")
                     + f"It has: {listed(columns, 20)} (put a name with a comma in double quotes)")  # fmt: skip


def _find_earlier(column: str, names: dict[str, str], raw: pd.DataFrame, csv: Path) -> str | None:
    """The earlier finding with the same name, in another spelling or with pandas' suffix of a second column."""
    second = _SECOND.fullmatch(column)
    for first in names:
        if fold_name(first) == fold_name(column) or (second and fold_name(second[1]) == fold_name(first)):
            _check_same(raw, first, column, csv)
            return first
    return None


def _check_same(raw: pd.DataFrame, first: str, second: str, csv: Path) -> None:
    one, other = (read_labels(raw[column])[0] for column in (first, second))
    differ = ~((one == other) | (one.isna() & other.isna()))
    if differ.any():
        raise InputError(f"{csv}: columns {first!r} and {second!r} have one name, but differ in {differ.sum()} of "
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


def _is_well_known(column: str) -> bool:
    return fold_name(column) in {fold_name(name) for name in (*CHEXPERT_FINDINGS, *NIH_FINDINGS)}


def _has_name(column: str) -> bool:
    name = fold(column)
    return not re.fullmatch(r"unnamed: \d+(?:_level_\d+)?(?:\.\d+)*", name) and not says_unknown(name) and any(
        letter.isalpha() for letter in name)  # fmt: skip


def _may_be_finding(column: str) -> bool:
    """Whether a name may be a finding's: it contains no word for something else, and is not pandas' "Edema.1"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)", " ", column)  # AgeGroup, fold1
    words = [word for word in re.findall(r"[^\W_]+", fold(spaced)) if not word.isdigit()]
    joined = "".join(words)
    return not (_SECOND.fullmatch(column.strip()) or joined in _WHOLE or words[0] in _FIRST or words[-1] in _LAST
                or _COMPOUND.fullmatch(joined) or coded_columns([column]))  # fmt: skip


def _strip(column: str) -> str:
    """Strip blanks and invisible characters from a column's name."""
    return re.sub(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$", "", column)
