"""Reading ahead: the bytes of the batches to come, while those before them are made into views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from pipeline.sampler import Batch
from shard.fetch import Fetcher

BATCHES_AHEAD = 4  # of each reader, at once: hides a network's delays, and holds a few megabytes
THREADS = 8


def prefetch(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[bytes]]]:
    """Each batch with the bytes of its images, and then, where it has partners, those that view 2 is made of.

    Raises InputError naming tar and key where they can't be read.
    """
    waiting: deque[tuple[Batch, Future[list[bytes]]]] = deque()
    epoch = None
    for batch in batches:
        if batch.epoch != epoch:
            epoch = batch.epoch
            fetcher.reopen()
        waiting.append((batch, _threads().submit(_read, fetcher, batch)))
        if len(waiting) > BATCHES_AHEAD:
            yield _next(waiting)
    while waiting:
        yield _next(waiting)


@lru_cache
def _threads() -> ThreadPoolExecutor:
    """Shared by all readers and kept: one of its own would be ended by whoever drops the reader, which may be the
    garbage collector, in a thread that holds the executor's locks."""
    return ThreadPoolExecutor(THREADS, "read-ahead")


def _next(waiting: deque[tuple[Batch, Future[list[bytes]]]]) -> tuple[Batch, list[bytes]]:
    batch, contents = waiting.popleft()
    return batch, contents.result()


def _read(fetcher: Fetcher, batch: Batch) -> list[bytes]:
    contents = [fetcher.read(number) for number in batch.indices.tolist()]
    if batch.partners is not None:
        pairs = zip(batch.indices.tolist(), batch.partners.tolist(), contents.copy(), strict=True)
        contents += [content if other == number else fetcher.read(other) for number, other, content in pairs]
    return contents
