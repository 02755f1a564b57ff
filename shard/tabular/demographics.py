"""Sex, age and view of a table's rows: read, and what could not be read told; and how many images have which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from shard.note import Note, commonest
from shard.tabular.age import AGES, age_group, read_age
from shard.tabular.sex import read_sexes
from shard.tabular.view import VIEWS, read_views
from shard.tabular.words import fold, places_of, says_unknown

COLUMNS = ("sex", "age", "view")
_ORDER = {"sex": ("F", "M", "blank"), "age": (*(name for _, _, name in AGES), "blank"), "view": (*VIEWS, "blank")}
Counts = dict[str, dict[str, int]]  # sex, age or view → value → images


def read_demographics(rows: pd.DataFrame) -> list[Note]:
    """Put in the place of the cells of sex, age and view what they say: F or M, years, one of VIEWS, or blank.

    Notes how many cells say nothing that is known, by split, with the commonest.
    """
    notes = []
    for name in COLUMNS:
        places, texts = places_of(rows[name])
        values = READERS[name](texts)
        read = pd.Categorical([values[text] or "" for text in texts])
        rows[name] = pd.Series(read[places], rows.index).cat.remove_unused_categories()
        unread = [value is None for value in map(values.get, texts)]
        unknown = [values[text] == "" and text.strip() != "" for text in texts]
        for which, said in ((unread, "not understood, left blank"), (unknown, "say that it isn't known")):
            chosen = np.array(which)[places]
            if chosen.any():
                cells = [texts[place] for place in places[chosen]]
                notes.append(_note(name, said, cells, len(rows), rows["split"][chosen]))
    return notes


def say_nobody(patients: pd.Series) -> list[Note]:
    """A note of ids that say that nobody knows whose an image is: each of these words counts as one patient."""
    nobody = patients.isin([text for text in patients.unique() if says_unknown(fold(text))])
    if not nobody.any():
        return []
    return [Note(f"patient: {int(nobody.sum())} of {len(patients)} cells say that it isn't known; all images of one "
                 "such word count as one patient's", commonest(patients[nobody]))]  # fmt: skip


def _read_ages(texts: Iterable[str]) -> dict[str, str | None]:
    return {text: read_age(text) for text in texts}


READERS = {"sex": read_sexes, "age": _read_ages, "view": read_views}


def _note(name: str, said: str, cells: Sequence[str], total: int, split: pd.Series) -> Note:
    where = ", ".join(f"{of} {count}" for of, count in sorted(Counter(split).items()))
    numbers = name == "sex" and any(text.strip()[:1].isdigit() for text in cells)
    cure = "; a header such as Male or Sex (1=M, 0=F) would say what numbers mean" if numbers else ""
    return Note(f"{name}: {len(cells)} of {total} cells {said} ({where}{cure})", commonest(cells))


def count_demographics(people: Iterable[tuple[str, int | float | None, str]]) -> Counts:
    """Of images' sex, age in years and view: how many have which, in a fixed order, ages in groups; none is "blank"."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    for sex, age, view in people:
        counts["sex"][sex or "blank"] += 1
        counts["age"]["blank" if age is None else age_group(age)] += 1
        counts["view"][view or "blank"] += 1
    return add_counts([{name: dict(of) for name, of in counts.items()}])


def add_counts(parts: Iterable[Counts]) -> Counts:
    """The sum of what count_demographics gave for parts of the images."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    for part in parts:
        for name, counts in part.items():
            sums[name].update(counts)
    return {name: dict(sorted(of.items(), key=lambda item: _place(name, item[0]))) for name, of in sums.items()}


def _place(name: str, value: str) -> tuple[int, str]:
    order = _ORDER[name]
    return (order.index(value) if value in order else len(order)), value


def are_counts(counts: Counts) -> bool:
    """Whether something that was read from a file is what count_demographics gives, or {}."""
    return all(name in COLUMNS and all(type(value) is str and type(count) is int and 0 <= count < 2**63
                                       for value, count in of.items()) for name, of in counts.items())  # fmt: skip
