"""A data set's folder → one tidy, checked table: every image once, its patient in one split, its labels as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from shard.dicom import image as dicom
from shard.errors import InputError
from shard.files import sha256_of
from shard.formats import (
    ARCHIVES,
    FOLDERS,
    SPLITS,
    Rows,
    Votes,
    archive_of,
    has_readers,
    read_archive,
    read_folder,
    read_plain,
    recognise,
    vote_rows,
)  # fmt: skip
from shard.key import make_key
from shard.note import Note, counted
from shard.paths import OUTSIDE
from shard.tabular.demographics import read_demographics, say_nobody
from shard.tabular.ids import FOLDED, in_one_form
from shard.tabular.label import read_labels

Dataset = Literal["auto", "chexpert", "chexpert-plus", "chexlocalize", "nih", "mimic", "padchest", "vindr", "rsna",
                  "brax", "csv", "folder"]  # fmt: skip
Reject = tuple[str, str, str]  # key, path, reason
SAME_KEY = "rows have this key and differ in"


@dataclass(frozen=True)
class Table:
    """The images of a data set.

    rows: a frame with key, path (relative to the source), patient, split, view (one of shard.tabular.view.VIEWS
                                                                                 or blank),
    sex (F, M or blank), age (years or blank), and a column a finding: 1 present, 0 absent, -1 uncertain, NaN not
    mentioned. rejects: rows of the CSV that can't be used. notes: what a build says of the table. tables: name, sha256
    and rows of each that was read.
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
    votes: Votes | None = None,
) -> Table:  # fmt: skip
    """Read the table of the data set in folder `src`, checked: unique keys, known splits and labels, no leak, no path
    that leaves the folder but where allow_outside lets it.

    Rows that repeat another are rejected; where rows share a key but differ, all of them are. patient_from, workers:
    see read_folder. findings: which columns of `table` are findings, see take_findings. votes: how several
    rows of labels of one image become one, see vote; None is by majority, where a column says who the reader was.
    Raises InputError, naming file, value and cure, where the folder, a column, a label or a split can't be used.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; SRC is the folder that holds the images and their CSV")
    name = dataset if dataset != "auto" else (archive_of(table) or "csv") if table else recognise(src)
    _check_flags(name, table, patient_from, findings, votes)
    if name == "csv":
        assert table is not None
        read = read_plain(table, src, findings)
    elif name == "folder":
        read = read_folder(src, patient_from, table, workers, findings)
    elif name in (archive.name for archive in ARCHIVES):
        read = read_archive(name, src, table, votes or "majority", workers)
    else:
        (known,) = (folder for folder in FOLDERS if folder.name == name)
        read = known.read(src)
    if table and name in ("csv", "folder") and (votes or has_readers(table)):
        read = vote_rows(read, table, votes or "majority")
    if name == "folder":  # of which a table may say one thing twice
        read = read._replace(frame=read.frame.drop_duplicates(ignore_index=True))
    source = table or src
    rows, notes = _tidy(read, source)
    notes = [*read.notes, *notes]
    _check(rows, source, notes)
    if not allow_outside and name != "folder":  # whose paths are those that were found
        _check_inside(rows["path"], src)
    rows, rejects, told = _set_aside(rows, read.findings)
    _check_usable(rows, src, source)
    return Table(name, read.findings, rows, tuple(rejects), (*notes, *told),
                 tuple({"name": file.name, "sha256": sha256_of(file), "rows": count} for file, count in read.tables))


def _check_flags(
    name: str, table: Path | None, patient_from: str | None, findings: str | None, votes: Votes | None
) -> None:
    """Raise InputError where a flag does not go with the data set."""
    if name == "csv" and table is None:
        raise InputError("--dataset=csv: wants --table=PATH, a CSV with the columns path, patient, maybe split, and "
                         "findings")  # fmt: skip
    if name in (folder.name for folder in FOLDERS) and table is not None:
        raise InputError(f"--table={table}: goes with --dataset=csv or folder, not with {name}")
    if name != "folder" and patient_from is not None:
        raise InputError(f"--patient-from={patient_from}: goes with --dataset=folder, not with {name}, whose table "
                         "says whose an image is")  # fmt: skip
    if findings is not None and (table is None or name not in ("csv", "folder")):
        raise InputError(f"--findings={findings}: names columns of a table of your own, --table=PATH, not of {name}; "
                         "leave it out")  # fmt: skip
    if votes is not None and name not in ("csv", "folder", "vindr"):
        raise InputError(f"--votes={votes}: goes with vindr and with a table of your own, not with {name}, which has "
                         "one row of labels an image; leave it out")  # fmt: skip


def _tidy(read: Rows, source: Path) -> tuple[pd.DataFrame, list[Note]]:
    """The frame itself, changed: keys that tars and indexes can hold, labels as numbers; and what is to be said."""
    rows = read.frame  # its only reference: an archive's table is not held twice
    notes = list[Note]()
    rows["key"] = rows["key"].map(make_key)
    rows["patient"], told = in_one_form(rows["patient"].astype("str"), "patient")
    notes += told
    notes += say_nobody(rows["patient"])
    notes += read_demographics(rows)
    for finding in read.findings:
        values, wrong = read_labels(rows[finding])
        if wrong.any():
            value, path = rows[finding][wrong].iloc[0], rows["path"][wrong].iloc[0]
            raise InputError(f"{source}: finding {finding!r}: label {str(value)!r} of {path} is not 1, 0, -1 or blank; "
                             "mend the table or leave the column out")  # fmt: skip
        rows[finding] = values
    return rows, notes


def _check(rows: pd.DataFrame, source: Path, notes: list[Note]) -> None:
    for name in ("path", "patient"):
        blank = rows[rows[name].str.strip() == ""]
        if len(blank):
            row = f"row {blank.index[0] + 1} of {len(rows)}"
            raise InputError(f"{source}: {name} is blank in {row}; fill it in or leave the row out")
    unknown = rows[~rows["split"].isin(SPLITS)]
    if len(unknown):
        split, path = unknown["split"].iloc[0], unknown["path"].iloc[0]
        raise InputError(f"{source}: split {split!r} of {path}: not one of {', '.join(SPLITS)}; mend it")
    splits = rows.groupby("patient")["split"].nunique()
    if len(leaks := splits.index[splits > 1]):
        patients = counted(len(leaks), "such patient", "such patients")
        where = sorted(rows["split"][rows["patient"] == leaks[0]].unique())
        spelt = next((f"; ids are compared in one form, {note.example}" for note in notes if FOLDED in note.text), "")
        raise InputError(f"{source}: patient {leaks[0]!r} is in more than one split, {' and '.join(where)} "
                         f"({patients}{spelt}); move all of a patient's images to one")  # fmt: skip


def _check_inside(paths: pd.Series, src: Path) -> None:
    """A table from elsewhere is not to have this machine's other files read. Links in `src` are its owner's affair."""
    outside = paths[paths.str.contains(OUTSIDE)]
    if len(outside):
        more = f", and {counted(len(outside) - 1, 'more does', 'more do')}" if len(outside) > 1 else ""
        raise InputError(f"{src}: path {outside.iloc[0]!r} leads out of it{more}; make them "
                         "relative to SRC or, where you trust the table, add --allow-outside=true")  # fmt: skip


def _set_aside(
    rows: pd.DataFrame, findings: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Reject], list[Note]]:
    """The rows whose key is theirs alone, and whose file is of one patient; the others as rejects; and which of those
    may be of several readers."""
    repeats = rows.duplicated()
    rejects = [(key, path, "repeats an earlier row") for key, path in _names(rows[repeats])]
    rows = rows[~repeats]
    shared = rows["key"].duplicated(keep=False)
    readers = list[str]()
    for key, clash in rows[shared].groupby("key"):
        differing = [name for name in rows.columns if clash[name].nunique(dropna=False) > 1]
        reason = f"{len(clash)} {SAME_KEY} {', '.join(differing)}"
        rejects += [(str(key), path, reason) for path in clash["path"]]
        readers += [clash["path"].iloc[0]] if set(differing) <= set(findings) else []
    notes = []
    if readers:
        images = counted(len(readers), "image has", "images have")
        notes = [Note(f"{images} several rows that differ in their labels alone: all rejected; where those are several "
                      "readers', --votes=majority, any or all makes one of them", readers[0])]  # fmt: skip
    contested = _of_two_patients(rows[~shared])
    notes += _say_other_keys(rows[~shared].drop(contested.index), findings)
    for path, clash in contested.groupby("path"):
        rejects += [(key, str(path), f"{len(clash)} rows have this file and differ in patient") for key in clash["key"]]
    return rows[~shared].drop(contested.index), rejects, notes


def _say_other_keys(rows: pd.DataFrame, findings: tuple[str, ...]) -> list[Note]:
    """A note of files that are in several rows under keys of their own, with other labels in each."""
    again = rows[rows["path"].duplicated(keep=False)]
    once = again.drop_duplicates(["path", *findings])
    differ = once["path"][once["path"].duplicated()].unique()
    if not len(differ):
        return []
    files = counted(len(differ), "file is", "files are")
    return [Note(f"{files} in several rows that differ in key and labels; all are kept", min(differ))]


def _of_two_patients(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose file is that of another row, of another patient."""
    again = rows[rows["path"].duplicated(keep=False)]
    contested: pd.DataFrame = again[again.groupby("path")["patient"].transform("nunique") > 1]
    return contested


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["key"], rows["path"], strict=True))


def _check_usable(rows: pd.DataFrame, src: Path, source: Path) -> None:
    if not (rows["split"] == "train").any():
        raise InputError(f"{source}: no row is in split 'train': there would be nothing to train on; mend the splits")
    tried = rows["path"].sample(min(200, len(rows)), random_state=0)
    if not any((src / path).exists() for path in tried):
        raise InputError(f"{src / rows['path'].iloc[0]}: no such image, nor any of {len(tried)} rows tried; "
                         "SRC is the folder that the table's paths start from")
    if dicom.any_dicom_suffix(rows["path"]) and not dicom.has_pydicom():
        raise InputError(f"{src}: holds DICOM files; to read them: pip install '.[dicom]'")
