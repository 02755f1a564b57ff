"""Rates: what other benches measured, read from their JSON; what is missing names the command that measures it."""

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

Read = TypeVar("Read")


@dataclass(frozen=True)
class Missing:
    """Why a figure can't be had, and the command that measures it."""

    reason: str
    command: str

    def __str__(self) -> str:
        return f"not measured ({self.reason}); run: {self.command}"


@dataclass(frozen=True)
class Machine:
    """What was measured on; gpu is blank where there was none."""

    cpu: str
    cores: int
    gpu: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.gpu or 'no GPU'}"


@dataclass(frozen=True)
class Source:
    """Images/s that one core shards, of a size."""

    name: str
    megapixels: float
    images_per_s: float


@dataclass(frozen=True)
class Build:
    """Peak memory, in MB of 2**20, of a build of a table of so many rows: of its process, and of its largest worker."""

    rows: int
    process_mb: float
    worker_mb: float


@dataclass(frozen=True)
class Sharder:
    """bench-shard.json."""

    machine: Machine
    sources: tuple[Source, ...]
    builds: tuple[Build, ...]

    def nearest(self, megapixels: float) -> Source:
        """The source of the nearest size, by the ratio of megapixels; of several, the slowest."""
        return min(self.sources, key=lambda one: (abs(math.log(one.megapixels / megapixels)), one.images_per_s))


@dataclass(frozen=True)
class Loader:
    """bench-io.json: the row that trains. cpu_ms: of an image; shards: their fingerprint; gpu_mb: main memory of a
    process that carries its views to a GPU, None where there was no GPU."""

    machine: Machine
    row: str
    cpu_ms: float
    shards: str
    gpu_mb: float | None


@dataclass(frozen=True)
class Trainer:
    """bench-step.json: images/s of `python -m train --dali` on one GPU or, where there was none, the CPU."""

    machine: Machine
    images_per_s: float
    batch: int


@dataclass(frozen=True)
class Memory:
    """bench-memory.json: batch → peak MB of a plain step, of a GPU or the process; there_mb: what could be had."""

    machine: Machine
    peaks: dict[int, float]
    there_mb: float

    def at(self, batch: int) -> float | None:
        """MB of a batch: measured, or on the line through the two measured nearest to it; None where there is one."""
        if batch in self.peaks:
            return self.peaks[batch]
        if len(self.peaks) < 2:
            return None
        one, two = sorted(self.peaks, key=lambda measured: (abs(measured - batch), measured))[:2]
        return self.peaks[one] + (self.peaks[two] - self.peaks[one]) / (two - one) * (batch - one)


@dataclass(frozen=True)
class Rates:
    """What there is of each bench."""

    sharder: Sharder | Missing
    loader: Loader | Missing
    trainer: Trainer | Missing
    memory: Memory | Missing


class _Unfit(Exception):
    """What is wrong with a file, in words that follow its name."""


def read_rates(folder: Path, request: PlanRequest) -> Rates:
    """Read bench-shard, bench-io, bench-step and bench-memory.json, as those benches name and write them.

    What is absent, unreadable, or of another size or network than is wished for, is Missing; nothing raises.
    """

    def read(name: str, flags: str, parse: Callable[[Any, PlanRequest], Read]) -> Read | Missing:
        """What a bench left, or why it can't be had; flags: to measure what is wished for."""
        path = folder / f"bench-{name}.json"
        command = f"python -m bench.{name}{flags}" + (f" --json={path}" if folder != Path() else "")
        try:
            return parse(json.loads(path.read_text()), request)
        except FileNotFoundError:
            return Missing(f"{path} is not there", command)
        except _Unfit as reason:
            return Missing(f"{path} {reason}", command)
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            return Missing(f"{path} can't be read: {type(error).__name__}: {error}", command)

    side = "" if request.short_side == SHORT_SIDE else f" --size={request.short_side}"
    arch = "" if request.arch == Config.arch else f" --arch={request.arch}"
    size = "" if request.size == Config.size else f" --size={request.size}"
    return Rates(read("shard", side, _sharder), read("io", f" SHARDS{size}", _loader),
                 read("step", f" SHARDS --rows=ours{arch}{size}", _trainer), read("memory", arch + size, _memory))


