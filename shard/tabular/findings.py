"""Which columns of a user's own table are findings: those that are named, or those whose cells and names say so."""

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
from shard.tabular.label import read_labels
from shard.tabular.sex import coded_columns
from shard.tabular.words import fold, says_unknown

# What columns of 0 and 1 are called that are no findings: how the images are cut up, who read them, how they were
# taken, who the patient is. Whole names, without blanks, underscores and digits; first words; last words.
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
_JOINED = re.compile("(?:patient|subject|image|study|series|case|sample|scan|exam|record|row|file|site|hospital)"
                     "(?:id|no|nr|number|uid|index|idx|name|date|age|sex)")  # fmt: skip
_SECOND = re.compile(r"(.+)\.\d+")  # Edema.1, as pandas calls a second Edema
_FLAG = "--findings=A,B"


def take_findings(
    raw: pd.DataFrame, others: Collection[str], csv: Path, named: str | None = None, used: Collection[str] = ()
) -> tuple[pd.DataFrame, list[Note]]:
    """The columns of a table that are findings, under their names without blanks around them, and what is to be told.

    others: columns that are something else; used: those that are unless they are named. named: names of columns after
    commas, one with a comma in double quotes.
    Where there is none, those are findings whose every cell is 1, 0, -1 or blank and whose name is a name: not
    Unnamed: 9, Edema.1, fold or notes. Of columns with one name and the same labels the first is taken.
    Raises InputError where a column that is named is not there or has other cells, where columns of one name differ,
    and where a well-known finding has other cells.
    """
    if named is not None:
        return _take_named(raw, others, csv, named, used)
    names: dict[str, str] = {}  # column → the finding's name
    left: dict[str, list[str]] = {"no name": [], "name": [], "cells": [], "repeats": []}
    example = ""
    for column in (name for name in raw.columns if name not in (*others, *used)):
        wrong = read_labels(raw[column])[1]
        if wrong.any() and _is_well_known(column):
            raise _wrong_label(raw, column, csv, wrong)
        if not _has_name(column):
            left["no name"].append(column)
        elif wrong.any():
            left["cells"].append(column)
            example = example or f"{commonest(raw[column][wrong])} in {column}"
        elif first := _earlier(column, names, raw, csv):
            left["repeats"].append(f"{column!r} (is {first!r} again)")
        elif not _says_finding(column):
            left["name"].append(column)
        else:
            names[column] = _tidy(column)
            _check_printable(names[column], csv)
    return raw[list(names)].rename(columns=names), _notes(left, example, list(names.values()))


def _notes(left: dict[str, list[str]], example: str, taken: list[str]) -> list[Note]:
    said = {"no name": "no name", "name": "a name that is no finding's",
            "cells": "other cells than 1, 0, -1 and blank", "repeats": "another's name and labels"}  # fmt: skip
    notes = [Note(f"columns not taken as findings, with {text} ({len(left[why])}): {listed(left[why])}",
                  example if why == "cells" else "")
             for why, text in said.items() if left[why]]  # fmt: skip
    if notes:
        notes.append(Note(f"columns taken as findings ({len(taken)}): {listed(taken) or 'none'}; {_FLAG} names others"))
    return notes


def _take_named(
    raw: pd.DataFrame, others: Collection[str], csv: Path, named: str, used: Collection[str]
) -> tuple[pd.DataFrame, list[Note]]:
    names: dict[str, str] = {}
    columns = [str(column) for column in raw.columns]
    for name in _split(named, columns):
        column = _find(name, columns, csv)
        if column in others:
            raise InputError(f"--findings: {name!r} is the column of {csv} that says the {column}, and no finding; "
                             "leave it out")  # fmt: skip
        if column in names:
            raise InputError(f"--findings: names column {column!r} of {csv} twice; keep one")
        wrong = read_labels(raw[column])[1]
        if wrong.any():
            raise _wrong_label(raw, column, csv, wrong)
        for second in columns:
            found = _SECOND.fullmatch(second)
            if found and found[1] == column:
                _check_same(raw, column, second, csv)
        names[column] = _tidy(column)
        _check_printable(names[column], csv)
    left = [column for column in columns if column not in (*names, *others, *used)]
    notes = [Note(f"columns that --findings does not name are not taken ({len(left)}): {listed(left)}")]
    return raw[list(names)].rename(columns=names), notes if left else []


