"""A table of one's own: a CSV with path, patient and findings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.formats.rows import ENDING, Rows, column, hashed_splits
from shard.note import Note, counted, listed
from shard.paths import in_one_spelling
from shard.tabular.columns import AGE, SEX, VIEW
from shard.tabular.csv_file import read_csv
from shard.tabular.findings import take_findings
from shard.tabular.ids import one_form
from shard.tabular.label import read_labels
from shard.tabular.sex import with_sex
from shard.tabular.votes import reader_columns
from shard.tabular.words import fold

KNOWN = {
    "path": ("image_path", "img_path", "file_path", "relative_path", "file_name", "image_name", "image_file", "file"),
    "key": (), "patient": ("patient_id", "subject_id", "subject"), "split": (), "view": VIEW, "sex": SEX, "age": AGE,
}  # fmt: skip
NOT_FINDINGS = tuple(KNOWN)
_SPLIT_WORDS = {"", "train", "training", "valid", "val", "validation", "validate", "dev", "test", "testing"}


def read_plain(csv: Path, src: Path, findings: str | None = None) -> Rows:
    """A plain CSV of images in `src`: path, patient, findings; key, else made of path; split, else by patient hash.

    findings: names of columns after commas; where there is none, take_findings says which are.
    """
    table, notes = read_csv(csv, ("path", "patient"), KNOWN, ids=("patient",), own=True)
    raw, labels, told = divide(table, csv, findings)
    path, spelt = in_one_spelling(raw["path"], src)
    key = raw["key"] if "key" in raw.columns else path.str.replace(ENDING, "", regex=True)
    split = column(raw, "split").str.strip().str.lower() if "split" in raw.columns else hashed_splits(raw["patient"])
    told += _say_splits(table) if "split" not in raw.columns else []
    frame = pd.DataFrame({"path": path, "key": key, "patient": raw["patient"], "split": split,
                          "view": column(raw, "view"), "sex": column(raw, "sex"),
                          "age": column(raw, "age")})  # fmt: skip
    return Rows(tuple(labels.columns), frame.join(labels), (*notes, *told, *spelt), ((csv, len(table)),))


def _repeats(known: pd.DataFrame, labels: pd.DataFrame, readers: pd.DataFrame) -> pd.Series:
    """Which rows say what an earlier one of the same reader says, in other spelling perhaps."""
    values = labels.apply(lambda cells: read_labels(cells)[0])
    names = readers.apply(lambda cells: cells.astype("str").map(one_form))
    again: pd.Series = pd.concat([known, values, names], axis=1).duplicated()
    return again


def _say_splits(table: pd.DataFrame) -> list[Note]:
    """A note of columns that seem to hold the splits of a table without a column split."""
    likely = [name for name in map(str, table.columns) if name not in NOT_FINDINGS
              and fold("train") in (cells := {fold(cell) for cell in table[name].astype("str").unique()})
              and cells <= _SPLIT_WORDS]  # fmt: skip
    return [Note(f"no column split: splits are by a hash of patients, and {listed(likely)} is not read; rename it to "
                 "split if it says them")] if likely else []  # fmt: skip


def divide(raw: pd.DataFrame, csv: Path, findings: str | None) -> tuple[pd.DataFrame, pd.DataFrame, list[Note]]:
    """A table's columns NOT_FINDINGS, as far as it has them, and its findings; sex may come from a column Male. Rows
    that repeat a row of the same reader are left out: each has one vote."""
    known, coded = with_sex(raw)
    notes = [Note(f"sex is read from {listed(coded)}")] if coded else []
    labels, told = take_findings(raw, NOT_FINDINGS, csv, findings, used=coded)
    known = known[[name for name in NOT_FINDINGS if name in known.columns]]
    readers = reader_columns(map(str, raw.columns))
    if readers and (again := _repeats(known, labels, raw[readers])).any():
        reader = "a row of the same reader, and"
        rows = counted(int(again.sum()), f"row repeats {reader} is", f"rows repeat {reader} are")
        notes.append(Note(f"{csv.name}: {rows} left out"))
        known, labels = known[~again], labels[~again]
    return known, labels, [*notes, *told]
