"""Read a data set's folder into one checked table: unique images, no patient in two splits, labels as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from shard.conflicts import Reject, reject_conflicts
from shard.errors import InputError
from shard.files import sha256_of
from shard.formats import (
    FORMATS,
    FolderFormat,
    Rows,
    TableFormat,
    Votes,
    has_readers,
    read_archive,
    read_folder,
    read_plain,
    recognise,
    recognise_table,
    vote_rows,
)  # fmt: skip
from shard.key import make_key
from shard.note import Note
from shard.table_checks import check_inside, check_rows, check_usable
from shard.tabular.demographics import note_unknown_patients, read_demographics
from shard.tabular.ids import normalise_ids
from shard.tabular.label import read_labels

DATASETS = ("auto", *FORMATS, "csv", "folder")  # the choices of --dataset
if TYPE_CHECKING:
    Dataset = str
else:  # shard.cli reads the choices from the type
    Dataset = Literal[DATASETS]


@dataclass(frozen=True)
class Table:
    """The images of a data set.

    rows: a frame with key, path (relative to the source), patient, split, view (one of shard.tabular.view.VIEWS or
    blank), sex (F, M or blank), age (years or blank), and one column per finding: 1 present, 0 absent, -1 uncertain,
    NaN not mentioned. rejects: rows of the CSV that can't be used. notes: facts that the build prints. tables: name,
    sha256 and number of rows of each table file that was read.
    """

    dataset: str
    findings: tuple[str, ...]
    rows: pd.DataFrame
    rejects: tuple[Reject, ...]
    notes: tuple[Note, ...] = ()
    tables: tuple[dict[str, Any], ...] = ()


def read_table(
    src: Path, dataset: Dataset = "auto", table: Path | None = None, allow_outside: bool = False,
    patient_from: str | None = None, workers: int = 0, findings: str | None = None,
    votes: Votes | None = None, training: bool = True,
) -> Table:  # fmt: skip
    """Read and check the table of the data set in folder `src`.

    Rows that repeat an earlier row are rejected. If rows share a key but differ, all of them are rejected.
    allow_outside: accept paths that lead out of `src`. patient_from, workers: see read_folder. findings: the columns of
    `table` that are findings, see select_findings. votes: how several rows of labels for one image are combined, see
    vote; None combines by majority if a column names the reader. training: whether a row must be in split train.
    Raises InputError if the folder, a column, a label, a split or a path can't be used, or a patient is in two splits.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; SRC is the folder that contains the images and their CSV")
    name = dataset if dataset != "auto" else (recognise_table(table) or "csv") if table else recognise(src)
    _check_flags(name, table, patient_from, findings, votes)
    read = _read(name, src, table, patient_from, workers, findings, votes, training)
    source = table or src
    rows, notes = _normalise(read, source)
    notes = [*read.notes, *notes]
    check_rows(rows, source, notes)
    if not allow_outside and name != "folder":  # the paths of a folder were found inside it
        check_inside(rows["path"], src)
    rows, rejects, reject_notes = reject_conflicts(rows, read.findings)
    check_usable(rows, src, source, training)
    return Table(name, read.findings, rows, tuple(rejects), (*notes, *reject_notes),
                 tuple({"name": file.name, "sha256": sha256_of(file), "rows": count} for file, count in read.tables))


def _read(
    name: str, src: Path, table: Path | None, patient_from: str | None, workers: int, findings: str | None,
    votes: Votes | None, training: bool,
) -> Rows:  # fmt: skip
    """Read the rows in the format `name`, with the readers of a user's own table combined."""
    if name == "csv":
        assert table is not None
        read = read_plain(table, src, findings)
    elif name == "folder":
        read = read_folder(src, patient_from, table, workers, findings, training)
    else:
        return read_archive(name, src, table, votes or "majority", workers)
    if table and (votes or has_readers(table)):
        read = vote_rows(read, table, votes or "majority")
    if name == "folder":  # its table may repeat a row
        read = read._replace(frame=read.frame.drop_duplicates(ignore_index=True))
    return read


def _check_flags(
    name: str, table: Path | None, patient_from: str | None, findings: str | None, votes: Votes | None
) -> None:
    """Raise InputError if a flag does not apply to the data set."""
    own = name in ("csv", "folder")
    if name == "csv" and table is None:
        raise InputError("--dataset=csv: requires --table=PATH, a CSV with the columns path, patient, optionally "
                         "split, and findings")  # fmt: skip
    if table is not None and isinstance(FORMATS.get(name), FolderFormat):
        raise InputError(f"--table={table}: not supported by --dataset={name}; use --dataset=csv or folder")
    if name != "folder" and patient_from is not None:
        raise InputError(f"--patient-from={patient_from}: only applies to --dataset=folder, not to {name}, whose table "
                         "names the patients")  # fmt: skip
    if findings is not None and (table is None or not own):
        raise InputError(f"--findings={findings}: only applies to --table=PATH, not to --dataset={name}; omit it")
    voting = [other for other, known in FORMATS.items() if isinstance(known, TableFormat) and "votes" in known.options]
    if votes is not None and not own and name not in voting:
        raise InputError(f"--votes={votes}: only applies to {', '.join(voting)} and to your own table, not to "
                         f"{name}, which has one row of labels per image; omit it")  # fmt: skip


def _normalise(read: Rows, source: Path) -> tuple[pd.DataFrame, list[Note]]:
    """Normalise keys, patients, demographics and labels of `read.frame` in place, to save memory."""
    rows = read.frame
    notes = list[Note]()
    rows["key"] = rows["key"].map(make_key)
    rows["patient"], id_notes = normalise_ids(rows["patient"].astype("str"), "patient")
    notes += id_notes
    notes += note_unknown_patients(rows["patient"])
    notes += read_demographics(rows)
    for finding in read.findings:
        values, wrong = read_labels(rows[finding])
        if wrong.any():
            value, path = rows[finding][wrong].iloc[0], rows["path"][wrong].iloc[0]
            raise InputError(f"{source}: finding {finding!r}: label {str(value)!r} of {path} is not 1, 0, -1 or blank; "
                             "correct the table or omit the column")  # fmt: skip
        rows[finding] = values
    return rows, notes
