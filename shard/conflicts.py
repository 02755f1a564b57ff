"""Find rows of a table that contradict each other: rows with one key, and files of two patients."""

from __future__ import annotations

import pandas as pd

from shard.note import Note, counted

Reject = tuple[str, str, str]  # key, path, reason
SAME_KEY = "rows have this key and differ in"


def reject_conflicts(
    rows: pd.DataFrame, findings: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Reject], list[Note]]:
    """Split the rows into usable rows and rejects, with notes.

    A usable row is the first of its kind, and no other row has its key, or its file under another patient.
    """
    repeats = rows.duplicated()
    repeated = zip(rows["key"][repeats], rows["path"][repeats], strict=True)
    rejects: list[Reject] = [(key, path, "repeats an earlier row") for key, path in repeated]
    rows = rows[~repeats]
    shared = rows["key"].duplicated(keep=False)
    readers = list[str]()  # images whose rows differ in labels alone
    for key, clash in rows[shared].groupby("key"):
        differing = [name for name in rows.columns if clash[name].nunique(dropna=False) > 1]
        reason = f"{len(clash)} {SAME_KEY} {', '.join(differing)}"
        rejects += [(str(key), path, reason) for path in clash["path"]]
        readers += [clash["path"].iloc[0]] if set(differing) <= set(findings) else []
    notes = []
    if readers:
        images = counted(len(readers), "image has", "images have")
        notes = [Note(f"{images} several rows that differ in their labels alone: all rejected; if they are from "
                      "several readers, combine them with --votes=majority, any or all", readers[0])]  # fmt: skip
    rows = rows[~shared]
    contested = _rows_of_contested_files(rows)
    rows = rows.drop(contested.index)
    notes += _note_files_with_several_keys(rows, findings)
    for path, clash in contested.groupby("path"):
        rejects += [(key, str(path), f"{len(clash)} rows have this file and differ in patient") for key in clash["key"]]
    return rows, rejects, notes


def _note_files_with_several_keys(rows: pd.DataFrame, findings: tuple[str, ...]) -> list[Note]:
    """A note about files that occur under several keys with different labels."""
    again = rows[rows["path"].duplicated(keep=False)]
    once = again.drop_duplicates(["path", *findings])
    differ = once["path"][once["path"].duplicated()].unique()
    if not len(differ):
        return []
    files = counted(len(differ), "file is", "files are")
    return [Note(f"{files} in several rows that differ in key and labels; all are kept", min(differ))]


def _rows_of_contested_files(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose file belongs to another patient in another row."""
    again = rows[rows["path"].duplicated(keep=False)]
    contested: pd.DataFrame = again[again.groupby("path")["patient"].transform("nunique") > 1]
    return contested
