"""Run the jobs of the recipe study, several at a time, each as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from bench.recipe.job import Job
from shard.errors import InputError
from shard.machine import cores


def run_jobs(jobs: Sequence[Job], at_once: int, minutes: float = 0.0) -> None:
    """Run jobs in order, `at_once` at a time, and print a line for each.

    minutes: start none after this time; 0 for no limit. If a job fails, the others go on; then InputError is raised.
    """
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    runner = _Runner(until, at_once)
    failed, left, done = list[str](), 0, 0
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(runner.run, job): job for job in jobs}
        with tqdm(total=len(jobs), desc="runs", unit=" runs", disable=None) as bar:
            for future in as_completed(futures):
                job, seconds = futures[future], future.result()
                bar.update()
                left += seconds is None
                if seconds is not None:
                    done += 1
                    print(f"{done} of {len(jobs)}: {job.name}, {seconds:.0f} s", flush=True)
                if error := runner.errors.get(job.name):
                    failed.append(error)
                    print(error, file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.stop()
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} runs failed, the first: {failed[0]}")
    if left:
        raise InputError(f"--minutes={minutes:g}: {left} of {len(jobs)} runs were not started; run the same command "
                         "again to go on")  # fmt: skip


class _Runner:
    """Starts a process for each job, and ends all of them if the study is stopped."""

    def __init__(self, until: float, at_once: int) -> None:
        self._until = until
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // at_once))}
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.errors: dict[str, str] = {}

    def run(self, job: Job) -> float | None:
        """Run a job and return its seconds, or None if it was too late to start it."""
        begun = time.monotonic()
        if begun > self._until:
            return None
        with self._lock:
            process = subprocess.Popen([sys.executable, "-m", "bench.recipe.job", job.json()], text=True,
                                       env=self._environment, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)  # fmt: skip
            self._processes.add(process)
        _, printed = process.communicate()
        with self._lock:
            self._processes.discard(process)
        if process.returncode:
            lines = [line for line in printed.splitlines() if line.strip()]
            self.errors[job.name] = lines[-1] if lines else f"{job.name}: ended with status {process.returncode}"
        return time.monotonic() - begun

    def stop(self) -> None:
        """End the processes that still run. A run goes on from its checkpoint when it is started again."""
        with self._lock:
            self._until = 0.0
            for process in self._processes:
                process.terminate()
