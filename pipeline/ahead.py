"""Reading ahead: the bytes of the batches to come, while those before them are made into views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.plan import Batch
from shard.fetch import Fetcher

BATCHES_AHEAD = 4  # read at once, a thread each: hides a network's delays, and holds a few megabytes


def read_ahead(fetcher: Fetcher, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[bytes]]]:
    """Each batch with the bytes of its images. Raises InputError naming tar and key where they can't be read."""
    waiting: deque[tuple[Batch, Future[list[bytes]]]] = deque()
    epoch = None
    with ThreadPoolExecutor(BATCHES_AHEAD, "read-ahead") as pool:
        for batch in batches:
            if batch.epoch != epoch:
                epoch = batch.epoch
                fetcher.reopen()
            waiting.append((batch, pool.submit(_read, fetcher, batch)))
            if len(waiting) > BATCHES_AHEAD:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)


def _next(waiting: deque[tuple[Batch, Future[list[bytes]]]]) -> tuple[Batch, list[bytes]]:
    batch, contents = waiting.popleft()
    return batch, contents.result()


def _read(fetcher: Fetcher, batch: Batch) -> list[bytes]:
    return [fetcher.read(number) for number in batch.samples.tolist()]
