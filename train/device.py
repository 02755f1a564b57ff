"""The device and precision of a run, and the settings that make training fast there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from shard.errors import InputError
from shard.machine import retain_freed_memory
from train.config import FP16_NEEDS_GPU, Config, Device, Precision
from train.usable_gpu import explain_missing_gpu, explain_missing_kernels, given_gpu, sees_gpu

ON_CPU = "to compute on the CPU, give --device=cpu or set CUDA_VISIBLE_DEVICES to nothing"
Model = TypeVar("Model", bound=nn.Module)


def resolve(config: Config) -> Config:
    """Replace "auto" as device and precision by what this machine offers, for checkpoints to record.

    Raises InputError if the machine lacks what `config` asks for.
    """
    device = resolve_device(config.device)
    return replace(config, device=device, precision=resolve_precision(config.precision, device))


def resolve_device(device: Device) -> Device:
    """Resolve "auto" to cuda if PyTorch finds a GPU, and to cpu if this process was given none.

    Raises InputError with the reason and the cure if a GPU was requested or given and PyTorch can't use it: a job on
    a node with GPUs would otherwise train on its CPU unnoticed.
    """
    if device == "cpu":
        return device
    if sees_gpu():
        if problem := explain_missing_kernels():
            raise InputError(f"{problem}; {ON_CPU}")
        return "cuda"
    given = given_gpu()
    if device == "auto" and not given:
        return "cpu"
    asked = "--device=cuda: PyTorch finds no GPU" if device == "cuda" else "PyTorch finds no GPU"
    raise InputError(f"{asked}{given and f', but this process was given one ({given})'}: {explain_missing_gpu()}; "
                     f"{ON_CPU}")  # fmt: skip


def resolve_precision(precision: Precision, device: Device) -> Precision:
    """Resolve "auto" to fp16 on a GPU, to bf16 on a CPU with instructions for it, else to fp32.

    Raises InputError for fp16 on a CPU.
    """
    if precision == "fp16" and device == "cpu":
        raise InputError(FP16_NEEDS_GPU)
    if precision != "auto":
        return precision
    if device == "cuda":
        return "fp16"
    return "bf16" if _has_bf16_instructions() else "fp32"


def _has_bf16_instructions() -> bool:
    """Whether this CPU computes in bf16.

    PyTorch reports bf16 as supported on every x86 CPU with AVX-512, and emulates instructions that are missing. A step
    in bf16 then takes longer than in fp32 (ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python -m bench.precision).
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision; disabled for fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def fit_to_device(model: Model, device: torch.device, precision: Precision) -> Model:
    """Move a model to its device, in the memory format and with the precisions that are fastest there.

    In bf16 on a CPU, depthwise convolutions compute in fp32: oneDNN lacks bf16 kernels for the gradients of many of
    their shapes, and its general kernels take up to 27 times as long (docs/performance.md).
    """
    if all(parameter.ndim < 5 for parameter in model.parameters()):  # timm's LambdaNets have a Conv3d
        model = model.to(memory_format=torch.channels_last)
    model = model.to(device)
    if device.type == "cpu" and precision == "bf16":
        keep_in_fp32(depthwise_convs(model))
    return model


def describe_precision(asked: Precision, precision: Precision, device: torch.device, model: nn.Module) -> str:
    """Describe the precision of a model from fit_to_device, and why it was chosen. asked: the flag --precision."""
    reasons = {"fp16": "the default on a GPU", "bf16": "this CPU has instructions for it",
               "fp32": "this CPU has no instructions for bf16"}  # fmt: skip
    text = f"{precision}: {reasons[precision] if asked == 'auto' else 'set by --precision'}"
    kept = len(depthwise_convs(model)) if device.type == "cpu" and precision == "bf16" else 0
    return f"{text}; its {kept} depthwise convolutions compute in fp32, which is faster" if kept else text


def depthwise_convs(model: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a model that filter each channel by itself."""
    return [module for module in model.modules()
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1]  # fmt: skip


def keep_in_fp32(modules: Sequence[nn.Module]) -> None:
    """Make modules compute in float32, and return float32, also within autocast."""
    for module in modules:
        module.forward = partial(_forward_in_fp32, module.forward)


def _forward_in_fp32(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def configure_backend(device: torch.device) -> None:
    """Set up this process for fast training: TF32 and cuDNN benchmarking on a GPU, glibc's malloc on a CPU."""
    if device.type == "cuda":
        if device.index is not None:  # set_device refuses "cuda" without an index
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        retain_freed_memory()
