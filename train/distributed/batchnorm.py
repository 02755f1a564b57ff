"""BatchNorm over the images of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shard.errors import InputError
from train.distributed.batchnorm_kernels import sync_batch_norm
from train.distributed.collectives import all_reduce_mean

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm of `model`, in place, by one over the views of all ranks.

    On a GPU these use PyTorch's kernels; PyTorch has none for a CPU. timm's BatchNorm keeps its activation. Raises
    InputError for any other layer with running statistics.
    """
    norms = [module for module in model.modules() if "running_var" in dict(module.named_buffers(recurse=False))]
    for norm in norms:
        if type(norm) not in PLAIN and not _has_activation(norm):
            raise InputError(f"{type(norm).__name__} in the encoder can't be synchronised over ranks; train with "
                             "--sync-batchnorm=false, so that each rank normalises its own views")  # fmt: skip
    on_gpu = device.type == "cuda"
    plain, with_activation = (GPUSyncBatchNorm, GPUSyncBatchNormAct) if on_gpu else (SyncBatchNorm, SyncBatchNormAct)
    for norm in norms:
        norm.__class__ = with_activation if _has_activation(norm) else plain


def _has_activation(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d, which applies dropout and an activation after BatchNorm."""
    return isinstance(norm, nn.BatchNorm2d) and type(norm).__name__ == "BatchNormAct2d"


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the images of all ranks, the same number on each. In training it computes in float32 or wider."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Allow any number of dimensions, like PyTorch's SyncBatchNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [B, C, …] by the moments of the joint batch [B·world, C, …]."""
        if not self.training:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return self.normalise(x)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x in training mode, by operators with gradients."""
        others = (0, *range(2, x.ndim))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_reduce_mean(wide.mean(others))
        centred = wide - _per_channel(mean, x)
        variance = all_reduce_mean(centred.square().mean(others))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        self.update_running_stats(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * _per_channel(scale, x)).to(x.dtype)
        return (centred * _per_channel(self.weight * scale, x) + _per_channel(self.bias, x)).to(x.dtype)

    def update_running_stats(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Update the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if self.momentum is None:  # the mean of all batches; .item() on the count would wait for the GPU
                running.lerp_(value.to(running.dtype), (1 / self.num_batches_tracked).to(running.dtype))
            else:
                running.lerp_(value.to(running.dtype), self.momentum)


class GPUSyncBatchNorm(SyncBatchNorm):
    """SyncBatchNorm by PyTorch's CUDA kernels. The statistics of half-precision inputs are in float32."""

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x in training mode."""
        if torch.compiler.is_compiling():  # torch.compile can't trace the kernels, but fuses the operators
            return super().normalise(x)
        assert self.running_mean is not None and self.running_var is not None
        if self.momentum is not None:
            return sync_batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum,
                                   self.eps)  # fmt: skip
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        normalised = sync_batch_norm(x, self.weight, self.bias, mean, variance, 1.0, self.eps)
        self.update_running_stats(mean, variance)
        return normalised


class _WithActivation(nn.Module):
    """The dropout and activation of timm's BatchNormAct2d, after a BatchNorm."""

    drop: Any
    act: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [B, C, H, W] and apply the activation."""
        activated: torch.Tensor = self.act(self.drop(super().forward(x)))
        return activated


class SyncBatchNormAct(_WithActivation, SyncBatchNorm):
    """timm's BatchNormAct2d over the images of all ranks."""


class GPUSyncBatchNormAct(_WithActivation, GPUSyncBatchNorm):
    """timm's BatchNormAct2d over the images of all ranks, by PyTorch's CUDA kernels."""


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Shape values [C] to multiply x [B, C, …]."""
    return values.view(-1, *(1,) * (x.ndim - 2))
