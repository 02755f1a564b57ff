"""Combine the labels of several readers of one image by vote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from shard.errors import InputError
from shard.formats.rows import Rows
from shard.note import Note
from shard.tabular.columns import fold_name
from shard.tabular.demographics import READERS
from shard.tabular.dialect import read_header
from shard.tabular.label import read_labels

Votes = Literal["majority", "any", "all"]
_READERS = {"rad", "radid", "radiologist", "radiologistid", "reader", "readerid", "rater", "raterid", "annotator",
            "annotatorid"}  # fmt: skip


def vote(labels: pd.DataFrame, image: pd.Series, votes: Votes) -> tuple[pd.DataFrame, list[Note]]:
    """Combine rows of readers into one row per image, indexed by image in order of first occurrence.

    labels: 1, 0, -1 or NaN, one column per finding. image: the image of each row. NaN does not vote. "majority" is the
    label of more than half of the votes, or uncertain (-1) if no label has so many, as in a tie. "any" is 1 if one vote
    is 1, else -1 if one is -1, else 0. "all" is 1 if all votes are 1, 0 if one is 0, else -1. Without votes it is NaN.
    Returns a note with the number of labels that readers disagree on.
    """
    grouped = labels.groupby(image.to_numpy(), sort=False)
    given = grouped.count()
    ones, zeros = ((labels == value).groupby(image.to_numpy(), sort=False).sum() for value in (1, 0))
    if votes == "majority":
        voted = np.select([given == 0, 2 * ones > given, 2 * zeros > given], [np.nan, 1, 0], -1)
    elif votes == "any":
        voted = np.select([given == 0, ones > 0, zeros == given], [np.nan, 1, 0], -1)
    else:
        voted = np.select([given == 0, ones == given, zeros > 0], [np.nan, 1, 0], -1)
    result = pd.DataFrame(voted, index=given.index, columns=labels.columns)
    return result, _note_disagreement(labels, grouped.size(), given, (ones, zeros), result, votes)


def vote_rows(read: Rows, csv: Path, votes: Votes) -> Rows:
    """Combine the rows of a user's own table that differ in labels alone into one row per image."""
    others = [name for name in read.frame.columns if name not in read.findings]
    identity = read.frame[others].copy()
    for name in set(READERS).intersection(others):  # 57 and 57.0 are one age
        values = READERS[name](identity[name].astype("str").unique())
        identity[name] = identity[name].astype("str").map(
            lambda text, of=values: text if of[text] is None else of[text])  # fmt: skip
    combined = read.frame[~identity.duplicated()].reset_index(drop=True)
    if not read.findings:
        return read._replace(frame=combined)
    image = identity.astype("str").agg("\0".join, axis=1)
    voted, notes = vote(labels_as_numbers(csv, read.frame[list(read.findings)], read.frame["path"]), image, votes)
    notes = [note._replace(example=note.example and note.example.split("\0")[others.index("path")]) for note in notes]
    combined[list(read.findings)] = voted.to_numpy()
    return read._replace(frame=combined, notes=(*read.notes, *notes))


def has_readers(csv: Path) -> bool:
    """Whether a table has a column that names the reader, so that several rows of one image are votes."""
    return bool(reader_columns(read_header(csv)))


def reader_columns(names: Iterable[str]) -> list[str]:
    """Return the columns that name the reader of an image."""
    return [name for name in names if fold_name(name) in _READERS]


def labels_as_numbers(csv: Path, cells: pd.DataFrame, image: pd.Series) -> pd.DataFrame:
    """Parse cells into 1, 0, -1 or, for blanks, NaN. Raises InputError, naming finding and image, for other cells."""
    numbers = {}
    for name in cells.columns:
        numbers[name], wrong = read_labels(cells[name])
        if wrong.any():
            raise InputError(f"{csv}: finding {name!r}: label {str(cells[name][wrong].iloc[0])!r} of "
                             f"{image[wrong].iloc[0]} is not 1, 0, -1 or blank; correct the table")  # fmt: skip
    frame: pd.DataFrame = pd.DataFrame(numbers, index=cells.index)
    return frame


def _note_disagreement(
    labels: pd.DataFrame, readers: pd.Series, given: pd.DataFrame, counts: tuple[pd.DataFrame, pd.DataFrame],
    result: pd.DataFrame, votes: Votes,
) -> list[Note]:  # fmt: skip
    several = int((readers > 1).sum())
    if not several:
        return []
    ones, zeros = counts
    disagree = (given > 1) & (ones < given) & (zeros < given) & (given - ones - zeros < given)
    uncertain = int(((result == -1) & disagree).sum().sum())
    total = int((given > 1).sum().sum())
    number = f"{readers.min()}" if readers.min() == readers.max() else f"{readers.min()} to {readers.max()}"
    text = (f"{several} of {len(readers)} images have several rows of labels ({number} each): their readers disagree "
            f"on {int(disagree.sum().sum())} of {total} labels, of {int(disagree.any(axis=1).sum())} images; "
            f"--votes={votes} decides, and leaves {uncertain} of them uncertain")  # fmt: skip
    if not disagree.any(axis=None):
        return [Note(text)]
    most = disagree.sum().idxmax()
    return [Note(f"{text}; most often on {most} ({int(disagree[most].sum())} times)",
                 str(disagree.index[disagree[most]][0]))]  # fmt: skip
