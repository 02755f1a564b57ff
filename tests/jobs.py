"""Jobs for the processes that tests start, in a module that they import in a moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import psutil

from shard.errors import InputError
from shard.pool import parallel_map, tick


def job(number: int) -> int:
    """Let the second job kill the idle worker of the first, which holds the lock of the queue."""
    tick()
    if number == 1:
        time.sleep(1)
        server = psutil.Process().parent()
        assert server is not None
        for worker in server.children():
            if worker.pid != os.getpid():
                os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.5)
    return number


def run() -> None:
    try:
        assert list(parallel_map(range(2), 2, job, images=2, label="working", workers=2)) == [0, 1]
    except InputError as error:  # the pool noticed before the last job was done
        assert "--workers=2: a worker was killed" in str(error)


class Fatal(int):
    """A number of images that kills the process which counts them."""

    def __radd__(self, other: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return other


def count_or_die(number: int) -> int:
    """Kill this process in the middle of counting, while the other worker keeps counting."""
    while number:
        tick()
    time.sleep(0.5)
    tick(Fatal(1))
    return number


def is_preloaded(number: int) -> bool:
    tick()
    return "shard.preload" in sys.modules


def raise_after_one(reason: str) -> Iterator[int]:
    yield 1
    raise ValueError(reason)


def exit_after_one() -> Iterator[int]:
    yield 1
    os._exit(3)
