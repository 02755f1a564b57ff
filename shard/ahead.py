"""FetchAhead: fetch the tars that are needed next, in background threads, while earlier ones are read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from shard.address import is_copy
from shard.cache import fetch
from shard.manifest import Shard

THREADS = 4
TARS_AHEAD = 8


class FetchAhead:
    """Fetches tars into a folder of the cache, in the order in which they are asked for.

    Its threads do not keep the process alive: a run that ends does not wait for tars that nobody will read.
    """

    def __init__(self, folder: Path) -> None:
        self._pending: dict[str, Future[None]] = {}
        self._queue: SimpleQueue[tuple[Shard, Future[None]] | None] = SimpleQueue()
        for _ in range(THREADS):
            threading.Thread(target=_serve, args=(folder, self._queue), daemon=True).start()

    def ask(self, shard: Shard) -> None:
        """Have a tar fetched, unless that was asked before."""
        if shard.tar not in self._pending:
            self._pending[shard.tar] = Future()
            self._queue.put((shard, self._pending[shard.tar]))

    def wait(self, shard: Shard) -> None:
        """Wait until a tar is there. Raises InputError if it can't be fetched."""
        self._pending[shard.tar].result()

    def forget(self, shard: Shard) -> None:
        """Forget that a tar was asked for, so that it can be asked for again."""
        self._pending.pop(shard.tar).cancel()

    def close(self) -> None:
        """Stop the threads; tars that none of them has begun to fetch are left."""
        for future in self._pending.values():
            future.cancel()
        for _ in range(THREADS):
            self._queue.put(None)


def fetch_ahead(folder: Path, shards: Iterable[Shard]) -> Iterator[Shard]:
    """Yield shards in order, each once its tar is there, while the next ones are fetched.

    Folders outside the cache are left alone. Raises InputError if a tar can't be fetched.
    """
    if not is_copy(folder):
        yield from shards
        return
    ahead, upcoming = FetchAhead(folder), deque[Shard]()
    try:
        for shard in shards:
            ahead.ask(shard)
            upcoming.append(shard)
            if len(upcoming) > TARS_AHEAD:
                yield _wait_for_first(ahead, upcoming)
        while upcoming:
            yield _wait_for_first(ahead, upcoming)
    finally:
        ahead.close()


def _wait_for_first(ahead: FetchAhead, upcoming: deque[Shard]) -> Shard:
    shard = upcoming.popleft()
    ahead.wait(shard)
    ahead.forget(shard)
    return shard


def _serve(folder: Path, queue: SimpleQueue[tuple[Shard, Future[None]] | None]) -> None:
    while (item := queue.get()) is not None:
        shard, future = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            fetch(folder, shard)
            future.set_result(None)
        except BaseException as error:  # raised where the tar is waited for
            future.set_exception(error)
