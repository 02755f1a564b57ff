"""The patients of a split's images, and the partner images that view 2 may be computed from."""

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
    """The patients of a split's images.

    The partners of an image are the other images of its patient in the same shard, a file that is being read anyway.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self._folder, self._manifest, self._split = folder, manifest, split

    @cached_property
    def ids(self) -> Any:
        """An integer patient ID of each image, [N] int64. Read on first access: seconds for 200,000 images."""
        labels = read_labels(self._folder, self._manifest, (self._split,))
        return pd.factorize(labels["patient"])[0].astype(np.int64)

    @cached_property
    def _groups(self) -> tuple[Any, Any]:
        """The images sorted by (shard, patient), [N], and the start and end of each image's group in them, [N, 2]."""
        sizes = self._manifest.shard_sizes(self._split)
        shard = np.repeat(np.arange(len(sizes)), sizes)
        group = np.unique(np.stack([shard, self.ids]), axis=1, return_inverse=True)[1].reshape(-1)
        members = np.argsort(group, kind="stable")
        ends = np.cumsum(np.bincount(group))
        return members, np.stack([ends - np.bincount(group), ends], axis=1)[group]

    def count_paired(self, *, in_shard: bool) -> int:
        """Count the images whose patient has another image in the split or, with in_shard, in the same shard."""
        sizes = self._groups[1][:, 1] - self._groups[1][:, 0] if in_shard else np.bincount(self.ids)[self.ids]
        return int((sizes > 1).sum())

    def check(self, probability: float) -> None:
        """Raise InputError if the shards were built without partners."""
        if not self._manifest.settings.get("partners"):
            raise InputError(f"--patient-positive={probability:g}: the shards in {self._folder} do not keep a "
                             "patient's images together; build others with: python -m shard build SRC OUT --partners=3")

    def pair(self, probability: float, seed: int, batch: Batch) -> Batch:
        """Return the batch with sampled partners."""
        members, bounds = self._groups
        partners = sample_partners(probability, seed, batch.epoch, batch.indices, bounds[batch.indices], members)
        return batch._replace(partners=partners)
