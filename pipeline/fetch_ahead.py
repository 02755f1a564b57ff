"""Fetches the tars of the next batches from where the shards lie, ahead of the batches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from pipeline.sampler import SHARDS_PER_WINDOW, Batch
from shard.ahead import FetchAhead
from shard.fetch import Fetcher

TARS_IN_USE = 2 * SHARDS_PER_WINDOW


def with_tars_ahead(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches, each to be taken once its tars are there, while the tars of later batches are fetched.

    Looks ahead as far as the sampler's next window of tars, however many ranks there are: each has only a share of a
    window's images, but needs all of its tars. For shards on this machine it returns the batches as
    they are. Taking a batch raises InputError if a tar can't be fetched.
    """
    return _fetch_ahead(fetcher, batches) if fetcher.is_copy else batches


def _fetch_ahead(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterator[Batch]:
    ahead, source = FetchAhead(fetcher.folder), iter(batches)
    upcoming, uses, images = deque[tuple[Batch, list[int]]](), Counter[int](), 0
    most_images = SHARDS_PER_WINDOW * max((shard.samples for shard in fetcher.shards), default=0)  # if tars are few
    try:
        following = next(source, None)
        while following is not None or upcoming:
            while following is not None and images < most_images:
                shards = fetcher.shards_of(following.images)
                if upcoming and len(uses.keys() | set(shards)) > TARS_IN_USE:
                    break
                for number in shards:
                    ahead.ask(fetcher.shards[number])
                uses.update(shards)
                upcoming.append((following, shards))
                images += len(following.indices)
                following = next(source, None)
            batch, needed = upcoming.popleft()
            for number in needed:
                ahead.wait(fetcher.shards[number])
            yield batch
            images -= len(batch.indices)
            for number in needed:
                uses[number] -= 1
                if not uses[number]:
                    del uses[number]
                    ahead.forget(fetcher.shards[number])
    finally:
        ahead.close()
