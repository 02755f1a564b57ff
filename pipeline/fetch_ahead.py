"""Fetches the tars of the next batches from where the shards lie, ahead of the batches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from pipeline.sampler import SHARDS_PER_WINDOW, Batch
from shard.ahead import FetchAhead
from shard.fetch import Fetcher


def with_tars_ahead(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches, each to be taken once its tars are there, while the tars of later batches are fetched.

    Looks as many images ahead as a window of the sampler has, so that the next window is there when it begins. For
    shards on this machine it returns the batches as they are. Taking a batch raises InputError if a tar can't be
    fetched.
    """
    return _fetch_ahead(fetcher, batches) if fetcher.is_copy else batches


def _fetch_ahead(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterator[Batch]:
    ahead, source = FetchAhead(fetcher.folder), iter(batches)
    upcoming, uses, images = deque[tuple[Batch, set[int]]](), Counter[int](), 0
    distance = SHARDS_PER_WINDOW * max((shard.samples for shard in fetcher.shards), default=0)
    try:
        while True:
            while images < distance and (batch := next(source, None)) is not None:
                shards = fetcher.shards_of(batch.images)
                for number in shards:
                    ahead.ask(fetcher.shards[number])
                uses.update(shards)
                upcoming.append((batch, set(shards)))
                images += len(batch.indices)
            if not upcoming:
                return
            batch, needed = upcoming.popleft()
            for number in needed:
                ahead.wait(fetcher.shards[number])
            yield batch
            images -= len(batch.indices)
            uses.subtract(needed)
            for number in needed:
                if not uses[number]:
                    ahead.forget(fetcher.shards[number])
    finally:
        ahead.close()
