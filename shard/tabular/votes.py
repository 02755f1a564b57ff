"""Several readers of one image → one label a finding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from shard.errors import InputError
from shard.formats.rows import Rows
from shard.note import Note
from shard.tabular.columns import fold
from shard.tabular.csv_file import header_of
from shard.tabular.demographics import READERS
from shard.tabular.label import read_labels

Votes = Literal["majority", "any", "all"]
_READERS = {"rad", "radid", "radiologist", "radiologistid", "reader", "readerid", "rater", "raterid", "annotator",
            "annotatorid"}  # fmt: skip


def vote(labels: pd.DataFrame, image: pd.Series, votes: Votes) -> tuple[pd.DataFrame, list[Note]]:
    """Rows of readers → one row an image, in the order of their first ones, with `image` as the index.

    labels: 1, 0, -1 or NaN, a column a finding; image: which image a row is of. Of the labels that are given: majority
    is what more than half of them say, and uncertain (-1) where none has so many, as in a tie; any is 1 where one is 1,
    else -1 where one is -1, else 0; all is 1 where all are 1, 0 where one is 0, else -1. What no reader labels is NaN.
    Notes how many labels the readers disagree on.
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
    return result, _say(labels, grouped.size(), given, (ones, zeros), result, votes)


def vote_rows(read: Rows, csv: Path, votes: Votes) -> Rows:
    """A user's own table, with several rows of some images → one row an image, where they differ in labels alone."""
    same = [name for name in read.frame.columns if name not in read.findings]
    alike = read.frame[same].copy()
    for name in set(READERS).intersection(same):  # 57 and 57.0 are one age
        values = READERS[name](alike[name].astype("str").unique())
        alike[name] = alike[name].astype("str").map(lambda text, of=values: text if of[text] is None else of[text])
    whole = read.frame[~alike.duplicated()].reset_index(drop=True)
    if not read.findings:
        return read._replace(frame=whole)
    image = alike.astype("str").agg("\0".join, axis=1)
    voted, notes = vote(as_numbers(csv, read.frame[list(read.findings)], read.frame["path"]), image, votes)
    notes = [note._replace(example=note.example and note.example.split("\0")[same.index("path")]) for note in notes]
    whole[list(read.findings)] = voted.to_numpy()
    return read._replace(frame=whole, notes=(*read.notes, *notes))


def has_readers(csv: Path) -> bool:
    """Whether a table has a column that says who read the image, so that several rows of one are votes."""
    return bool(reader_columns(header_of(csv)))


def reader_columns(names: Iterable[str]) -> list[str]:
    """The columns of a table that say who read the image."""
    return [name for name in names if fold(name) in _READERS]


def as_numbers(csv: Path, cells: pd.DataFrame, image: pd.Series) -> pd.DataFrame:
    """Cells as 1, 0, -1 or, blank, NaN. Raises InputError, naming column, cell and image, where one is none of them."""
    numbers = {}
    for name in cells.columns:
        numbers[name], wrong = read_labels(cells[name])
        if wrong.any():
            raise InputError(f"{csv}: finding {name!r}: label {str(cells[name][wrong].iloc[0])!r} of "
                             f"{image[wrong].iloc[0]} is not 1, 0, -1 or blank; mend the table")  # fmt: skip
    frame: pd.DataFrame = pd.DataFrame(numbers, index=cells.index)
    return frame


def _say(
    labels: pd.DataFrame, readers: pd.Series, given: pd.DataFrame, counts: tuple[pd.DataFrame, pd.DataFrame],
    result: pd.DataFrame, votes: Votes,
) -> list[Note]:  # fmt: skip
    several = int((readers > 1).sum())
    if not several:
        return []
    ones, zeros = counts
    differ = (given > 1) & (ones < given) & (zeros < given) & (given - ones - zeros < given)
    tied = int(((result == -1) & differ).sum().sum())
    of = int((given > 1).sum().sum())
    number = f"{readers.min()}" if readers.min() == readers.max() else f"{readers.min()} to {readers.max()}"
    text = (f"{several} of {len(readers)} images have several rows of labels ({number} each): their readers disagree "
            f"on {int(differ.sum().sum())} of {of} labels, of {int(differ.any(axis=1).sum())} images; --votes={votes} "
            f"decides, and leaves {tied} of them uncertain")  # fmt: skip
    if not differ.any(axis=None):
        return [Note(text)]
    most = differ.sum().idxmax()
    return [Note(f"{text}; most often on {most} ({int(differ[most].sum())} times)", str(differ.index[differ[most]][0]))]
