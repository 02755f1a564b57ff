"""BenchResults: the measurements of other benchmarks, read from their JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.plan.request import SHORT_SIDE, PlanRequest
from train.config import Config

Result = TypeVar("Result")


@dataclass(frozen=True)
class NotMeasured:
    """Why a measurement is unavailable, and the command that makes it."""

    reason: str
    command: str

    def __str__(self) -> str:
        return f"not measured ({self.reason}); run: {self.command}"


@dataclass(frozen=True)
class Machine:
    """The machine that a measurement ran on. gpu: empty if it has none."""

    cpu: str
    cores: int
    gpu: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.gpu or 'no GPU'}"


@dataclass(frozen=True)
class Source:
    """The sharding rate of one core, in images/s, for images of one size."""

    name: str
    megapixels: float
    images_per_s: float


@dataclass(frozen=True)
class Build:
    """The peak memory of a build from a table of `rows` rows, in 2**20 bytes: main process and largest worker."""

    rows: int
    process_mb: float
    worker_mb: float


@dataclass(frozen=True)
class SharderResult:
    """The contents of bench-shard.json."""

    machine: Machine
    sources: tuple[Source, ...]
    builds: tuple[Build, ...]

    def nearest(self, megapixels: float) -> Source:
        """Return the source nearest in size, by the ratio of megapixels; the slowest of several."""
        return min(self.sources, key=lambda one: (abs(math.log(one.megapixels / megapixels)), one.images_per_s))


@dataclass(frozen=True)
class LoaderResult:
    """The row of bench-io.json for the loader that training uses.

    cpu_ms: per image. shards: their fingerprint. gpu_mb: main memory of a process that copies its views to a GPU, None
    if there was no GPU.
    """

    machine: Machine
    row: str
    cpu_ms: float
    shards: str
    gpu_mb: float | None


@dataclass(frozen=True)
class StepResult:
    """The row "ours" of bench-step.json: images/s on one GPU or, without one, on the CPU."""

    machine: Machine
    images_per_s: float
    batch: int


@dataclass(frozen=True)
class MemoryResult:
    """The plain steps of bench-memory.json.

    peaks: batch → peak MB of the GPU or the process. there_mb: the memory that was available.
    """

    machine: Machine
    peaks: dict[int, float]
    there_mb: float

    def peak_mb(self, batch: int) -> float | None:
        """Return the peak of a batch: as measured, or linear through the two nearest batches; None if there is one."""
        if batch in self.peaks:
            return self.peaks[batch]
        if len(self.peaks) < 2:
            return None
        first, second = sorted(self.peaks, key=lambda measured: (abs(measured - batch), measured))[:2]
        slope = (self.peaks[second] - self.peaks[first]) / (second - first)
        return self.peaks[first] + slope * (batch - first)


@dataclass(frozen=True)
class BenchResults:
    """The results of all benchmarks."""

    sharder: SharderResult | NotMeasured
    loader: LoaderResult | NotMeasured
    trainer: StepResult | NotMeasured
    memory: MemoryResult | NotMeasured


class _UnusableResultError(Exception):
    """The message completes a sentence that begins with the file's name."""


def read_results(folder: Path, request: PlanRequest) -> BenchResults:
    """Read bench-shard, bench-io, bench-step and bench-memory.json, as written by those benchmarks.

    A file that is absent, unreadable, or measured with another image size or architecture becomes NotMeasured;
    nothing is raised.
    """

    def read(name: str, flags: str, parse: Callable[[Any, PlanRequest], Result]) -> Result | NotMeasured:
        """Parse one file. flags: the benchmark's flags that measure the requested configuration."""
        path = folder / f"bench-{name}.json"
        command = f"python -m bench.{name}{flags}" + (f" --json={path}" if folder != Path() else "")
        try:
            return parse(json.loads(path.read_text()), request)
        except FileNotFoundError:
            return NotMeasured(f"{path} does not exist", command)
        except _UnusableResultError as reason:
            return NotMeasured(f"{path} {reason}", command)
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            return NotMeasured(f"{path} can't be read: {type(error).__name__}: {error}", command)

    side = "" if request.short_side == SHORT_SIDE else f" --size={request.short_side}"
    arch = "" if request.arch == Config.arch else f" --arch={request.arch}"
    size = "" if request.size == Config.size else f" --size={request.size}"
    return BenchResults(
        read("shard", side, _parse_shard), read("io", f" SHARDS{size}", _parse_io),
        read("step", f" SHARDS --rows=ours{arch}{size}", _parse_step), read("memory", arch + size, _parse_memory),
    )  # fmt: skip


