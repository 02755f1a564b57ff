"""Run a command in a process of its own and measure what it takes: time, memory, open files, bytes read and written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from shard.errors import InputError

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2), in linux/prctl.h
POLL_S = 0.01
SAMPLE_S = 0.5  # between two measurements of memory, which take milliseconds for each process
LAST_LINES = 12  # of a failed command's output, in the error about it


@dataclass(frozen=True)
class Cost:
    """What a command and its worker processes took.

    cpu_s: of all processes that ended. peak_mb: the largest sum of their memory, shared pages counted once. files: the
    most open files at once, in all processes. read_mb: all that was read, from a disk or the page cache, programs and
    libraries included; from_disk_mb: what a disk had to deliver. status: None if it was stopped by `until` or the time
    limit.
    """

    command: str
    seconds: float
    cpu_s: float
    peak_mb: float
    files: int
    read_mb: float
    from_disk_mb: float
    written_mb: float
    status: int | None


def run_command(
    words: list[str], log: Path, *, until: Callable[[], bool] = lambda: False, timeout_s: float = 86_400.0
) -> Cost:
    """Run python -m WORDS and return its cost; its output goes to the end of `log`.

    Must be called within adopt_orphans. Several threads may run commands at the same time.
    until: the command and its workers are killed with SIGKILL as soon as this returns True, as after timeout_s seconds.
    Raises InputError with its last lines if the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        begun = time.perf_counter()
        # In a session of its own, which also ends the workers; unbuffered, because a killed command loses the rest.
        process = subprocess.Popen([sys.executable, "-u", "-m", *words], stdout=file, stderr=file,
                                   start_new_session=True)  # fmt: skip
        usage = _Usage(process.pid)
        try:
            while not (ended := _has_ended(process.pid)):
                if until() or time.perf_counter() - begun > timeout_s:
                    break
                usage.update()
                time.sleep(POLL_S)
            seconds = time.perf_counter() - begun
        finally:
            usage.update(now=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.returncode = usage.wait()
    cost = Cost(shlex.join(["python", "-m", *words]), seconds, usage.cpu_s, usage.peak_mb, usage.files, usage.read_mb,
                usage.from_disk_mb, usage.written_mb, process.returncode if ended else None)  # fmt: skip
    if cost.status:
        last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
        raise InputError(f"{cost.command}: exited with status {cost.status}; {log} has its output, which ends: {last}")
    return cost


@contextlib.contextmanager
def adopt_orphans() -> Iterator[None]:
    """Make this process the parent of processes that a command leaves behind, so that it can wait for them.

    Python's fork server is one: the command's own figures do not include those of the workers that it started.
    """
    system = ctypes.CDLL(None)
    system.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        system.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended, without waiting for it: until that is done, /proc has its figures."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Usage:
    """What the processes of a session have used: the most memory and open files at once, CPU seconds, and MB."""

    def __init__(self, session: int) -> None:
        self._session, self._next = session, 0.0
        self.peak_mb, self.files = 0.0, 0
        self.cpu_s, self.read_mb, self.from_disk_mb, self.written_mb = 0.0, 0.0, 0.0, 0.0

    def update(self, now: bool = False) -> None:
        """Measure memory and open files, if SAMPLE_S seconds have passed since the last time, or `now`."""
        if not now and time.perf_counter() < self._next:
            return
        memory, files = 0.0, 0
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self._session)
            for process in (first, *first.children(recursive=True)):
                with contextlib.suppress(psutil.Error, OSError):  # it may just have ended
                    memory += process.memory_full_info().pss / 2**20
                    files += process.num_fds()
        self.peak_mb, self.files = max(self.peak_mb, memory), max(self.files, files)
        self._next = time.perf_counter() + SAMPLE_S

    def wait(self) -> int:
        """Wait until all processes of the session have ended, add up their figures, and return the first one's status.

        A process's figures include those of its children that it waited for.
        """
        status = 0
        while True:
            try:
                ended = os.waitid(os.P_PGID, self._session, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                return status
            assert ended is not None
            lines = Path(f"/proc/{ended.si_pid}/io").read_text().splitlines()  # exists until wait4
            counts = {name: int(count) / 2**20 for name, count in (line.split(": ") for line in lines)}
            self.read_mb += counts["rchar"]
            self.from_disk_mb += counts["read_bytes"]
            self.written_mb += counts["wchar"]
            _, wait_status, resources = os.wait4(ended.si_pid, 0)
            self.cpu_s += resources.ru_utime + resources.ru_stime
            if ended.si_pid == self._session:
                status = os.waitstatus_to_exitcode(wait_status)