def _sharder(content: Any, request: PlanRequest) -> Sharder:
    _check(content, size=request.short_side)
    machine, most = _machine(content), dict[str, tuple[int, float]]()
    for row in content["rows"]:
        found = re.fullmatch(r"sharder, (\d+) workers?", row["name"])
        if found and int(found[1]) > most.get(row["source"], (0, 0.0))[0]:
            most[row["source"]] = int(found[1]), _positive(row["images_per_s"]["median"])
    if not most:
        raise _Unfit("has no row of the sharder")
    sources = []
    for name, (workers, rate) in most.items():
        width, height = map(int, name.split()[0].split("x"))
        # With the most workers there were: what they take from one another, a task's do as well.
        sources.append(Source(name, _positive(width * height / 1e6), rate / min(workers, machine.cores)))
    builds = [Build(int(one["rows"]), float(one["process_mb"]), float(one["largest_worker_mb"]))
              for one in content["memory"]]  # fmt: skip
    measured = (one for one in builds if all(map(_is_positive, astuple(one))))  # without /proc they are 0
    return Sharder(machine, tuple(sources), tuple(measured))


def _loader(content: Any, request: PlanRequest) -> Loader:
    _check(content["settings"], size=request.size)
    rows = {row["name"]: row for row in content["rows"]}
    raw = "decode" not in rows and "dali-fused-raw" in rows  # of raw shards, which need no decoder
    name = "dali-fused-raw" if raw else "dali-fused"
    if name not in rows:
        raise _Unfit("has no row dali-fused, which is what trains")
    gpu_mb = _positive(rows["dali-fused-to-gpu"]["peak_mb"]) if "dali-fused-to-gpu" in rows else None
    return Loader(_machine(content), name, _positive(rows[name]["cpu_ms"]), str(content["shards"]), gpu_mb)


def _trainer(content: Any, request: PlanRequest) -> Trainer:
    _check(content["settings"], arch=request.arch, size=request.size)
    rates = [row["images_per_s"]["median"] for row in content["rows"] if row["name"] == "ours"]
    if not rates:
        raise _Unfit("has no row ours")
    if content["machine"]["dali"] == "not installed":
        raise _Unfit("is of torchvision's views, as DALI was not installed")
    return Trainer(_machine(content), _positive(rates[0]), int(content["settings"]["batch_size"]))


def _memory(content: Any, request: PlanRequest) -> Memory:
    _check(content["settings"], arch=request.arch, size=request.size)
    rows = [row for row in content["rows"] if row["mode"] == "plain"]
    peaks = {int(row["batch"]): _positive(row["peak_mb"]) for row in rows if row["peak_mb"] is not None}
    if not peaks:
        raise _Unfit("has no plain step that fitted")
    return Memory(_machine(content), peaks, max(float(row["there_mb"]) for row in rows))


def _check(settings: Any, **planned: Any) -> None:
    for name, value in planned.items():
        if settings[name] != value:
            raise _Unfit(f"is of --{name}={settings[name]}, and {value} is planned")


def _machine(content: Any) -> Machine:
    machine = content["machine"]
    gpu = str(machine["gpu"])
    return Machine(str(machine["cpu"]), int(_positive(machine["cores"])), "" if gpu == "none" else gpu)


def _is_positive(value: Any) -> bool:
    return 1e-9 < float(value) < 1e15  # NaN is not either


def _positive(value: Any) -> float:
    if not _is_positive(value):
        raise _Unfit(f"has {value} where a number above 0 is wanted")
    return float(value)
