"""Labels of some of a folder's images: a table joined to them by path or by key."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.plain import KNOWN, NOT_FINDINGS, divide
from shard.formats.rows import ENDING, Rows, column, hashed_splits
from shard.key import make_key
from shard.note import Note
from shard.tabular.csv_file import read_csv
from shard.tabular.ids import one_form


def join_labels(images: pd.DataFrame, src: Path, csv: Path, findings: str | None = None) -> Rows:
    """The images (path, key, patient, view, sex, age, date) with the findings of a table, blank where it has no row.

    A row is of the image that its column path names, relative to `src`, with or without its ending; without such a
    column, of the one that its column key names: by its key in the shards, or its file's name without ending where
    only one has it. Where the table says patient, split, view, sex or age, it counts; a split counts for all images
    of the patient. findings: see take_findings. Raises InputError where it has neither column, or most of its rows
    name no image.
    """
    table, notes = read_csv(csv, (), KNOWN, ids=("patient",), own=True)
    raw, labels, told = divide(table, csv, findings)
    by = next((name for name in ("path", "key") if name in raw.columns), None)
    if by is None:
        raise InputError(f"{csv}: has neither a column path nor a column key, which would say of which image under "
                         f"{src} a row is; it has: {', '.join([*raw.columns, *labels.columns][:20])}")  # fmt: skip
    named = column(raw, by).str.strip()
    places = named.map(_by_path(images, src) if by == "path" else _by_key(images))
    lost = places.isna()
    if 2 * lost.sum() > len(raw):
        raise InputError(f"{csv}: {lost.sum()} of {len(raw)} rows name no image under {src}, such as {by} "
                         f"{named[lost].iloc[0]!r} (an image there: {images[by].iloc[0]!r}); "
                         "mend its paths or keys")  # fmt: skip
    given = raw[~lost].drop(columns=[name for name in ("path", "key") if name in raw.columns])
    given = given.rename(columns={name: f"given {name}" for name in NOT_FINDINGS}).join(labels)
    given = given.assign(place=places[~lost].astype(int))
    frame = images.join(given.set_index("place"))
    for name in ("patient", "view", "sex", "age"):
        said = _given(frame, name)
        said = said.map(one_form) if name == "patient" else said
        frame[name] = frame[name].where(said == "", said)
    frame["split"] = _splits(frame)
    frame = frame.drop(columns=[name for name in frame.columns if str(name).startswith("given ")])
    with_row = places[~lost].nunique()
    notes.append(Note(f"{with_row} of {len(images)} images have a row in {csv.name}, the others no labels"))
    if lost.any():
        notes.append(Note(f"{lost.sum()} of {len(raw)} rows of {csv.name} name no image", named[lost].iloc[0]))
    return Rows(tuple(labels.columns), frame.reset_index(drop=True), (*notes, *told), ((csv, len(table)),))


def _given(frame: pd.DataFrame, name: str) -> pd.Series:
    """What the table says, blank where it does not."""
    said = column(frame, f"given {name}").fillna("").str.strip()
    blanked: pd.Series = said.where(~said.isin(("nan", "NaN", "NA")), "")
    return blanked


def _splits(frame: pd.DataFrame) -> pd.Series:
    """The split that the table gives, also to a patient's other images; by a hash where it gives none."""
    said = _given(frame, "split")
    of_patient = dict(zip(frame["patient"][said != ""], said[said != ""], strict=True))
    others = [of_patient.get(patient, split) for patient, split in
              zip(frame["patient"], hashed_splits(frame["patient"]), strict=True)]  # fmt: skip
    splits: pd.Series = said.where(said != "", pd.Series(others, index=said.index))
    return splits


def _by_path(images: pd.DataFrame, src: Path) -> Callable[[str], int | None]:
    """Which image a path names: relative to `src`, or within it, with or without its ending."""
    places = _unique(re.sub(ENDING, "", path) for path in images["path"])
    places.update({path: place for place, path in enumerate(images["path"])})
    home = f"{src.resolve().as_posix()}/"

    def find(path: str) -> int | None:
        slashed = path.replace("\\", "/")
        tidy = posixpath.normpath(slashed.removeprefix(home).removeprefix(f"{src.as_posix()}/"))
        return places.get(path, places.get(tidy))

    return find


def _by_key(images: pd.DataFrame) -> Callable[[str], int | None]:
    """Which image a key names: its key in the shards, its path without ending, or the name of its file."""
    names = [path.rpartition("/")[2] for path in images["path"]]
    places = _unique(names)
    places.update(_unique(re.sub(ENDING, "", name) for name in names))
    places.update({key: place for place, key in enumerate(images["key"])})
    places.update({make_key(key): place for place, key in enumerate(images["key"])})
    return places.get


def _unique(names: Iterable[str]) -> dict[str, int]:
    """The place of each name that only one image has."""
    places: dict[str, int] = {}
    twice = set[str]()
    for place, name in enumerate(names):
        if places.setdefault(name, place) != place:
            twice.add(name)
    return {name: place for name, place in places.items() if name not in twice}
