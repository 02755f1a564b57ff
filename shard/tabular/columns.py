"""Find a table's columns by name, in any letter case, with any separators, and under known second names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.note import Note, counted, listed
from shard.tabular.words import fold

ColumnNames = Mapping[str, tuple[str, ...]]  # the name that a format uses → second names

SEX = ("Gender", "Patient Sex", "Patient Gender", "Sexo", "Sexe", "Geschlecht")
AGE = ("Patient Age", "Age Years", "Edad", "Idade", "Alter")
VIEW = ("View Position",)


def fold_name(name: str) -> str:
    """Reduce a name to its letters and digits, in lower case, so that two spellings of it are equal.

    R's read.csv turns Pleural Effusion into Pleural.Effusion; others write Pleural_Effusion or PleuralEffusion.
    """
    return re.sub(r"[\W_]+", "", fold(name))


def match_columns(csv: Path, header: Sequence[str], known: ColumnNames) -> dict[str, int]:
    """Map each known name to the index of its column. Second names are used if no column has the first.

    Raises InputError if two columns match one name.
    """
    folded = [fold_name(name) for name in header]
    indices = {}
    for name, seconds in known.items():
        matching = [index for index, text in enumerate(folded) if text == fold_name(name)]
        matching = matching or [index for index, text in enumerate(folded) if text in map(fold_name, seconds)]
        if len(matching) > 1:
            shown = " and ".join(header[index].strip() for index in matching)
            raise InputError(f"{csv}: columns {shown} are both its {name}; remove one")
        if matching:
            indices[name] = matching[0]
    return indices


def header_has(header: Sequence[str], *names: str) -> bool:
    """Whether a header has all these columns, in any spelling."""
    folded = {fold_name(name) for name in header}
    return bool(header) and all(fold_name(name) in folded for name in names)


def unique_names(header: Sequence[str]) -> list[str]:
    """Return unique column names, made as pandas makes them: "Unnamed: 9" for none, "Edema.1" for a second "Edema"."""
    seen = Counter[str]()
    names = list[str]()
    for index, name in enumerate(header):
        name = name or f"Unnamed: {index}"
        while (candidate := f"{name}.{seen[name]}" if seen[name] else name) in names:
            seen[name] += 1
        seen[name] += 1
        names.append(candidate)
    return names


def note_unread(csv: Path, frame: pd.DataFrame, read: Sequence[str]) -> list[Note]:
    """A note about columns that a format does not read, other than columns without name and cells."""
    unread = [name for name in frame.columns if name not in read
              and not (name.startswith("Unnamed: ") and (frame[name] == "").all())]  # fmt: skip
    return [Note(f"{csv.name}: {len(unread)} of its columns not read: {listed(unread)}")] if unread else []


def note_missing(csv: Path, expected: Iterable[str], found: Collection[Hashable], what: str = "findings") -> list[Note]:
    """A note about expected findings, or other columns, that a table lacks."""
    missing = [name for name in expected if name not in found]
    count = counted(len(missing), f"expected {what.removesuffix('s')}", f"expected {what}")
    return [Note(f"{csv.name}: {count} not found: {listed(missing)}")] if missing else []
