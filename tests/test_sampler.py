"""Epochs: who sees which image when, over ranks, batches and tars."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from pipeline.sampler import TARS_MIXED, BatchSampler, cut_into_batches, epoch_order


def epoch_of(plan: BatchSampler, epoch: int) -> list[int]:
    return [number for batch in islice(plan.batches(epoch, 0), plan.steps) for number in batch.indices.tolist()]


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("images", [95, 96, 97, 191, 192, 193])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 11])
def test_every_epoch_is_whole_over_the_ranks(images: int, batch_size: int, world: int) -> None:
    sizes = (40,) * (images // 40) + ((images % 40,) if images % 40 else ())
    plans = [BatchSampler(sizes, batch_size, 3, rank, world) for rank in range(world)]
    assert len({plan.steps for plan in plans}) == 1
    left_out = []
    for epoch in range(4):
        seen = [number for plan in plans for number in epoch_of(plan, epoch)]
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(images))
        assert images - len(seen) <= batch_size * world - 1
        left_out.append(frozenset(range(images)) - set(seen))
    # Two draws of one image in a hundred may be the same; four may not.
    assert not left_out[0] or len(set(left_out)) > 1


def test_ranks_go_through_the_batches_of_one() -> None:
    sizes = (30, 40, 27)
    one = list(islice(BatchSampler(sizes, 12).batches(0, 0), 20))
    two = [list(islice(BatchSampler(sizes, 6, 0, rank, 2).batches(0, 0), 20)) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        assert whole.indices.tolist() == [number for part in parts for number in part.indices.tolist()]
        assert all((part.epoch, part.step) == (whole.epoch, whole.step) for part in parts)


def test_batches_go_on_from_any_step() -> None:
    plan = BatchSampler((50, 50, 33), 8)
    assert plan.steps == 16
    whole = [flat(batch) for batch in islice(plan.batches(0, 0), 40)]
    assert [flat(batch) for batch in islice(plan.batches(0, 5), 35)] == whole[5:]
    assert [flat(batch) for batch in islice(plan.batches(1, 0), 24)] == whole[16:]
    assert [batch[1] for batch in whole[:17]] == [*range(16), 0]


def flat(batch: Any) -> tuple[int, int, list[int]]:
    return batch.epoch, batch.step, batch.indices.tolist()


def test_an_epoch_reads_few_tars_at_a_time_and_mixes_those_well() -> None:
    tars, each = 3 * TARS_MIXED, 100
    tar_of = epoch_order((each,) * tars, 0, 0) // each
    windows = tar_of.reshape(3, TARS_MIXED * each)
    assert all(len(set(window)) == TARS_MIXED for window in windows)
    order = epoch_order((each,) * tars, 0, 0)
    assert sorted(order) == list(range(tars * each))
    for window in windows:  # in each tenth of a window, every tar has about a tenth of its images
        parts = np.array([np.bincount(part, minlength=tars)[sorted(set(window))] for part in np.split(window, 10)])
        assert parts.min() >= 1 and parts.max() <= 26
    again, later = epoch_order((each,) * tars, 0, 0), epoch_order((each,) * tars, 0, 1)
    assert np.array_equal(order, again) and not np.array_equal(order, later)
    assert not np.array_equal(order, epoch_order((each,) * tars, 1, 0))
    assert set(later[: TARS_MIXED * each] // each) != set(tar_of[: TARS_MIXED * each])


def test_images_cut_into_batches_keep_their_order_and_a_short_last_batch() -> None:
    batches = cut_into_batches(range(10), 4)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
