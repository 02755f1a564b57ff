"""Config: every setting of a run, validated once, saved in its checkpoints. The defaults are the published recipe."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pipeline.augmentation import Augmentation, ViewDevice
from shard.cli import check_numbers, flag_of
from shard.errors import InputError
from shard.manifest import parse_manifest
from train.presets import PRESETS, Preset, SamePatient

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Optimizer = Literal["adam", "adamw", "lars"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
FP16_WANTS_GPU = "--precision=fp16: wants a GPU; on a CPU use bf16 or fp32"
Device = Literal["auto", "cpu", "cuda"]

# Name → lowest, highest value.
LIMITS = {
    "size": (32, 1024), "epochs": (1, 10**5), "batch_size": (2, 10**6), "lr": (1e-9, 100.0),
    "temperature": (1e-3, 100.0), "crop_min": (1e-3, 1.0), "flip": (0.0, 1.0), "blur": (0.0, 1.0),
    "patient_positive": (0.0, 1.0), "warmup_epochs": (0, 10**5), "weight_decay": (0, 10.0), "clip": (0, 1e6),
    "micro_batch": (0, 10**6), "workers": (0, 4096), "seed": (0, 2**31 - 2**16), "limit_steps": (0, 10**12),
    "log_every": (1, 10**6), "checkpoint_minutes": (0, 10**5), "online_every": (0, 10**5),
}  # fmt: skip
# What may be another when a run goes on: it changes where and how fast the same numbers are computed, or which of
# them are written down. (Views made elsewhere differ, which the loader knows: its part of the fingerprint.)
MAY_CHANGE_ON_RESUME = {"shards", "out", "preset", "workers", "views", "recompute", "limit_steps", "log_every",
                        "checkpoint_minutes", "online_every", "resume", "accept"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a pre-training run. train.device.resolve replaces "auto" as device and precision.

    preset: the name of the recipe that the settings began from; the values themselves are beside it. crop_min: the
    least share of an image's area in a view; flip, blur: probabilities. patient_positive: as in Augmentation;
    same_patient: what the loss makes of a patient's other images.
    batch_size: images a step, over all ranks. clip: the longest a gradient may be, 0 for any. micro_batch: images at
    a time on each rank, 0 for all. warmup_epochs may be a part of one. accept: differences a resumed run may have.
    """

    shards: Path
    out: Path
    dali: bool = False
    arch: Arch = "resnet50"
    size: int = 224
    epochs: int = 100
    batch_size: int = 64
    lr: float = 3e-4
    preset: Preset = "published"
    temperature: float = 0.5
    crop_min: float = Augmentation.crop_area[0]
    flip: float = Augmentation.flip_probability
    blur: float = Augmentation.blur_probability
    patient_positive: float = Augmentation.patient_positive
    same_patient: SamePatient = "negatives"
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    recompute: bool = False
    micro_batch: int = 0
    sync_batchnorm: bool = True
    precision: Precision = "auto"
    device: Device = "auto"
    compile: bool = False
    views: ViewDevice = "auto"
    workers: int = 0
    seed: int = 0
    limit_steps: int = 0
    log_every: int = 50
    checkpoint_minutes: float = 10.0
    online_every: int = 10
    resume: str = "auto"
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(**{name: (getattr(self, name), *limits) for name, limits in LIMITS.items()})
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise InputError(f"--micro-batch={self.micro_batch}: does not divide --batch-size={self.batch_size}; "
                             f"{divisors(self.batch_size)} do")
        if self.warmup_epochs > self.epochs:
            raise InputError(f"--warmup-epochs={self.warmup_epochs:g}: more than --epochs={self.epochs}; lower it")
        if self.precision == "fp16" and self.device == "cpu":
            raise InputError(FP16_WANTS_GPU)
        if self.compile and self.recompute:
            raise InputError("--compile --recompute: the compiler decides itself what to compute again; drop one")
        if self.compile and shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
            raise InputError(f"--compile: PyTorch compiles with {compiler}, which is not here; Debian: apt install g++")

    @property
    def backend(self) -> Literal["dali", "torchvision"]:
        """The loader's backend."""
        return "dali" if self.dali else "torchvision"

    def plain(self) -> dict[str, str | int | float | bool]:
        """All settings as plain values, as a checkpoint keeps them; paths are absolute: they are read anywhere."""
        plain = {name: str(value.absolute()) if isinstance(value, Path) else
                 ",".join(value) if isinstance(value, tuple) else value
                 for name, value in asdict(self).items()}  # fmt: skip
        if self.resume not in ("auto", "never"):
            plain["resume"] = str(Path(self.resume).expanduser().absolute())
        return plain

    def decisive(self) -> dict[str, str | int | float | bool]:
        """The settings that change the weights a step gives; a resumed run must agree in all of them."""
        decisive = {name: value for name, value in self.plain().items() if name not in MAY_CHANGE_ON_RESUME}
        if self.schedule == "constant":  # which has no end
            decisive["epochs"] = "any"
        return decisive


def check_batch(shards: Path, batch_size: int) -> None:
    """Raise InputError where the shards are none, or hold fewer training images than a batch."""
    images = parse_manifest(shards).images("train")
    if images < batch_size:
        raise InputError(f"--batch-size={batch_size}: {shards} has {images} images in split 'train', fewer than a "
                         f"batch; lower it to {images} or less")  # fmt: skip


def train_command(settings: dict[str, Any]) -> str:
    """The command that makes a run of these plain settings, to its end: each that is not the default."""
    defaults = {field.name: field.default for field in fields(Config)} | PRESETS[settings.get("preset", "published")]
    given = {name: value for name, value in settings.items()
             if name in defaults and value not in (defaults[name], "")}  # fmt: skip
    given.pop("limit_steps", None)
    return " ".join(["python -m train", *(flag_of(name) + ("" if value is True else f"={shlex.quote(str(value))}")
                                          for name, value in given.items())])  # fmt: skip


def divisors(number: int) -> str:
    """The largest few numbers that divide `number`, for a message."""
    fitting = [part for part in range(1, number // 2 + 1) if number % part == 0][-4:]
    return ", ".join(map(str, fitting))
