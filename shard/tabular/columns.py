"""Find a table's columns by name: in any case, with or without blanks and underscores, under known second names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.note import Note, counted, listed

ColumnNames = Mapping[str, tuple[str, ...]]  # the name that a format uses → second names

SEX = ("Gender", "Patient Sex", "Patient Gender", "Sexo", "Sexe", "Geschlecht")
AGE = ("Patient Age", "Age Years", "Edad", "Idade", "Alter")
VIEW = ("View Position",)


def fold(name: str) -> str:
    """What two spellings of one name have in common: their letters and digits, in lower case.

    R's read.csv has Pleural.Effusion for Pleural Effusion, others Pleural_Effusion, pleural effusion, PleuralEffusion.
    """
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def match(csv: Path, header: Sequence[str], known: ColumnNames) -> dict[str, int]:
    """The name that a format uses → the place of its column; a second name counts where there is no column of the
    first. Raises InputError where two columns are one."""
    folded = [fold(name) for name in header]
    places = {}
    for name, seconds in known.items():
        own = [place for place, text in enumerate(folded) if text == fold(name)]
        own = own or [place for place, text in enumerate(folded) if text in map(fold, seconds)]
        if len(own) > 1:
            shown = " and ".join(header[place].strip() for place in own)
            raise InputError(f"{csv}: columns {shown} are both its {name}; leave one out")
        if own:
            places[name] = own[0]
    return places


def has(header: Sequence[str], *names: str) -> bool:
    """Whether a header has all these columns, in any spelling."""
    folded = {fold(name) for name in header}
    return bool(header) and all(fold(name) in folded for name in names)


def unique(header: Sequence[str]) -> list[str]:
    """Names for all columns, as pandas gives them: "Unnamed: 9" without one, "Edema.1" for a second "Edema"."""
    seen = Counter[str]()
    names = list[str]()
    for place, name in enumerate(header):
        name = name or f"Unnamed: {place}"
        while (again := f"{name}.{seen[name]}" if seen[name] else name) in names:
            seen[name] += 1
        seen[name] += 1
        names.append(again)
    return names


def not_taken(csv: Path, frame: pd.DataFrame, taken: Sequence[str]) -> list[Note]:
    """A note of the columns that a format does not read; columns without name and cells are none."""
    left = [name for name in frame.columns if name not in taken
            and not (name.startswith("Unnamed: ") and (frame[name] == "").all())]  # fmt: skip
    return [Note(f"{csv.name}: {len(left)} of its columns not taken: {listed(left)}")] if left else []


def not_found(csv: Path, expected: Iterable[str], found: Collection[Hashable], what: str = "findings") -> list[Note]:
    """A note of the findings or other columns that a format has and a table lacks."""
    lacking = [name for name in expected if name not in found]
    count = counted(len(lacking), f"expected {what.removesuffix('s')}", f"expected {what}")
    return [Note(f"{csv.name}: {count} not found: {listed(lacking)}")] if lacking else []
