"""Plan: a table → which rows go into which shard, in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shard.formats import SPLITS
from shard.table import Table


class Row(NamedTuple):
    """One image to shard. sex: F, M or blank; age: years; labels: 1, 0, -1 or None (not mentioned), as the findings."""

    key: str
    path: str
    patient: str
    view: str
    sex: str
    age: int | None
    labels: tuple[int | None, ...]


class Planned(NamedTuple):
    """One shard to write: its name without ending, its split, its rows in order."""

    stem: str
    split: str
    rows: list[Row]

    def sha256(self) -> str:
        """A hash of all that the shard's bytes depend on, but settings and images."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


class Plan:
    """All shards of a build, each made when it is asked for: the rows of an archive are not held twice."""

    def __init__(self, table: Table, shard_size: int, seed: int) -> None:
        self._table = table
        self._shards: list[tuple[str, str, np.ndarray]] = []
        for split in SPLITS:
            order = shuffle(table, split, seed)
            self._shards += [(f"{split}-{start // shard_size:06d}", split, order[start : start + shard_size])
                             for start in range(0, len(order), shard_size)]  # fmt: skip

    def count(self, part: int, parts: int) -> tuple[int, int]:
        """How many shards one part has, and how many rows."""
        mine = self._shards[part::parts]
        return len(mine), sum(len(places) for _, _, places in mine)

    def part(self, part: int, parts: int) -> Iterator[Planned]:
        """Every parts-th shard, from number `part` on."""
        findings = list(self._table.findings)
        for stem, split, places in self._shards[part::parts]:
            rows = self._table.rows.iloc[places]
            labels = rows[findings].astype(object).where(rows[findings].notna(), None).to_numpy().tolist()
            named = rows[["key", "path", "patient", "view", "sex", "age"]].to_numpy().tolist()
            yield Planned(stem, split, [
                Row(key, path, patient, view, sex, int(age) if age else None,
                    tuple(None if label is None else int(label) for label in given))
                for (key, path, patient, view, sex, age), given in zip(named, labels, strict=True)
            ])  # fmt: skip


def shuffle(table: Table, split: str, seed: int) -> np.ndarray:
    """[N] places in the table of a split's rows, shuffled whole, so that readers need only buffer.

    By a hash of seed and key: the order is the same whatever the order of the table, the machine, and the version of
    any library.
    """
    places = np.flatnonzero((table.rows["split"] == split).to_numpy())
    keys = table.rows["key"].iloc[places]
    digests = np.array([hashlib.sha256(f"{seed} {key}".encode()).hexdigest() for key in keys], "S64")
    return places[np.argsort(digests, kind="stable")]
