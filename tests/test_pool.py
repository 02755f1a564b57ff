"""parallel_map ends even if a worker is killed, whatever it was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shard.errors import InputError
from shard.pool import parallel_map, tick
from tests.conftest import ROOT


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


@pytest.mark.skipif(sys.platform != "linux", reason="psutil finds the fork server's children only on Linux")
def test_parallel_map_ends_after_an_idle_worker_is_killed() -> None:
    code = "from tests.test_pool import run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


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


def test_parallel_map_ends_after_a_worker_is_killed_while_it_counts() -> None:
    code = ("from shard.pool import parallel_map; from tests.test_pool import count_or_die\n"
            "list(parallel_map(range(2), 2, count_or_die, images=2, label='x', workers=2))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "--workers=2: a worker was killed" in done.stderr


def is_preloaded(number: int) -> bool:
    tick()
    return "shard.preload" in sys.modules


def test_workers_share_a_preloaded_module() -> None:
    """The fork server is a process of its own, so in this one the module is not imported."""
    code = ("import sys; from shard.pool import parallel_map; from tests.test_pool import is_preloaded\n"
            "print(*parallel_map(range(2), 2, is_preloaded, images=2, label='x', workers=2, preload='shard.preload'))\n"
            "print('shard.preload' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


def test_interrupted_fork_server_prints_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to every process, while the fork server imports modules."""
    (tmp_path / "slow.py").write_text("import pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)")
    code = ("from shard.pool import parallel_map\n"
            "try: list(parallel_map(range(2), 2, abs, images=2, label='x', workers=2, preload='slow'))\n"
            "except KeyboardInterrupt: print('interrupted')")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, text=True,
                               env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30) == ("interrupted\n", "")
    finally:
        process.kill()
