"""The order of images over epochs, ranks, batches and shards."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from pipeline.sampler import SHARDS_PER_WINDOW, BatchSampler, epoch_order, sequential_batches


def epoch_of(sampler: BatchSampler, epoch: int) -> list[int]:
    return [index for batch in islice(sampler.batches(epoch, 0), sampler.steps) for index in batch.indices.tolist()]


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("images", [95, 96, 97, 191, 192, 193])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 11])
def test_epoch_contains_each_image_at_most_once_over_all_ranks(images: int, batch_size: int, world: int) -> None:
    sizes = (40,) * (images // 40) + ((images % 40,) if images % 40 else ())
    samplers = [BatchSampler(sizes, batch_size, 3, rank, world) for rank in range(world)]
    assert len({sampler.steps for sampler in samplers}) == 1
    dropped = []
    for epoch in range(4):
        seen = [index for sampler in samplers for index in epoch_of(sampler, epoch)]
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(images))
        assert images - len(seen) <= batch_size * world - 1
        dropped.append(frozenset(range(images)) - set(seen))
    # Two epochs may drop the same image of a hundred by chance, but not all four.
    assert not dropped[0] or len(set(dropped)) > 1


def test_batches_of_two_ranks_join_to_those_of_one() -> None:
    sizes = (30, 40, 27)
    joint = list(islice(BatchSampler(sizes, 12).batches(0, 0), 20))
    ranks = [list(islice(BatchSampler(sizes, 6, 0, rank, 2).batches(0, 0), 20)) for rank in range(2)]
    for batch, *parts in zip(joint, *ranks, strict=True):
        assert batch.indices.tolist() == [index for part in parts for index in part.indices.tolist()]
        assert all((part.epoch, part.step) == (batch.epoch, batch.step) for part in parts)


def test_batches_start_at_any_step() -> None:
    sampler = BatchSampler((50, 50, 33), 8)
    assert sampler.steps == 16
    batches = [flat(batch) for batch in islice(sampler.batches(0, 0), 40)]
    assert [flat(batch) for batch in islice(sampler.batches(0, 5), 35)] == batches[5:]
    assert [flat(batch) for batch in islice(sampler.batches(1, 0), 24)] == batches[16:]
    assert [step for _, step, _ in batches[:17]] == [*range(16), 0]


def flat(batch: Any) -> tuple[int, int, list[int]]:
    return batch.epoch, batch.step, batch.indices.tolist()


def test_epoch_order_shuffles_windows_of_few_shards() -> None:
    shards, size = 3 * SHARDS_PER_WINDOW, 100
    shard_of = epoch_order((size,) * shards, 0, 0) // size
    windows = shard_of.reshape(3, SHARDS_PER_WINDOW * size)
    assert all(len(set(window)) == SHARDS_PER_WINDOW for window in windows)
    order = epoch_order((size,) * shards, 0, 0)
    assert sorted(order) == list(range(shards * size))
    for window in windows:  # each tenth of a window contains about a tenth of each of its shards
        parts = np.array([np.bincount(part, minlength=shards)[sorted(set(window))] for part in np.split(window, 10)])
        assert parts.min() >= 1 and parts.max() <= 26
    repeated, later = epoch_order((size,) * shards, 0, 0), epoch_order((size,) * shards, 0, 1)
    assert np.array_equal(order, repeated) and not np.array_equal(order, later)
    assert not np.array_equal(order, epoch_order((size,) * shards, 1, 0))
    assert set(later[: SHARDS_PER_WINDOW * size] // size) != set(shard_of[: SHARDS_PER_WINDOW * size])


def test_sequential_batches_keep_the_order_and_the_short_last_batch() -> None:
    batches = sequential_batches(range(10), 4)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
