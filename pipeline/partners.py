"""Patients: which images of a split are one patient's, and which of them view 2 may be made of."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.sampler import Batch
from pipeline.view_parameters import sample_partners
from shard.errors import InputError
from shard.manifest import Manifest
from shard.read import read_labels


class Patients:
    """The patients of a split's images. An image's partners are the others of its patient in the same shard: their
    bytes lie in a file that is being read."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self._folder, self._manifest, self._split = folder, manifest, split

    @cached_property
    def numbers(self) -> Any:
        """A number for each image's patient, [N] int64. Read when it is first asked for, some seconds for 200,000."""
        labels = read_labels(self._folder, self._manifest, (self._split,))
        return pd.factorize(labels["patient"])[0].astype(np.int64)

    @cached_property
    def _groups(self) -> tuple[Any, Any]:
        """The images group by group, [N], and where each image's group begins and ends there, [N, 2]."""
        samples = [shard.samples for shard in self._manifest.of_split(self._split)]
        shard = np.repeat(np.arange(len(samples)), samples)
        group = np.unique(np.stack([shard, self.numbers]), axis=1, return_inverse=True)[1].reshape(-1)
        members = np.argsort(group, kind="stable")
        ends = np.cumsum(np.bincount(group))
        return members, np.stack([ends - np.bincount(group), ends], axis=1)[group]

    def paired(self, *, in_shard: bool) -> int:
        """How many images have another of their patient in the split; in_shard: in the same shard, to pair with."""
        counts = self._groups[1][:, 1] - self._groups[1][:, 0] if in_shard else np.bincount(self.numbers)[self.numbers]
        return int((counts > 1).sum())

    def check(self, probability: float) -> None:
        """Raise InputError where the shards were not made to have partners in them."""
        if not self._manifest.settings.get("partners"):
            raise InputError(f"--patient-positive={probability:g}: the shards in {self._folder} do not keep a "
                             "patient's images together; build others with: python -m shard build SRC OUT --partners=3")

    def pair(self, probability: float, seed: int, batch: Batch) -> Batch:
        """The batch with its partners drawn."""
        members, places = self._groups
        drawn = sample_partners(probability, seed, batch.epoch, batch.indices, places[batch.indices], members)
        return batch._replace(partners=drawn)
