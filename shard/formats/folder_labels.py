"""Labels of some of a folder's images: join a table to them by path or by key."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.plain import COLUMNS, split_columns
from shard.formats.rows import Rows, hashed_splits, strip_suffix, text_column
from shard.key import make_key
from shard.note import Note
from shard.tabular.csv_file import read_csv
from shard.tabular.ids import normalise_id
from shard.tabular.join import is_majority


def join_labels(images: pd.DataFrame, src: Path, csv: Path, findings: str | None = None) -> Rows:
    """Join the findings of a table to the images (path, key, patient, view, sex, age, date).

    Rows are matched by column path (relative to `src`, with or without suffix) or, failing that, by column key (the key
    in the shards, or a file name that only one image has, with or without suffix). Images without a row have blank
    findings. The table's patient, split, view, sex and age take precedence; its split applies to all images of a
    patient. findings: see select_findings.
    Raises InputError if the table has neither column, or most of its rows match no image.
    """
    table, notes = read_csv(csv, (), COLUMNS, ids=("patient",), own=True)
    raw, labels, column_notes = split_columns(table, csv, findings)
    by = next((name for name in ("path", "key") if name in raw.columns), None)
    if by is None:
        raise InputError(f"{csv}: has neither a column path nor a column key to match its rows with the images under "
                         f"{src}; it has: {', '.join([*raw.columns, *labels.columns][:20])}")  # fmt: skip
    names = text_column(raw, by).str.strip()
    matches = names.map(_match_path(images, src) if by == "path" else _match_key(images))
    lost = matches.isna()
    if is_majority(int(lost.sum()), len(raw)):
        raise InputError(f"{csv}: {lost.sum()} of {len(raw)} rows match no image under {src}, such as {by} "
                         f"{names[lost].iloc[0]!r} (an image there: {images[by].iloc[0]!r}); "
                         "correct its paths or keys")  # fmt: skip
    given = raw[~lost].drop(columns=[name for name in ("path", "key") if name in raw.columns])
    given = given.rename(columns={name: f"given {name}" for name in COLUMNS}).join(labels)
    given = given.assign(image=matches[~lost].astype(int))
    frame = images.join(given.set_index("image"))
    for name in ("patient", "view", "sex", "age"):
        cells = _given(frame, name)
        cells = cells.map(normalise_id) if name == "patient" else cells
        frame[name] = frame[name].where(cells == "", cells)
    frame["split"] = _choose_splits(frame)
    frame = frame.drop(columns=[name for name in frame.columns if str(name).startswith("given ")])
    with_row = matches[~lost].nunique()
    notes.append(Note(f"{with_row} of {len(images)} images have a row in {csv.name}, the others have no labels"))
    if lost.any():
        notes.append(Note(f"{lost.sum()} of {len(raw)} rows of {csv.name} match no image", names[lost].iloc[0]))
    return Rows(tuple(labels.columns), frame.reset_index(drop=True), (*notes, *column_notes), ((csv, len(table)),))


def _given(frame: pd.DataFrame, name: str) -> pd.Series:
    """The table's cells of a column, blank for images without one."""
    cells = text_column(frame, f"given {name}").fillna("").str.strip()
    blanked: pd.Series = cells.where(~cells.isin(("nan", "NaN", "NA")), "")
    return blanked


def _choose_splits(frame: pd.DataFrame) -> pd.Series:
    """The table's splits, extended to the patient's other images, or else splits by a hash of patients."""
    given = _given(frame, "split")
    by_patient = dict(zip(frame["patient"][given != ""], given[given != ""], strict=True))
    others = [by_patient.get(patient, split) for patient, split in
              zip(frame["patient"], hashed_splits(frame["patient"]), strict=True)]  # fmt: skip
    splits: pd.Series = given.where(given != "", pd.Series(others, index=given.index))
    return splits


def _match_path(images: pd.DataFrame, src: Path) -> Callable[[str], int | None]:
    """Return a function from a path, relative or absolute, with or without suffix, to the index of its image."""
    index_of = _index_unique(map(strip_suffix, images["path"]))
    index_of.update({path: index for index, path in enumerate(images["path"])})
    home = f"{src.resolve().as_posix()}/"

    def find(path: str) -> int | None:
        slashed = path.replace("\\", "/")
        tidy = posixpath.normpath(slashed.removeprefix(home).removeprefix(f"{src.as_posix()}/"))
        return index_of.get(path, index_of.get(tidy))

    return find


def _match_key(images: pd.DataFrame) -> Callable[[str], int | None]:
    """Return a function from a key, a path without suffix or a file name to the index of its image."""
    names = [path.rpartition("/")[2] for path in images["path"]]
    index_of = _index_unique(names)
    index_of.update(_index_unique(map(strip_suffix, names)))
    index_of.update({key: index for index, key in enumerate(images["key"])})
    index_of.update({make_key(key): index for index, key in enumerate(images["key"])})
    return index_of.get


def _index_unique(names: Iterable[str]) -> dict[str, int]:
    """The index of each name that occurs once."""
    index_of: dict[str, int] = {}
    repeated = set[str]()
    for index, name in enumerate(names):
        if index_of.setdefault(name, index) != index:
            repeated.add(name)
    return {name: index for name, index in index_of.items() if name not in repeated}
