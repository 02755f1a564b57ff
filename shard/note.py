"""Notes: facts about a table that a build prints, such as rows without labels or columns that are not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """One fact about a table, with its count.

    text: contains no id, path or cell, because the manifest of de-identified shards includes it.
    example: one such value, or blank.
    """

    text: str
    example: str = ""

    def __str__(self) -> str:
        return f"{self.text}, such as {self.example}" if self.example else self.text


def commonest(cells: Iterable[object]) -> str:
    """Return the repr of the most frequent cell. Ties are broken alphabetically, whatever the order of the rows."""
    counts = Counter(map(str, cells))
    return repr(min(counts, key=lambda text: (-counts[text], text)))


def counted(count: int, one: str, many: str) -> str:
    """Format a count with its singular or plural words: "1 row has", "2 rows have"."""
    return f"{count} {one if count == 1 else many}"


def listed(names: Iterable[object], most: int = 12) -> str:
    """Join names by commas. Of more than `most` names, show the first ones and the number of the others."""
    shown = [str(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