def _split(named: str, columns: Sequence[str]) -> list[str]:
    """The names in a flag: one that is a column whole, else those between commas."""
    if named.strip() in map(str.strip, columns):
        return [named.strip()]
    names = [name.strip() for name in next(csv_module.reader([named], skipinitialspace=True))]
    if not all(names):
        raise InputError(f"--findings={named}: a name is blank; wants names of columns, as in {_FLAG}")
    return names


def _find(name: str, columns: Sequence[str], csv: Path) -> str:
    """The column of that name: exactly, without blanks around it, or in another spelling that no other column has."""
    for same in (lambda column: column == name, lambda column: _tidy(column) == name,
                 lambda column: _letters(column) == _letters(name)):  # fmt: skip
        found = [column for column in columns if same(column)]
        if len(found) > 1:
            raise InputError(f"--findings: {name!r} may be any of {csv}'s columns {listed(map(repr, found))}; name one "
                             "as it is spelt there, or leave the others out of the table")  # fmt: skip
        if found:
            return found[0]
    closest = difflib.get_close_matches(_letters(name), map(_letters, columns), n=1)
    near = next((column for column in columns if [_letters(column)] == closest), None)
    raise InputError(f"--findings: {csv} has no column {name!r}; " + (f"did you mean {near!r}? " if near else "")
                     + f"It has: {listed(columns, 20)} (a name with a comma in it goes in double quotes)")  # fmt: skip


def _earlier(column: str, names: dict[str, str], raw: pd.DataFrame, csv: Path) -> str | None:
    """The column already taken that has this one's name, in another spelling or as pandas calls a second one."""
    second = _SECOND.fullmatch(column)
    for first in names:
        if _letters(first) == _letters(column) or (second and _letters(second[1]) == _letters(first)):
            _check_same(raw, first, column, csv)
            return first
    return None


def _check_same(raw: pd.DataFrame, first: str, second: str, csv: Path) -> None:
    one, other = (read_labels(raw[column])[0] for column in (first, second))
    differ = ~((one == other) | (one.isna() & other.isna()))
    if differ.any():
        raise InputError(f"{csv}: columns {first!r} and {second!r} have one name, and differ in {differ.sum()} of "
                         f"{len(raw)} rows; rename one of them or leave it out")  # fmt: skip


def _wrong_label(raw: pd.DataFrame, column: str, csv: Path, wrong: pd.Series) -> InputError:
    row = raw[wrong].iloc[0]
    of = f" of {row['path']}" if "path" in raw.columns else ""
    return InputError(f"{csv}: finding {column!r}: label {str(row[column])!r}{of} is not 1, 0, -1 or blank; "
                      f"mend the table, or name the columns that are findings with {_FLAG}")  # fmt: skip


def _check_printable(name: str, csv: Path) -> None:
    if not name.isprintable():
        raise InputError(f"{csv}: column {name!r}: a finding's name wants letters, no line breaks and the like; "
                         "rename it")  # fmt: skip


def _is_well_known(column: str) -> bool:
    return _letters(column) in {_letters(name) for name in (*CHEXPERT_FINDINGS, *NIH_FINDINGS)}


def _has_name(column: str) -> bool:
    name = fold(column)
    return not re.fullmatch(r"unnamed: \d+(?:_level_\d+)?(?:\.\d+)*", name) and not says_unknown(name) and any(
        letter.isalpha() for letter in name)  # fmt: skip


def _says_finding(column: str) -> bool:
    """Whether a name may be a finding's: it is none of the words for other things, and not pandas' Edema.1."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)", " ", column)  # AgeGroup, fold1
    words = [word for word in re.findall(r"[^\W_]+", fold(spaced)) if not word.isdigit()]
    joined = "".join(words)
    return not (_SECOND.fullmatch(column.strip()) or joined in _WHOLE or words[0] in _FIRST or words[-1] in _LAST
                or _JOINED.fullmatch(joined) or coded_columns([column]))  # fmt: skip


def _letters(name: str) -> str:
    """What spellings of one name have in common: Pleural_Effusion, pleural effusion, " Pleural Effusion "."""
    return re.sub(r"[\W_]+", "", fold(name))


def _tidy(column: str) -> str:
    """A column's name without blanks and invisible characters around it."""
    return re.sub(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$", "", column)
