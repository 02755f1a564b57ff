"""A loader in a process of its own, which works when it is its turn and is looked at from inside."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from shard.errors import InputError

WARM_UP = 8  # batches, and at least a second, after a pause: what was made ahead would count as free


@dataclass(frozen=True)
class Turn:
    """What one turn gave: images/s, CPU milliseconds an image, waits for a batch in ms, memory, share of GPU time."""

    images_per_s: float
    cpu_ms: float
    waits_ms: list[float]
    memory_mb: float
    gpu_share: float | None


class Runner:
    """A process of its own. `start` is called there, with `arguments`, and gives without end what is measured.

    measure: what a turn is, of what `start` gives and some seconds; by default of a loader's counts of images.
    """

    def __init__(
        self, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...],
        measure: Callable[[Iterator[Any], float], Any] | None = None,
    ) -> None:  # fmt: skip
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, start, arguments, measure or _turn))
        self._process.start()
        there.close()

    def turn(self, seconds: float) -> Any:
        """Let it work for some seconds, after a warm-up: a Turn, or what `measure` gives. Raises RuntimeError."""
        return self._ask(("turn", seconds))

    def first_pass(self, images: int, seconds: float) -> float:
        """Images/s of a loader begun anew, its start included, over so many images or seconds. Raises RuntimeError."""
        rate: float = self._ask(("first", images, seconds))
        return rate

    def end(self) -> None:
        """End the process and its workers."""
        for process in _processes(self._process.pid):
            process.resume()
        self._here.close()  # tells it to go
        self._process.join(10)
        for process in _processes(self._process.pid) if self._process.is_alive() else []:
            process.kill()
        self._process.join()

    def _ask(self, request: tuple[Any, ...]) -> Any:
        # Between its turns it is stopped: workers go on making batches ahead, seconds long, into others' turns.
        for process in _processes(self._process.pid):
            process.resume()
        self._here.send(request)
        try:
            answer = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with {self._process.exitcode}") from None
        for process in _processes(self._process.pid):
            process.suspend()
        if isinstance(answer, Exception):
            raise RuntimeError(str(answer)) from answer
        return answer


def _serve(
    connection: Connection, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...],
    measure: Callable[[Iterator[Any], float], Any],
) -> None:  # fmt: skip
    batches: Iterator[Any] | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            if request[0] == "first":
                batches = None  # ends what it had begun
                batches = start(*arguments)
                connection.send(_first(batches, *request[1:]))
            else:
                batches = batches or start(*arguments)
                connection.send(measure(batches, request[1]))
        except InputError as error:
            connection.send(RuntimeError(str(error)))
        except Exception as error:  # told to the parent, which reports it
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _first(batches: Iterator[int], images: int, seconds: float) -> float:
    seen, begun = 0, time.perf_counter()
    while seen < images and time.perf_counter() - begun < seconds:
        seen += next(batches)
    return seen / (time.perf_counter() - begun)


def _turn(batches: Iterator[int], seconds: float) -> Turn:
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
    return Turn(images / elapsed, (_cpu_seconds() - cpu) / images * 1000, waits, _memory(), gpu_share())


def _processes(pid: int | None = None) -> list[psutil.Process]:
    """A process, by default this one, and its workers; none where it has ended."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


def _memory() -> float:
    """MB of this process and its workers, what they share counted once where the system tells."""
    infos = [process.memory_full_info() for process in _processes()]
    return sum(getattr(info, "pss", info.rss) for info in infos) / 2**20


def gpu_share() -> float | None:
    """The share of nvidia-smi's last window, up to a second, in which the GPU worked; None where it does not tell."""
    if not torch.cuda.is_available():
        return None
    identity = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["nvidia-smi", f"--id={identity}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 100
    except (OSError, subprocess.CalledProcessError, ValueError):  # no nvidia-smi, or a GPU in parts, which has no share
        return None
