"""Assign the rows of a table to shards, in a reproducible random order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from shard.formats import SPLITS
from shard.table import Table


class Row(NamedTuple):
    """One image to shard.

    sex: F, M or blank. age: in years. labels: one per finding: 1, 0, -1 or None (not mentioned).
    date: of the study, YYYY-MM-DD or blank.
    """

    key: str
    path: str
    patient: str
    view: str
    sex: str
    age: int | None
    labels: tuple[int | None, ...]
    date: str = ""


class ShardRows(NamedTuple):
    """The rows of one shard in order, its split, and its file name without the extension."""

    stem: str
    split: str
    rows: list[Row]

    def sha256(self) -> str:
        """Hash everything that decides the shard's bytes, except the settings and the images."""
        return hashlib.sha256(json.dumps(self, allow_nan=False).encode()).hexdigest()


class Assignment:
    """The assignment of a table's rows to shards.

    Stores row positions only and builds the rows of a shard on demand, so that the table is in memory only once.
    """

    def __init__(self, table: Table, shard_size: int, seed: int, partners: int = 0) -> None:
        """Assign all rows.

        partners: keep each image in one shard with up to this many other images of its patient. A patient with more
        images is split into groups of at most partners + 1, as even as possible; a shard may get several of them.
        """
        self._table, self._partners = table, partners
        self._shards: list[tuple[str, str, np.ndarray]] = []
        for split in SPLITS:
            order = shuffle(table, split, seed)
            if partners and len(order):
                patient = pd.factorize(table.rows["patient"].iloc[order])[0]
                groups = group_by_patient(patient, partners + 1)
                chunks = [order[positions] for positions in pack_groups(groups, shard_size)]
            else:
                chunks = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
            self._shards += [(f"{split}-{number:06d}", split, positions) for number, positions in enumerate(chunks)]

    def count(self, part: int, parts: int) -> tuple[int, int]:
        """Count the shards and the rows of one part."""
        shards = self._shards[part::parts]
        return len(shards), sum(len(positions) for _, _, positions in shards)

    def count_partners(self) -> tuple[int, int]:
        """Count the images that share a shard with another image of their patient.

        Also counts the copies that it would take to store up to `partners` of those images next to each image.
        """
        patient = pd.factorize(self._table.rows["patient"])[0]
        counts = [np.unique(patient[positions], return_counts=True)[1] for _, _, positions in self._shards]
        together = np.concatenate(counts) if counts else np.empty(0, int)
        return int(together[together > 1].sum()), int((together * np.minimum(together - 1, self._partners)).sum())

    def iter_shards(self, part: int, parts: int) -> Iterator[ShardRows]:
        """Yield the shards of one part: every parts-th shard, starting with number `part`."""
        findings = list(self._table.findings)
        for stem, split, positions in self._shards[part::parts]:
            rows = self._table.rows.iloc[positions]
            labels = rows[findings].astype(object).where(rows[findings].notna(), None).to_numpy().tolist()
            columns = rows[["key", "path", "patient", "view", "sex", "age"]].to_numpy().tolist()
            dates = rows["date"] if "date" in rows else [""] * len(rows)
            yield ShardRows(stem, split, [
                Row(key, path, patient, view, sex, int(age) if age else None,
                    tuple(None if label is None else int(label) for label in row_labels), date)
                for (key, path, patient, view, sex, age), row_labels, date in zip(columns, labels, dates, strict=True)
            ])  # fmt: skip


def shuffle(table: Table, split: str, seed: int) -> np.ndarray:
    """Return the positions [N] of a split's rows in the table, shuffled over the whole split.

    Sorts by a hash of seed and key, so the order does not depend on the order of the table, the machine or the version
    of any library. Readers then need no shuffling beyond a buffer.
    """
    positions = np.flatnonzero((table.rows["split"] == split).to_numpy())
    keys = table.rows["key"].iloc[positions]
    digests = np.array([hashlib.sha256(f"{seed} {key}".encode()).hexdigest() for key in keys], "S64")
    return positions[np.argsort(digests, kind="stable")]


def group_by_patient(patient: np.ndarray, max_size: int) -> list[np.ndarray]:
    """Group the positions of [N] patient numbers by patient, in the order of each group's first position.

    A patient with more than max_size images is split into groups as even as possible. If max_size is above 2, none of
    these groups has a single image.
    """
    positions = np.argsort(patient, kind="stable")
    ends = np.flatnonzero(np.diff(patient[positions])) + 1
    groups = (group for own in np.split(positions, ends) for group in np.array_split(own, -(-len(own) // max_size)))
    return sorted(groups, key=lambda group: int(group[0]))


def pack_groups(groups: list[np.ndarray], shard_size: int) -> list[np.ndarray]:
    """Pack groups of positions into shards of at most shard_size positions, without splitting a group.

    A group that does not fit into the current shard starts the next one. The positions of a shard are ascending.
    """
    shards: list[list[np.ndarray]] = []
    room = 0
    for positions in groups:
        if len(positions) > room:
            shards.append([])
            room = shard_size
        shards[-1].append(positions)
        room -= len(positions)
    return [np.sort(np.concatenate(shard)) for shard in shards]
