"""A benchmarked loop in a separate process, which runs only while it is measured."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from shard.errors import InputError

# Batches to skip at the start and after a pause. A loader on the CPU starts up to four pipelines, each when its first
# batch is asked for, and by then all have run twice. Batches prefetched during a pause would look free.
WARM_UP = 8


@dataclass(frozen=True)
class LoaderMeasurement:
    """One measurement of a loader.

    images_per_s; cpu_ms: CPU milliseconds per image; waits_ms: the wait for each batch; memory_mb: of the process and
    its workers; gpu_share: the fraction of time that the GPU was busy, None if unknown.
    """

    images_per_s: float
    cpu_ms: float
    waits_ms: list[float]
    memory_mb: float
    gpu_share: float | None


class MeasuredProcess:
    """A spawned process that iterates over `start(*arguments)`, an endless iterator.

    It imports what it needs at once, and calls `start` when it is first measured: several processes can import at the
    same time, which takes each of them 10 to 20 s on a machine that has just booted. measure: (iterator, seconds) → a
    result; by default it measures a loader that yields the image count of each batch.
    """

    def __init__(
        self, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...],
        measure: Callable[[Iterator[Any], float], Any] | None = None,
    ) -> None:  # fmt: skip
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_connection, start, arguments,
                                                             measure or _measure_loader))  # fmt: skip
        self._process.start()
        child_connection.close()
        self._imported = False

    def wait_for_imports(self) -> None:
        """Wait until the process has imported what it needs. Raises RuntimeError if it fails."""
        if not self._imported:
            self._receive()
            self._imported = True

    def measure(self, seconds: float) -> Any:
        """Resume the process for some seconds and return its measurement. Raises RuntimeError if the process fails."""
        return self._request(("measure", seconds))

    def measure_first_pass(self, images: int, seconds: float) -> float:
        """Restart the loader and return images/s, start-up included, until `images` or `seconds` are reached.

        Raises RuntimeError if the process fails.
        """
        rate: float = self._request(("first pass", images, seconds))
        return rate

    def close(self) -> None:
        """End the process and its workers."""
        for process in _process_tree(self._process.pid):
            process.resume()
        self._connection.close()  # the process exits at the end of its input
        self._process.join(10)
        for process in _process_tree(self._process.pid) if self._process.is_alive() else []:
            process.kill()
        self._process.join()

    def _request(self, request: tuple[Any, ...]) -> Any:
        self.wait_for_imports()
        # The process is suspended between measurements, so that its workers don't prefetch while others are measured.
        for process in _process_tree(self._process.pid):
            process.resume()
        self._connection.send(request)
        answer = self._receive()
        for process in _process_tree(self._process.pid):
            process.suspend()
        if isinstance(answer, Exception):
            raise RuntimeError(str(answer)) from answer
        return answer

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process exited with status {self._process.exitcode}") from None


def wait_for_imports(processes: Mapping[str, MeasuredProcess]) -> None:
    """Wait until no row's process is importing, which would slow down the row that is measured.

    Raises InputError, with the name of the row, if a process fails.
    """
    for name, process in processes.items():
        try:
            process.wait_for_imports()
        except RuntimeError as error:
            raise InputError(f"row {name}: {error}") from error


def _serve(
    connection: Connection, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...],
    measure: Callable[[Iterator[Any], float], Any],
) -> None:  # fmt: skip
    batches: Iterator[Any] | None = None
    connection.send("imported")
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if request[0] == "first pass":
                batches = None  # closes the previous loader before the next one starts
                batches = start(*arguments)
                connection.send(_first_pass_rate(batches, *request[1:]))
            else:
                batches = batches or start(*arguments)
                connection.send(measure(batches, request[1]))
        except InputError as error:
            connection.send(RuntimeError(str(error)))
        except Exception as error:  # the parent process reports it
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _first_pass_rate(batches: Iterator[int], images: int, seconds: float) -> float:
    seen, begun = 0, time.perf_counter()
    while seen < images and time.perf_counter() - begun < seconds:
        seen += next(batches)
    return seen / (time.perf_counter() - begun)


def _measure_loader(batches: Iterator[int], seconds: float) -> LoaderMeasurement:
    begun, warm = time.perf_counter(), 0
    while warm < WARM_UP or time.perf_counter() - begun < min(1.0, seconds):
        next(batches)
        warm += 1
    images, waits = 0, list[float]()
    cpu, begun = _cpu_seconds(), time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds or len(waits) < WARM_UP:
        images += next(batches)
        waits.append((time.perf_counter() - now) * 1000)
    elapsed = time.perf_counter() - begun
    cpu_ms = (_cpu_seconds() - cpu) / images * 1000
    return LoaderMeasurement(images / elapsed, cpu_ms, waits, _memory_mb(), gpu_share())


def _process_tree(pid: int | None = None) -> list[psutil.Process]:
    """Return a process (default: this one) and its descendants; an empty list if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _process_tree())


def _memory_mb() -> float:
    """Return the memory of this process and its workers, shared pages counted once if the system reports them."""
    infos = [process.memory_full_info() for process in _process_tree()]
    return sum(getattr(info, "pss", info.rss) for info in infos) / 2**20


def gpu_share() -> float | None:
    """Return the fraction of nvidia-smi's last sampling window, at most a second, in which the GPU was busy.

    None without a GPU, or if nvidia-smi does not report it.
    """
    if not torch.cuda.is_available():
        return None
    identity = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["nvidia-smi", f"--id={identity}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 100
    except (OSError, subprocess.CalledProcessError, ValueError):  # no nvidia-smi, or a MIG slice, which reports none
        return None
