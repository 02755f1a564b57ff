"""Which image goes into which batch: an epoch's order, cut into equal batches for every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.view_parameters import shuffle_keys

TARS, IMAGES = 2, 3  # what is shuffled: a stream of draw.shuffle_keys each
# Tars of which the images are mixed. What is read within a while lies in few files, one after the other, and a batch
# still draws on thousands of images, shuffled once for all by the sharder and their tars anew every epoch.
TARS_MIXED = 8


class Batch(NamedTuple):
    """The images of one step on one rank, by their numbers in the split."""

    epoch: int
    step: int
    indices: Any  # [B] int64
    partners: Any = None  # [B] int64, of what view 2 is made: another image of the patient, or the same; None: the same

    @property
    def view2_indices(self) -> Any:
        """[B] int64: the images of which view 2 is made."""
        return self.indices if self.partners is None else self.partners

    @property
    def images(self) -> Any:
        """The images that are read: those of view 1, and where there are partners, then those of view 2."""
        return self.indices if self.partners is None else np.concatenate([self.indices, self.partners])


@dataclass(frozen=True)
class BatchSampler:
    """The order of images, epoch after epoch: decided by the shards' sizes and the seed alone.

    Step s takes the next batch_size · world of it, of which rank r has the r-th batch_size: every image at most once
    an epoch, as many steps on every rank, and two ranks of 32 go through what one of 64 does. What is short of a
    step at an epoch's end, less than batch_size · world, is left out; each epoch leaves out others.
    """

    shard_samples: tuple[int, ...]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return sum(self.shard_samples) // (self.batch_size * self.world)

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """This rank's batches from a step of an epoch on, epoch after epoch, without end."""
        while True:
            order = epoch_order(self.shard_samples, self.seed, epoch)
            for number in range(step, self.steps):
                first = (number * self.world + self.rank) * self.batch_size
                yield Batch(epoch, number, order[first : first + self.batch_size])
            epoch, step = epoch + 1, 0


@lru_cache(maxsize=1)
def epoch_order(shard_samples: tuple[int, ...], seed: int, epoch: int) -> Any:
    """All samples of a split in the order of an epoch, [N] int64: tars shuffled, then images within a few of them."""
    ends = np.cumsum(shard_samples)
    tars = np.argsort(shuffle_keys(seed, epoch, len(shard_samples), TARS), kind="stable")
    keys = shuffle_keys(seed, epoch, int(ends[-1]), IMAGES)
    order = []
    for window in range(0, len(tars), TARS_MIXED):
        mixed = np.concatenate([np.arange(ends[tar] - shard_samples[tar], ends[tar])
                                for tar in tars[window : window + TARS_MIXED]])  # fmt: skip
        order.append(mixed[np.argsort(keys[mixed], kind="stable")])
    return np.concatenate(order)


def cut_into_batches(samples: Sequence[int], batch_size: int) -> list[Batch]:
    """Images of a split by their numbers, each once, in that order; the last batch may be short."""
    numbers = np.asarray(samples)
    return [Batch(0, step, numbers[first : first + batch_size])
            for step, first in enumerate(range(0, len(numbers), batch_size))]  # fmt: skip
