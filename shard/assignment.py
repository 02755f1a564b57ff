"""Plan: a table → which rows go into which shard, in which order."""

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
    """One image to shard. sex: F, M or blank; age: years; labels: 1, 0, -1 or None (not mentioned), as the findings;
    date: of the study, YYYY-MM-DD or blank."""

    key: str
    path: str
    patient: str
    view: str
    sex: str
    age: int | None
    labels: tuple[int | None, ...]
    date: str = ""


class ShardRows(NamedTuple):
    """One shard to write: its name without ending, its split, its rows in order."""

    stem: str
    split: str
    rows: list[Row]

    def sha256(self) -> str:
        """A hash of all that the shard's bytes depend on, but settings and images."""
        return hashlib.sha256(json.dumps(self, allow_nan=False).encode()).hexdigest()


class Assignment:
    """All shards of a build, each made when it is asked for: the rows of an archive are not held twice."""

    def __init__(self, table: Table, shard_size: int, seed: int, partners: int = 0) -> None:
        """partners: with how many other images of its patient an image is kept together. A patient with more is cut
        into groups of up to partners + 1, as even as can be, of which several may come into one shard."""
        self._table, self._partners = table, partners
        self._shards: list[tuple[str, str, np.ndarray]] = []
        for split in SPLITS:
            order = shuffle(table, split, seed)
            if partners and len(order):
                patient = pd.factorize(table.rows["patient"].iloc[order])[0]
                cut = [order[places] for places in pack_groups(group_by_patient(patient, partners + 1), shard_size)]
            else:
                cut = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
            self._shards += [(f"{split}-{number:06d}", split, places) for number, places in enumerate(cut)]

    def count(self, part: int, parts: int) -> tuple[int, int]:
        """How many shards one part has, and how many rows."""
        mine = self._shards[part::parts]
        return len(mine), sum(len(places) for _, _, places in mine)

    def count_partners(self) -> tuple[int, int]:
        """How many images are in one shard with others of their patient, and how many copies it would take to put up to
        `partners` of those beside each."""
        patient = pd.factorize(self._table.rows["patient"])[0]
        counts = [np.unique(patient[places], return_counts=True)[1] for _, _, places in self._shards]
        together = np.concatenate(counts) if counts else np.empty(0, int)
        return int(together[together > 1].sum()), int((together * np.minimum(together - 1, self._partners)).sum())

    def part(self, part: int, parts: int) -> Iterator[ShardRows]:
        """Every parts-th shard, from number `part` on."""
        findings = list(self._table.findings)
        for stem, split, places in self._shards[part::parts]:
            rows = self._table.rows.iloc[places]
            labels = rows[findings].astype(object).where(rows[findings].notna(), None).to_numpy().tolist()
            named = rows[["key", "path", "patient", "view", "sex", "age"]].to_numpy().tolist()
            dates = rows["date"] if "date" in rows else [""] * len(rows)
            yield ShardRows(stem, split, [
                Row(key, path, patient, view, sex, int(age) if age else None,
                    tuple(None if label is None else int(label) for label in given), date)
                for (key, path, patient, view, sex, age), given, date in zip(named, labels, dates, strict=True)
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


def group_by_patient(patient: np.ndarray, most: int) -> list[np.ndarray]:
    """[N] patients' numbers → groups of up to `most` places of one patient, as their first ones stand.

    A patient with more is cut into groups as even as can be: where `most` is above 2 no image is left alone.
    """
    places = np.argsort(patient, kind="stable")
    ends = np.flatnonzero(np.diff(patient[places])) + 1
    parts = (part for one in np.split(places, ends) for part in np.array_split(one, -(-len(one) // most)))
    return sorted(parts, key=lambda part: int(part[0]))


def pack_groups(groups: list[np.ndarray], shard_size: int) -> list[np.ndarray]:
    """Groups, none of them cut → shards of up to shard_size places, ascending: a group too large for what room is left
    begins the next."""
    shards: list[list[np.ndarray]] = []
    room = 0
    for places in groups:
        if len(places) > room:
            shards.append([])
            room = shard_size
        shards[-1].append(places)
        room -= len(places)
    return [np.sort(np.concatenate(shard)) for shard in shards]