def _parse_shard(content: Any, request: PlanRequest) -> SharderResult:
    _check_settings(content, size=request.short_side)
    machine, most_workers = _parse_machine(content), dict[str, tuple[int, float]]()
    for row in content["rows"]:
        match = re.fullmatch(r"sharder, (\d+) workers?", row["name"])
        if match and int(match[1]) > most_workers.get(row["source"], (0, 0.0))[0]:
            most_workers[row["source"]] = int(match[1]), _positive(row["images_per_s"]["median"])
    if not most_workers:
        raise _UnusableResultError("has no row of the sharder")
    sources = []
    for name, (workers, rate) in most_workers.items():
        width, height = map(int, name.split()[0].split("x"))
        # The rate with the most workers, since the workers of a task also compete with each other.
        sources.append(Source(name, _positive(width * height / 1e6), rate / min(workers, machine.cores)))
    builds = [Build(int(one["rows"]), float(one["process_mb"]), float(one["largest_worker_mb"]))
              for one in content["memory"]]  # fmt: skip
    measured = (one for one in builds if all(map(_is_positive, astuple(one))))  # without /proc they are 0
    return SharderResult(machine, tuple(sources), tuple(measured))


def _parse_io(content: Any, request: PlanRequest) -> LoaderResult:
    _check_settings(content["settings"], size=request.size)
    rows = {row["name"]: row for row in content["rows"]}
    raw = "decode" not in rows and "dali-fused-raw" in rows  # raw shards, which have no decoding limit
    name = "dali-fused-raw" if raw else "dali-fused"
    if name not in rows:
        raise _UnusableResultError("has no row dali-fused, the loader that training uses")
    gpu_mb = _positive(rows["dali-fused-to-gpu"]["peak_mb"]) if "dali-fused-to-gpu" in rows else None
    return LoaderResult(_parse_machine(content), name, _positive(rows[name]["cpu_ms"]), str(content["shards"]), gpu_mb)


def _parse_step(content: Any, request: PlanRequest) -> StepResult:
    _check_settings(content["settings"], arch=request.arch, size=request.size)
    rates = [row["images_per_s"]["median"] for row in content["rows"] if row["name"] == "ours"]
    if not rates:
        raise _UnusableResultError("has no row ours")
    if content["machine"]["dali"] == "not installed":
        raise _UnusableResultError("was measured with torchvision's views, as DALI was not installed")
    return StepResult(_parse_machine(content), _positive(rates[0]), int(content["settings"]["batch_size"]))


def _parse_memory(content: Any, request: PlanRequest) -> MemoryResult:
    _check_settings(content["settings"], arch=request.arch, size=request.size)
    rows = [row for row in content["rows"] if row["mode"] == "plain"]
    peaks = {int(row["batch"]): _positive(row["peak_mb"]) for row in rows if row["peak_mb"] is not None}
    if not peaks:
        raise _UnusableResultError("has no plain step that fitted into memory")
    return MemoryResult(_parse_machine(content), peaks, max(float(row["there_mb"]) for row in rows))


def _check_settings(settings: Any, **planned: Any) -> None:
    for name, value in planned.items():
        if settings[name] != value:
            raise _UnusableResultError(f"was measured with --{name}={settings[name]}, but the plan uses {value}")


def _parse_machine(content: Any) -> Machine:
    machine = content["machine"]
    gpu = str(machine["gpu"])
    return Machine(str(machine["cpu"]), int(_positive(machine["cores"])), "" if gpu == "none" else gpu)


def _is_positive(value: Any) -> bool:
    return 1e-9 < float(value) < 1e15  # false for NaN


def _positive(value: Any) -> float:
    if not _is_positive(value):
        raise _UnusableResultError(f"contains {value}, expected a positive number")
    return float(value)
