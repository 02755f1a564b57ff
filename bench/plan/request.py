"""PlanRequest: what bench.plan is asked about, checked once. Need: the resources that one step takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from shard.cli import check_numbers
from shard.errors import InputError
from train.config import LIMITS, Arch

SHORT_SIDE, SHARD_SIZE = 256, 1000  # pixels, and images in a shard, as python -m shard build has them
# Name → lowest, highest value.
OWN_LIMITS = {"images": (1, 10**9), "tasks": (1, 10**5), "cores": (1, 4096), "short_side": (16, 4096),
              "gpus": (1, 10**5), "gpus_per_node": (1, 64), "safety": (1, 100)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is planned, as the flags of `python -m bench.plan` say it.

    source: a radiograph's size, WxH pixels. tasks, cores: of the sharder's job array, and of each task. short_side: of
    the images in the shards; size: the views' side. batch_size: images a step on all GPUs. gpu_rate: images/s that one
    trains on as the user states it, None where that is left to measurement. safety: a factor on time and memory.
    """

    images: int
    source: str
    tasks: int
    cores: int
    short_side: int
    gpus: int
    gpus_per_node: int
    gpu_rate: float | None
    arch: Arch
    size: int
    epochs: int
    batch_size: int
    safety: float

    def __post_init__(self) -> None:
        limits = {**OWN_LIMITS, **{name: LIMITS[name] for name in ("size", "epochs", "batch_size")}}
        check_numbers(**{name: (getattr(self, name), *bounds) for name, bounds in limits.items()})
        if not re.fullmatch(r"[1-9]\d{1,5}x[1-9]\d{1,5}", self.source):
            raise InputError(f"--source={self.source}: wants a radiograph's size in pixels, as in --source=2320x2828")
        if self.gpu_rate is not None and not 0 < self.gpu_rate < math.inf:
            raise InputError(f"--gpu-rate={self.gpu_rate}: wants images/s, a number above 0")
        if self.gpus % self.gpus_a_node:
            raise InputError(f"--gpus={self.gpus}: does not fill nodes of --gpus-per-node={self.gpus_per_node}; use "
                             f"{self.gpus // self.gpus_per_node * self.gpus_per_node}")  # fmt: skip
        if self.batch_size % self.gpus:
            raise InputError(f"--batch-size={self.batch_size}: the batch of all GPUs, and {self.gpus} can't share it; "
                             f"use {max(1, self.batch_size // self.gpus) * self.gpus}")  # fmt: skip
        if self.batch_size > self.images:
            raise InputError(f"--batch-size={self.batch_size}: more than --images={self.images}; lower it")

    @property
    def sides(self) -> tuple[int, int]:
        """Of a radiograph, the short one first."""
        short, long = sorted(map(int, self.source.split("x")))
        return short, long

    @property
    def megapixels(self) -> float:
        """Of a radiograph."""
        return self.sides[0] * self.sides[1] / 1e6

    @property
    def shards(self) -> tuple[int, ...]:
        """The images of each shard of the archive."""
        whole, rest = divmod(self.images, SHARD_SIZE)
        return (SHARD_SIZE,) * whole + ((rest,) if rest else ())

    @property
    def gpus_a_node(self) -> int:
        """That training has."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """That training has."""
        return self.gpus // self.gpus_a_node

    @property
    def images_a_gpu(self) -> int:
        """Images a step on each GPU."""
        return self.batch_size // self.gpus


@dataclass
class Need:
    """What a step takes: hours from begin to end, GB of 10**9 bytes on the disk, MB of 2**20 bytes of main memory on a
    node; cores of a task, or beside a GPU. What is None is not known, and `missing` says why; `assumed` says by what
    the rest is, and at_most names the bounds among it."""

    name: str
    hours: float | None = None
    core_hours: float | None = None
    gpu_hours: float | None = None
    disk_gb: float | None = None
    memory_mb: float | None = None
    cores: int | None = None
    shape: str = ""
    assumed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    at_most: list[str] = field(default_factory=list)


def count(number: int, noun: str) -> str:
    """Such as "1 node" and "8 GPUs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
