"""Read the sex, age and view of a table's rows, note what is not understood, and count images per value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from shard.note import Note, commonest
from shard.tabular.age import AGES, age_group, read_age
from shard.tabular.sex import read_sexes
from shard.tabular.view import VIEWS, read_views
from shard.tabular.words import factorize, fold, says_unknown

COLUMNS = ("sex", "age", "view")
_ORDER = {"sex": ("F", "M", "blank"), "age": (*(name for _, _, name in AGES), "blank"), "view": (*VIEWS, "blank")}
Counts = dict[str, dict[str, int]]  # sex, age or view → value → images


def read_demographics(rows: pd.DataFrame) -> list[Note]:
    """Replace the cells of sex, age and view by F or M, whole years, one of VIEWS, or blank.

    Returns notes: how many cells are not understood or say "unknown", by split, with the most frequent cell.
    """
    notes = []
    for name in COLUMNS:
        codes, texts = factorize(rows[name])
        values = READERS[name](texts)
        read = pd.Categorical([values[text] or "" for text in texts])
        rows[name] = pd.Series(read[codes], rows.index).cat.remove_unused_categories()
        unread = [value is None for value in map(values.get, texts)]
        unknown = [values[text] == "" and text.strip() != "" for text in texts]
        for which, fact in ((unread, "not understood, left blank"), (unknown, "say that it is unknown")):
            chosen = np.array(which)[codes]
            if chosen.any():
                cells = [texts[code] for code in codes[chosen]]
                notes.append(_note_cells(name, fact, cells, len(rows), rows["split"][chosen]))
    return notes


def note_unknown_patients(patients: pd.Series) -> list[Note]:
    """A note about patient ids that are words for "unknown": all images with one such word count as one patient's."""
    unknown = patients.isin([text for text in patients.unique() if says_unknown(fold(text))])
    if not unknown.any():
        return []
    return [Note(f"patient: {int(unknown.sum())} of {len(patients)} cells say that it is unknown; all images with the "
                 "same word count as one patient", commonest(patients[unknown]))]  # fmt: skip


def _read_ages(texts: Iterable[str]) -> dict[str, str | None]:
    return {text: read_age(text) for text in texts}


# Column → function from the column's cells to their values: "" for unknown, None for not understood.
READERS = {"sex": read_sexes, "age": _read_ages, "view": read_views}


def _note_cells(name: str, fact: str, cells: Sequence[str], total: int, split: pd.Series) -> Note:
    by_split = ", ".join(f"{of} {count}" for of, count in sorted(Counter(split).items()))
    numbers = name == "sex" and any(text.strip()[:1].isdigit() for text in cells)
    cure = "; a header such as Male or Sex (1=M, 0=F) would define what numbers mean" if numbers else ""
    return Note(f"{name}: {len(cells)} of {total} cells {fact} ({by_split}{cure})", commonest(cells))


def count_demographics(people: Iterable[tuple[str, int | float | None, str]]) -> Counts:
    """Count images by sex, age group and view, in a fixed order. people: sex, age in years and view of each image.

    A missing value counts as "blank".
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    for sex, age, view in people:
        counts["sex"][sex or "blank"] += 1
        counts["age"]["blank" if age is None else age_group(age)] += 1
        counts["view"][view or "blank"] += 1
    return add_counts([{name: dict(of) for name, of in counts.items()}])


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Sum the counts of several parts of the images."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    for part in parts:
        for name, counts in part.items():
            sums[name].update(counts)
    return {name: dict(sorted(of.items(), key=lambda item: _sort_key(name, item[0]))) for name, of in sums.items()}


def _sort_key(name: str, value: str) -> tuple[int, str]:
    order = _ORDER[name]
    return (order.index(value) if value in order else len(order)), value


def are_counts(counts: Counts) -> bool:
    """Whether an object read from a file has the form of Counts, possibly empty."""
    return all(name in COLUMNS and all(type(value) is str and type(count) is int and 0 <= count < 2**63
                                       for value, count in of.items()) for name, of in counts.items())  # fmt: skip
