"""Reads the images of the next batches in threads while earlier batches are processed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from pipeline.sampler import Batch
from shard.fetch import Fetcher

PREFETCH_BATCHES = 4  # batches per reader: enough to hide a network's latency, a few megabytes
THREADS = 8


def prefetch(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[bytes]]]:
    """Yield each batch with the encoded bytes of `batch.images`, each image read once.

    Raises InputError naming tar and key if an image can't be read.
    """
    pending: deque[tuple[Batch, Future[list[bytes]]]] = deque()
    epoch = None
    for batch in batches:
        if batch.epoch != epoch:
            epoch = batch.epoch
            fetcher.reopen()
        pending.append((batch, _threads().submit(_read, fetcher, batch)))
        if len(pending) > PREFETCH_BATCHES:
            yield _next(pending)
    while pending:
        yield _next(pending)


@lru_cache
def _threads() -> ThreadPoolExecutor:
    """Return the thread pool that all readers share and that is never shut down.

    The garbage collector may collect a reader in any thread, including one that holds the executor's locks. Shutting
    down a pool of the reader's own there could deadlock.
    """
    return ThreadPoolExecutor(THREADS, "prefetch")


def _next(pending: deque[tuple[Batch, Future[list[bytes]]]]) -> tuple[Batch, list[bytes]]:
    batch, contents = pending.popleft()
    return batch, contents.result()


def _read(fetcher: Fetcher, batch: Batch) -> list[bytes]:
    contents = [fetcher.read(index) for index in batch.indices.tolist()]
    if batch.partners is not None:
        pairs = zip(batch.indices.tolist(), batch.partners.tolist(), contents.copy(), strict=True)
        contents += [content if partner == index else fetcher.read(partner) for index, partner, content in pairs]
    return contents
