"""PlanRequest: the archive, training and cluster to plan for, checked once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from bench.output import CHEXPERT_IMAGES
from shard.errors import InputError
from shard.flags import Flag, check_ranges, flag_in
from train.architectures import check_arch
from train.config import Config

SHORT_SIDE, SHARD_SIZE = 256, 1000  # pixels, and images per shard: the defaults of python -m shard build

@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The archive, training and cluster to plan for. The fields are flags of `python -m bench.plan`.

    Raises InputError if a value is out of range or the GPUs can't be divided as requested.
    """

    images: Annotated[int, Flag("Number of radiographs.", "archive", 1, 10**9)] = CHEXPERT_IMAGES
    source: Annotated[str, Flag("Size of a radiograph in pixels.", "archive", metavar="WxH")] = "2320x2828"
    tasks: Annotated[int, Flag("Tasks of the job array that builds shards.", "archive", 1, 10**5)] = 16
    cores: Annotated[int, Flag("Cores of each task.", "archive", 1, 4096)] = 4
    short_side: Annotated[int, Flag("Short side of a stored image in pixels.", "archive", 16, 4096)] = SHORT_SIDE
    gpus: Annotated[int, Flag("Number of GPUs.", "training", 1, 10**5)] = 1
    gpus_per_node: Annotated[int, Flag("Largest number of GPUs on a node.", "training", 1, 64)] = 8
    gpu_rate: Annotated[float | None, Flag("Images/s of training on one GPU, if not measured. It can't be inferred "
                                           "from a CPU's rate.", "training", default="as measured")] = None
    arch: Annotated[str, flag_in(Config, "arch", group="training")] = Config.arch
    size: Annotated[int, flag_in(Config, "size", group="training")] = Config.size
    epochs: Annotated[int, flag_in(Config, "epochs", group="training")] = Config.epochs
    batch_size: Annotated[int, flag_in(Config, "batch_size", help="Images per step, on all GPUs together.",
                                       group="training", default=f"{Config.batch_size} per GPU")]
    safety: Annotated[float, Flag("Factor on the requested time and memory.", "training", 1, 100)] = 1.5

    @classmethod
    def from_flags(cls, *, batch_size: int = 0, **given: Any) -> PlanRequest:
        """Build from the flags that were given. The batch grows with the GPUs by default."""
        return cls(batch_size=batch_size or Config.batch_size * given.get("gpus", cls.gpus), **given)

    def __post_init__(self) -> None:
        check_ranges(PlanRequest, vars(self))
        check_arch(self.arch, self.size)
        if not re.fullmatch(r"[1-9]\d{1,5}x[1-9]\d{1,5}", self.source):
            raise InputError(f"--source={self.source}: expects a radiograph's size in pixels, as in --source=2320x2828")
        if self.gpu_rate is not None and not 0 < self.gpu_rate < math.inf:
            raise InputError(f"--gpu-rate={self.gpu_rate}: expects images/s, a number above 0")
        if self.gpus % self.used_gpus_per_node:
            raise InputError(f"--gpus={self.gpus}: not a multiple of --gpus-per-node={self.gpus_per_node}; use "
                             f"{self.gpus // self.gpus_per_node * self.gpus_per_node}")  # fmt: skip
        if self.batch_size % self.gpus:
            raise InputError(f"--batch-size={self.batch_size}: not divisible by the {self.gpus} GPUs; "
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
        """The number of GPUs used on each node."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """The number of nodes used for training."""
        return self.gpus // self.used_gpus_per_node

    @property
    def images_per_gpu(self) -> int:
        """The number of images per step on each GPU."""
        return self.batch_size // self.gpus
