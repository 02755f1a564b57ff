"""parallel_map: apply a function to many jobs on all cores, in order, with progress and a clean exit at any moment."""

from __future__ import annotations

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

IDLE_S = 3  # seconds that an idle worker waits for the pool to end it

Job = TypeVar("Job")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in a worker when the run is interrupted, so that the worker removes unfinished files."""


class _Counters:
    """What all processes of a run share: images done and rejected by each worker, and whether to stop.

    Without locks: a worker that is killed while it holds one would stop all others. context: the multiprocessing
    context; None if the work runs in this process.
    """

    def __init__(self, context: Any, workers: int = 1) -> None:
        array = context.RawArray if context else lambda kind, size: [0] * size
        self.done, self.rejected, self._stop = array("q", workers), array("q", workers), array("b", 1)
        self.place = 0  # of this worker in the arrays

    @property
    def stop(self) -> bool:
        """Whether all workers are to stop at their next image."""
        return bool(self._stop[0])

    @stop.setter
    def stop(self, stop: bool) -> None:
        self._stop[0] = stop

    def count(self, images: int, rejected: int) -> None:
        """Count images of this worker."""
        self.done[self.place] += images
        self.rejected[self.place] += rejected

    def show(self, progress: Progress) -> None:
        """Show the sums over all workers."""
        progress.show(sum(self.done), sum(self.rejected))


_counters: _Counters | None = None
_busy = False  # whether this worker has a job
_progress: Progress | None = None  # set if the work runs in the process that displays the progress


def tick(images: int = 1, rejected: int = 0) -> None:
    """Count images of the current job. Raises Stopped if the run was interrupted."""
    assert _counters is not None, "tick() may only be called within parallel_map"
    _counters.count(images, rejected)
    if _counters.stop:
        raise Stopped
    if _progress is not None:
        _counters.show(_progress)


def parallel_map(
    jobs: Iterable[Job], count: int, work: Callable[[Job], Result], *, images: int, label: str, workers: int,
    unit: str = "images", preload: str = "",
) -> Iterator[Result]:  # fmt: skip
    """Yield work(job) for each of `count` jobs, in order, from `workers` processes (from this process if 1).

    images: the total of the progress display, in `unit`; `work` calls tick() for each. preload: a module that the fork
    server of this process imports when it starts, so that workers share it. If the caller stops or is interrupted,
    workers end at their next image; if it is killed, they end at once.
    Raises InputError if a worker was killed.
    """
    workers = min(workers, count)
    with Progress(label, images, unit) as progress:
        if workers <= 1:
            _set_globals(_Counters(None), progress)
            yield from map(work, jobs)
            return
        modules = ["shard.silent_interrupt", work.__module__, *([preload] if preload else [])]
        pool, counters = _start_pool(workers, modules)
        try:
            yield from _map_in_pool(pool, counters, jobs, work, workers, progress)
        except BrokenProcessPool:
            raise InputError(f"--workers={workers}: a worker was killed, probably because memory ran out; use fewer "
                             "workers") from None
        finally:
            counters.stop = True
            pool.shutdown(cancel_futures=True)


def _start_pool(workers: int, modules: list[str]) -> tuple[ProcessPoolExecutor, _Counters]:
    """Start worker processes. modules: imported by the fork server, in this order, so that all workers share them."""
    context = multiprocessing.get_context("forkserver")
    cure = f"--workers={workers} to 1, which needs none"
    with explain_lock_errors(cure):
        counters = _Counters(context, workers)
    context.set_forkserver_preload(modules)  # imported once, not by each worker
    _start_fork_server()
    with explain_lock_errors(cure):
        return ProcessPoolExecutor(workers, context, _start_worker, (counters,)), counters


def _map_in_pool(
    pool: ProcessPoolExecutor, counters: _Counters, jobs: Iterable[Job], work: Callable[[Job], Result], workers: int,
    progress: Progress,
) -> Iterator[Result]:  # fmt: skip
    # Submit only two jobs per worker at a time: all jobs at once would fill the memory.
    remaining = iter(jobs)
    pending: deque[Future[Result]] = deque(
        pool.submit(_work_one, work, job) for job in islice(remaining, 2 * workers))
    # Python 3.11 watches a new worker only from the next submission on: the last one could die unnoticed without this.
    pool.submit(int)
    while pending:
        first = pending.popleft()
        while not wait([first], timeout=0.2).done:
            counters.show(progress)
        pending.extend(pool.submit(_work_one, work, job) for job in islice(remaining, 1))
        yield first.result()
    counters.show(progress)


def _start_fork_server() -> None:
    """Start the fork server so that it ignores SIGTERM, and SIGINT until it imports shard.silent_interrupt.

    A scheduler sends SIGTERM to every process; it would end the fork server, and the pool would consider its workers
    dead.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set signal handlers
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work_one(work: Callable[[Job], Result], job: Job) -> Result:
    global _busy
    _busy = True
    try:
        return work(job)
    finally:
        _busy = False


def _set_globals(counters: _Counters, progress: Progress | None = None) -> None:
    global _counters, _progress
    _counters, _progress = counters, progress


def _start_worker(counters: _Counters) -> None:
    """Ignore the signals that the parent handles, and exit when the parent exits.

    A terminal and a scheduler signal every process, and the parent stops all workers cleanly. A worker that outlives
    its parent would write into the files of the next run. When all workers must stop, an idle one exits after some
    seconds: it may be waiting for a queue lock that a killed worker held.
    """
    # Processes are numbered as they start, as in ForkServerProcess-3, so that each worker has a place of its own.
    counters.place = int(multiprocessing.current_process().name.rpartition("-")[2]) % len(counters.done)
    _set_globals(counters)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        idle = 0
        while not wait_for([parent.sentinel], timeout=1) and idle < IDLE_S:
            idle = idle + 1 if counters.stop and not _busy else 0
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
