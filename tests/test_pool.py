"""Work on all cores ends when a worker is killed, whatever that worker was about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from shard.errors import InputError
from shard.pool import parallel_map, tick
from tests.conftest import ROOT


def job(number: int) -> int:
    """The second one kills the worker that did the first, and now waits for more under the lock of the queue."""
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
    except InputError as error:  # where the pool noticed before the last job was done
        assert "--workers=2: a worker was killed" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="a fork server's children are found by psutil on Linux")
def test_the_work_ends_though_an_idle_worker_was_killed() -> None:
    code = "from tests.test_pool import run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
