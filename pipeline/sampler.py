"""The order of images in an epoch, cut into equal batches for every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.view_parameters import shuffle_keys

SHARD_STREAM, IMAGE_STREAM = 2, 3  # streams of view_parameters.shuffle_keys
# Shards whose images are shuffled together. Reads then stay within few files at a time, and a batch is still sampled
# from thousands of images. The sharder has shuffled the images once; the order of shards changes every epoch.
SHARDS_PER_WINDOW = 8


class Batch(NamedTuple):
    """The images of one step on one rank, as indices into the split."""

    epoch: int
    step: int
    indices: Any  # [B] int64
    partners: Any = None  # [B] int64, the image of view 2: another of the patient, or the same; None: always the same

    @property
    def view2_indices(self) -> Any:
        """The image of each second view, [B] int64."""
        return self.indices if self.partners is None else self.partners

    @property
    def images(self) -> Any:
        """All images to read: those of view 1, [B], followed by those of view 2 if the batch has partners, [2 B]."""
        return self.indices if self.partners is None else np.concatenate([self.indices, self.partners])


@dataclass(frozen=True)
class BatchSampler:
    """Samples batches of image indices, epoch after epoch; depends only on the shards' sizes and the seed.

    Step s takes the next batch_size · world images of the epoch; rank r gets the r-th batch_size of them. So every
    image appears at most once per epoch, all ranks have the same number of steps, and two ranks of 32 together see
    the batches of one rank of 64. The incomplete last batch is dropped: fewer than batch_size · world images, and
    different ones in each epoch.
    """

    shard_samples: tuple[int, ...]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return sum(self.shard_samples) // (self.batch_size * self.world)

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """Yield this rank's batches from the given step on, over infinitely many epochs."""
        while True:
            order = epoch_order(self.shard_samples, self.seed, epoch)
            for current in range(step, self.steps):
                first = (current * self.world + self.rank) * self.batch_size
                yield Batch(epoch, current, order[first : first + self.batch_size])
            epoch, step = epoch + 1, 0


@lru_cache(maxsize=1)
def epoch_order(shard_samples: tuple[int, ...], seed: int, epoch: int) -> Any:
    """Shuffle a split for one epoch, [N] int64: first its shards, then the images within each window of shards."""
    ends = np.cumsum(shard_samples)
    shards = np.argsort(shuffle_keys(seed, epoch, len(shard_samples), SHARD_STREAM), kind="stable")
    keys = shuffle_keys(seed, epoch, int(ends[-1]), IMAGE_STREAM)
    order = []
    for start in range(0, len(shards), SHARDS_PER_WINDOW):
        window = np.concatenate([np.arange(ends[shard] - shard_samples[shard], ends[shard])
                                 for shard in shards[start : start + SHARDS_PER_WINDOW]])  # fmt: skip
        order.append(window[np.argsort(keys[window], kind="stable")])
    return np.concatenate(order)


def sequential_batches(indices: Sequence[int], batch_size: int) -> list[Batch]:
    """Cut image indices into batches in the given order; the last batch may be smaller."""
    array = np.asarray(indices)
    return [Batch(0, step, array[first : first + batch_size])
            for step, first in enumerate(range(0, len(array), batch_size))]  # fmt: skip
