"""The device a run computes on, its precision, and what makes it fast there."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace

import torch

from shard.errors import InputError
from train.config import FP16_NEEDS_GPU, Config, Device, Precision

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # mallopt(3)
MORE_AT_ONCE = 1 << 28  # bytes


def resolve(config: Config) -> Config:
    """Replace "auto" as device and precision by what this machine offers, so that a checkpoint says what really ran.

    Raises InputError if the machine lacks what `config` asks for.
    """
    device = resolve_device(config.device)
    return replace(config, device=device, precision=resolve_precision(config.precision, device))


def resolve_device(device: Device) -> Device:
    """Settle "auto": cuda where there is a GPU, else cpu. Raises InputError where a wanted GPU is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: PyTorch sees no GPU here; use --device=cpu or see nvidia-smi")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def resolve_precision(precision: Precision, device: Device) -> Precision:
    """Settle "auto": fp16 on a GPU, bf16 on a CPU that computes in it, else fp32. Raises InputError for fp16 on one."""
    if precision == "fp16" and device == "cpu":
        raise InputError(FP16_NEEDS_GPU)
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    has_mkldnn = torch.backends.mkldnn.is_available()
    return "bf16" if has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Automatic mixed precision in that dtype; fp32 is none."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def make_fast(device: torch.device) -> None:
    """Settings of this process under which training is fast: TF32 in convolutions, and the fastest of those, on a GPU;
    on a CPU memory that is kept."""
    if device.type == "cuda":
        if device.index is not None:  # set_device refuses "cuda" without an index
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        _keep_memory()


def _keep_memory() -> None:
    """Have the C library keep what is freed. By default it gives large tensors' memory back to the system, which then
    clears page after page when the next step asks for as much: a third of a step's time (python -m bench.step)."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # the C library may be another than glibc
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, MORE_AT_ONCE)
