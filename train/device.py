"""The device and precision of a run, and the settings that make training fast there."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace

import torch

from shard.errors import InputError
from train.config import FP16_NEEDS_GPU, Config, Device, Precision

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # mallopt(3)
TOP_PAD_BYTES = 1 << 28


def resolve(config: Config) -> Config:
    """Replace "auto" as device and precision by what this machine offers, for checkpoints to record.

    Raises InputError if the machine lacks what `config` asks for.
    """
    device = resolve_device(config.device)
    return replace(config, device=device, precision=resolve_precision(config.precision, device))


def resolve_device(device: Device) -> Device:
    """Resolve "auto" to cuda if there is a GPU, else cpu. Raises InputError if cuda is requested without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: PyTorch finds no GPU; use --device=cpu, or check nvidia-smi")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def resolve_precision(precision: Precision, device: Device) -> Precision:
    """Resolve "auto" to fp16 on a GPU, to bf16 on a CPU that supports it, else to fp32.

    Raises InputError for fp16 on a CPU.
    """
    if precision == "fp16" and device == "cpu":
        raise InputError(FP16_NEEDS_GPU)
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    has_mkldnn = torch.backends.mkldnn.is_available()
    return "bf16" if has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision; disabled for fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def configure_backend(device: torch.device) -> None:
    """Set up this process for fast training: TF32 and cuDNN benchmarking on a GPU, glibc's malloc on a CPU."""
    if device.type == "cuda":
        if device.index is not None:  # set_device refuses "cuda" without an index
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        _retain_freed_memory()


def _retain_freed_memory() -> None:
    """Make glibc keep freed memory.

    By default it returns large tensors to the system, which clears their pages again in the next step. That takes a
    third of a step's time (python -m bench.step).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)
