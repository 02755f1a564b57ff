"""A user's own table: a CSV with path, patient and findings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.formats.rows import Rows, hashed_splits, strip_suffixes, text_column
from shard.formats.votes import reader_columns
from shard.note import Note, counted, listed
from shard.paths import normalise_paths
from shard.tabular.columns import AGE, SEX, VIEW
from shard.tabular.csv_file import read_csv
from shard.tabular.findings import select_findings
from shard.tabular.ids import normalise_id
from shard.tabular.label import read_labels
from shard.tabular.sex import with_sex
from shard.tabular.words import fold

COLUMNS = {  # the columns that are not findings → their second names
    "path": ("image_path", "img_path", "file_path", "relative_path", "file_name", "image_name", "image_file", "file"),
    "key": (), "patient": ("patient_id", "subject_id", "subject"), "split": (), "view": VIEW, "sex": SEX, "age": AGE,
}  # fmt: skip
_SPLIT_WORDS = {"", "train", "training", "valid", "val", "validation", "validate", "dev", "test", "testing"}


def read_plain(csv: Path, src: Path, findings: str | None = None) -> Rows:
    """Read a CSV of images in `src` with the columns path, patient and findings.

    Keys come from column key or else from the paths, splits from column split or else from a hash of patients.
    findings: names of columns, separated by commas; see select_findings.
    """
    table, notes = read_csv(csv, ("path", "patient"), COLUMNS, ids=("patient",), own=True)
    raw, labels, column_notes = split_columns(table, csv, findings)
    path, path_notes = normalise_paths(raw["path"], src)
    key = raw["key"] if "key" in raw.columns else strip_suffixes(path)
    if "split" in raw.columns:
        split = text_column(raw, "split").str.strip().str.lower()
    else:
        split = hashed_splits(raw["patient"])
        column_notes += _note_unread_splits(table)
    frame = pd.DataFrame({"path": path, "key": key, "patient": raw["patient"], "split": split,
                          "view": text_column(raw, "view"), "sex": text_column(raw, "sex"),
                          "age": text_column(raw, "age")})  # fmt: skip
    return Rows(tuple(labels.columns), frame.join(labels), (*notes, *column_notes, *path_notes), ((csv, len(table)),))


def split_columns(raw: pd.DataFrame, csv: Path, findings: str | None) -> tuple[pd.DataFrame, pd.DataFrame, list[Note]]:
    """Split a table into the columns named in COLUMNS and its findings, with notes.

    The sex may come from a column such as Male. Repeated rows of one reader are dropped: each reader has one vote.
    """
    known, coded = with_sex(raw)
    notes = [Note(f"sex is read from {listed(coded)}")] if coded else []
    labels, finding_notes = select_findings(raw, COLUMNS, csv, findings, used=coded)
    known = known[[name for name in COLUMNS if name in known.columns]]
    readers = reader_columns(map(str, raw.columns))
    if readers and (repeated := _repeats_reader(known, labels, raw[readers])).any():
        rows = counted(int(repeated.sum()), "row repeats a row of the same reader and is",
                       "rows repeat a row of the same reader and are")  # fmt: skip
        notes.append(Note(f"{csv.name}: {rows} skipped"))
        known, labels = known[~repeated], labels[~repeated]
    return known, labels, [*notes, *finding_notes]


def _repeats_reader(known: pd.DataFrame, labels: pd.DataFrame, readers: pd.DataFrame) -> pd.Series:
    """Whether each row repeats an earlier row of the same reader, possibly in another spelling."""
    values = labels.apply(lambda cells: read_labels(cells)[0])
    names = readers.apply(lambda cells: cells.astype("str").map(normalise_id))
    repeated: pd.Series = pd.concat([known, values, names], axis=1).duplicated()
    return repeated


def _note_unread_splits(table: pd.DataFrame) -> list[Note]:
    """A note about columns that seem to contain the splits of a table without a column split."""
    likely = [name for name in map(str, table.columns) if name not in COLUMNS
              and fold("train") in (cells := {fold(cell) for cell in table[name].astype("str").unique()})
              and cells <= _SPLIT_WORDS]  # fmt: skip
    return [Note(f"no column split: splits are by a hash of patients, and {listed(likely)} is not read; rename it to "
                 "split if it contains them")] if likely else []  # fmt: skip
