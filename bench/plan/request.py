"""PlanRequest: the archive, training and cluster to plan for, checked once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from shard.cli import check_numbers
from shard.errors import InputError
from train.config import LIMITS, Arch

SHORT_SIDE, SHARD_SIZE = 256, 1000  # pixels, and images per shard: the defaults of python -m shard build
# Name → lowest, highest value.
OWN_LIMITS = {"images": (1, 10**9), "tasks": (1, 10**5), "cores": (1, 4096), "short_side": (16, 4096),
              "gpus": (1, 10**5), "gpus_per_node": (1, 64), "safety": (1, 100)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The flags of `python -m bench.plan`.

    source: the size of a radiograph, WxH pixels. tasks, cores: of the sharder's job array, and of each task.
    short_side: of the images in the shards; size: the side of the views. batch_size: images a step on all GPUs
    together. gpu_rate: images/s of training on one GPU as stated by the user, None to use the measured rate. safety: a
    factor on time and memory. Raises InputError if a value is out of range or the GPUs can't be divided as requested.
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
            raise InputError(f"--source={self.source}: expects a radiograph's size in pixels, as in --source=2320x2828")
        if self.gpu_rate is not None and not 0 < self.gpu_rate < math.inf:
            raise InputError(f"--gpu-rate={self.gpu_rate}: expects images/s, a number above 0")
        if self.gpus % self.used_gpus_per_node:
            raise InputError(f"--gpus={self.gpus}: does not fill nodes of --gpus-per-node={self.gpus_per_node}; use "
                             f"{self.gpus // self.gpus_per_node * self.gpus_per_node}")  # fmt: skip
        if self.batch_size % self.gpus:
            raise InputError(f"--batch-size={self.batch_size}: the batch of all GPUs does not divide by {self.gpus}; "
                             f"use {max(1, self.batch_size // self.gpus) * self.gpus}")  # fmt: skip
        if self.batch_size > self.images:
            raise InputError(f"--batch-size={self.batch_size}: more than --images={self.images}; lower it")

    @property
    def sides(self) -> tuple[int, int]:
        """The sides of a radiograph in pixels, the short one first."""
        short, long = sorted(map(int, self.source.split("x")))
        return short, long

    @property
    def megapixels(self) -> float:
        """The megapixels of a radiograph."""
        return self.sides[0] * self.sides[1] / 1e6

    @property
    def shards(self) -> tuple[int, ...]:
        """The number of images in each shard of the archive."""
        full, rest = divmod(self.images, SHARD_SIZE)
        return (SHARD_SIZE,) * full + ((rest,) if rest else ())

    @property
    def used_gpus_per_node(self) -> int:
        """The GPUs that training uses on each node."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """The nodes that training uses."""
        return self.gpus // self.used_gpus_per_node

    @property
    def images_per_gpu(self) -> int:
        """The images a step on each GPU."""
        return self.batch_size // self.gpus
