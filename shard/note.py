"""What a build tells of the table it read: rows without a partner, columns not taken, ids read in one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """One fact of a table, with its count.

    text: holds no id, path or cell of a row, so that it may stand in the manifest of de-identified shards.
    example: one such value, or blank.
    """

    text: str
    example: str = ""

    def __str__(self) -> str:
        return f"{self.text}, such as {self.example}" if self.example else self.text


def commonest(cells: Iterable[object]) -> str:
    """The cell that is there most often, as Python shows it: the same whatever the order of the rows."""
    counts = Counter(map(str, cells))
    return repr(min(counts, key=lambda text: (-counts[text], text)))


def counted(count: int, one: str, many: str) -> str:
    """A count and its words: 1 row has, 2 rows have."""
    return f"{count} {one if count == 1 else many}"


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names after commas; of more than `most` the first ones, and how many more there are."""
    shown = [str(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
