"""Notes: facts about a table that a build prints, such as rows without labels or columns that are not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """A fact about a table, with an example.

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
    """Format a count with the singular or plural of a phrase: "1 row has", "2 rows have"."""
    return f"{count} {one if count == 1 else many}"


def listed(names: Iterable[object], most: int = 12) -> str:
    """Join names by commas. If there are more than `most`, show the first ones and the number of the rest."""
    shown = [str(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
