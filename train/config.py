"""Config: every setting of a run, validated once, saved in its checkpoints. The defaults are the published recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from pipeline.loader import Where
from shard.errors import InputError

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Config:
    """Settings of a pre-training run; precision and device are resolved, never "auto"."""

    shards: Path
    out: Path
    dali: bool = False
    arch: Arch = "resnet50"
    size: int = 224
    epochs: int = 100
    batch_size: int = 64
    lr: float = 3e-4
    temperature: float = 0.5
    precision: Precision = "auto"
    device: Device = "auto"
    views: Where = "auto"
    workers: int = 0
    seed: int = 0
    limit_steps: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (
            ("size", 32, 1024), ("epochs", 1, 10**5), ("batch_size", 2, 10**5), ("workers", 0, 4096),
            ("seed", 0, 2**31 - 2**16), ("limit_steps", 0, 10**12), ("log_every", 1, 10**6), ("lr", 1e-9, 100.0),
            ("temperature", 1e-3, 100.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')}={value}: wants a number from {low} to {high}")
        # Frozen for everyone else: "auto" is settled here, so that a checkpoint says what really ran.
        object.__setattr__(self, "device", resolve_device(self.device))
        object.__setattr__(self, "precision", _resolve_precision(self.precision, self.device))

    @property
    def backend(self) -> Literal["dali", "torchvision"]:
        """The loader's backend."""
        return "dali" if self.dali else "torchvision"

    def plain(self) -> dict[str, str | int | float | bool]:
        """All settings as plain values, as a checkpoint keeps them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def decisive(self) -> dict[str, object]:
        """The settings that change the weights a step gives; a resumed run must agree in all of them."""
        names = ("dali", "arch", "size", "batch_size", "lr", "temperature", "precision", "device", "seed")
        return {name: getattr(self, name) for name in names}


def resolve_device(device: Device) -> Device:
    """Settle "auto": cuda where there is a GPU, else cpu. Raises InputError where a wanted GPU is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: PyTorch sees no GPU here; use --device=cpu or see nvidia-smi")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _resolve_precision(precision: Precision, device: Device) -> Precision:
    if precision == "fp16" and device == "cpu":
        raise InputError("--precision=fp16: wants a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return "bf16" if has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
