"""Run the jobs of the recipe study in worker processes, several of which can share a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from bench.recipe.job import Job
from shard.errors import InputError
from shard.machine import cores


@contextlib.contextmanager
def job_workers(number: int, log: Path, minutes: float = 0.0) -> Iterator[JobWorkers]:
    """Start worker processes when they are needed, and end them at the end of the block.

    log: where their warnings and errors go. minutes: start no job after this time; 0 for no limit. A run that is ended
    goes on from its checkpoint when it is started again.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        workers = JobWorkers(number, file, minutes)
        try:
            yield workers
        finally:
            workers.stop()


class JobWorkers:
    """Worker processes that take jobs one after another, so that each imports PyTorch once."""

    def __init__(self, number: int, log: IO[str], minutes: float = 0.0) -> None:
        self._minutes = minutes
        self._until = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._slots = [_Worker(log, max(1, cores() // number)) for _ in range(number)]
        self._log = log

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs in this order, and print a line for each.

        If a job fails, the others go on; then InputError is raised, as it is if jobs were not started in time.
        """
        waiting, finished = queue.SimpleQueue[Job](), queue.SimpleQueue[tuple[Job, float, str]]()
        for job in jobs:
            waiting.put(job)
        threads = [threading.Thread(target=slot.work, args=(waiting, finished, self._until), daemon=True)
                   for slot in self._slots]  # fmt: skip
        for thread in threads:
            thread.start()
        errors, done = list[str](), 0
        with tqdm(total=len(jobs), desc="runs", unit=" runs", disable=None) as bar:
            while done < len(jobs):
                try:
                    job, seconds, error = finished.get(timeout=0.2)
                except queue.Empty:
                    if any(thread.is_alive() for thread in threads) or not finished.empty():
                        continue
                    break
                done += 1
                bar.update()
                print(f"{done} of {len(jobs)}: {job.name}, {seconds:.0f} s" + f": {error}" * bool(error), flush=True)
                errors += [error] * bool(error)
        if errors:
            raise InputError(f"{len(errors)} of {len(jobs)} runs failed, the first: {errors[0]} (see {self._log.name})")
        if done < len(jobs):
            left = len(jobs) - done
            raise InputError(f"--minutes={self._minutes:g}: {left} of {len(jobs)} runs were not started; run "
                             "the same command again to go on")  # fmt: skip

    def stop(self) -> None:
        """End all processes."""
        for slot in self._slots:
            slot.stop()
        for slot in self._slots:
            slot.wait()


class _Worker:
    """A process that runs jobs: it reads each as a line of JSON, and answers with an error or an empty text."""

    def __init__(self, log: IO[str], threads: int) -> None:
        self._log = log
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def work(
        self, waiting: queue.SimpleQueue[Job], finished: queue.SimpleQueue[tuple[Job, float, str]], until: float
    ) -> None:
        """Run waiting jobs until none is left or the time limit is reached."""
        while time.monotonic() < until and not self._stopped:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            begun = time.monotonic()
            error = self._run(job)
            finished.put((job, time.monotonic() - begun, error))

    def _run(self, job: Job) -> str:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen([sys.executable, "-m", "bench.recipe.job"], text=True, stderr=self._log,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             env=self._environment)  # fmt: skip
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None, "both are pipes"
        try:
            stdin.write(job.json() + "\n")
            stdin.flush()
            answer = stdout.readline()
        except (BrokenPipeError, ValueError):  # ValueError: stop() has closed the input
            answer = ""
        if not answer:
            return f"{job.name}: its process ended with status {self._process.wait()}"
        return str(json.loads(answer))

    def stop(self) -> None:
        """Ask the process to end."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()
            # A signal that arrives just before the process waits for its next job does not end that wait. The end of
            # its input does.
            assert self._process.stdin is not None, "a pipe"
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            self._process.wait()
