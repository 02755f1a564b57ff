"""parallel_map: apply a function to many jobs on all cores, in order, with progress and a clean end at any moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from shard.errors import InputError
from shard.progress import Progress
from shard.shared_memory import explain_lock_errors

PATIENCE_S = 3  # for the pool to end a worker that has no job

Job = TypeVar("Job")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in a worker whose build was interrupted, so that it clears away what it has begun."""


class _Own:
    """A number as multiprocessing shares it, for one process alone: where there is no shared memory, nor any need."""

    def __init__(self) -> None:
        self.value = 0

    def get_lock(self) -> contextlib.nullcontext[None]:
        """No lock is needed."""
        return contextlib.nullcontext()


class _Counters:
    """Shared by all processes of a run: images done, images rejected, and whether to stop.

    context: multiprocessing's; None where the work is done in this process.
    """

    def __init__(self, context: Any) -> None:
        self.done, self.rejected, self.stop = (context.Value("l", 0) if context else _Own() for _ in range(3))


_counters: _Counters | None = None
_busy = False  # whether this worker has a job
_progress: Progress | None = None  # where the work is done in the process that shows it


def tick(images: int = 1, rejected: int = 0) -> None:
    """Count images of the job at hand. Raises Stopped where the run was interrupted."""
    assert _counters is not None, "only a function that parallel_map calls may tick"
    with _counters.done.get_lock():
        _counters.done.value += images
        _counters.rejected.value += rejected
        if _counters.stop.value:
            raise Stopped
    if _progress is not None:
        _progress.show(_counters.done.value, _counters.rejected.value)


def parallel_map(
    jobs: Iterable[Job], count: int, work: Callable[[Job], Result], *, images: int, label: str, workers: int,
    unit: str = "images",
) -> Iterator[Result]:  # fmt: skip
    """Yield work(job) of each of `count` jobs, in order, on `workers` processes (in this one, where that is 1).

    images: what progress counts to, in `unit`; `work` calls tick() for each. When the caller stops, or is
    interrupted, workers end at their next image; when it is killed, they end at once. Raises InputError where a worker
    was killed.
    """
    context = multiprocessing.get_context("forkserver")
    workers = min(workers, count)
    with Progress(label, images, unit) as progress:
        if workers <= 1:
            _join(_Counters(None), progress)
            yield from map(work, jobs)
            return
        lower = f"--workers={workers} to 1, which wants none"
        with explain_lock_errors(lower):
            counters = _Counters(context)
        context.set_forkserver_preload([work.__module__])  # imported once, not by each worker
        _start_fork_server()
        with explain_lock_errors(lower):
            pool = ProcessPoolExecutor(workers, context, _start_worker, (counters,))
        try:
            # Two jobs a worker are under way, not all: what waits would lie in memory.
            coming = iter(jobs)
            waiting: deque[Future[Result]] = deque(
                pool.submit(_work_one, work, job) for job in islice(coming, 2 * workers))
            while waiting:
                first = waiting.popleft()
                while not wait([first], timeout=0.2).done:
                    progress.show(counters.done.value, counters.rejected.value)
                waiting.extend(pool.submit(_work_one, work, job) for job in islice(coming, 1))
                yield first.result()
            progress.show(counters.done.value, counters.rejected.value)
        except BrokenProcessPool:
            raise InputError(f"--workers={workers}: one was killed, likely for want of memory; lower it") from None
        finally:
            counters.stop.value = 1
            pool.shutdown(cancel_futures=True)


def _start_fork_server() -> None:
    """Start it deaf to SIGTERM: a scheduler's, sent to every process, would end it and leave its workers for dead."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may say what signals do
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, before)


def _work_one(work: Callable[[Job], Result], job: Job) -> Result:
    global _busy
    _busy = True
    try:
        return work(job)
    finally:
        _busy = False


def _join(counters: _Counters, progress: Progress | None = None) -> None:
    global _counters, _progress
    _counters, _progress = counters, progress


def _start_worker(counters: _Counters) -> None:
    """Leave signals to the parent, who has all the workers stop tidily, and end when it ends.

    A terminal and a scheduler send theirs to every process; a worker without a parent would write into the files of
    its successor. One that has no job when all are to stop ends by itself after some seconds: it may wait for a lock of
    the pool's queues that a killed worker held.
    """
    _join(counters)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        idle = 0
        while not wait_for([parent.sentinel], timeout=1) and idle < PATIENCE_S:
            idle = idle + 1 if counters.stop.value and not _busy else 0
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
