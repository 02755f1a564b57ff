"""BatchNorm over the images of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shard.errors import InputError
from train.distributed.collectives import all_reduce_mean

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm of `model`, in place, by one over the views of all ranks.

    PyTorch's SyncBatchNorm on a GPU, or timm's for its BatchNorm with an activation. PyTorch has none for a CPU;
    SyncBatchNorm and SyncBatchNormAct replace it there. Raises InputError for a layer with running statistics that none
    of them replaces.
    """
    norms = [module for module in model.modules() if "running_var" in dict(module.named_buffers(recurse=False))]
    for norm in norms:
        if type(norm) not in PLAIN and not _has_activation(norm):
            raise InputError(f"{type(norm).__name__} in the encoder can't be synchronised over ranks; train with "
                             "--sync-batchnorm=false, so that each rank normalises its own views")  # fmt: skip
    if device.type == "cuda":
        # Both replace the children of `model` in place. PyTorch's would drop the activations.
        if any(map(_has_activation, norms)):
            import timm.layers  # here because timm takes a second

            timm.layers.convert_sync_batchnorm(model)  # type: ignore[attr-defined,no-untyped-call]
        else:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for norm in norms:
        norm.__class__ = SyncBatchNormAct if _has_activation(norm) else SyncBatchNorm


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
        others = (0, *range(2, x.ndim))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_reduce_mean(wide.mean(others))
        centred = wide - _per_channel(mean, x)
        variance = all_reduce_mean(centred.square().mean(others))
        self._update_running_stats(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * _per_channel(scale, x)).to(x.dtype)
        return (centred * _per_channel(self.weight * scale, x) + _per_channel(self.bias, x)).to(x.dtype)

    def _update_running_stats(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Update the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d over the images of all ranks: with its dropout and activation."""

    drop: Any
    act: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [B, C, H, W] and apply the activation."""
        activated: torch.Tensor = self.act(self.drop(super().forward(x)))
        return activated


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Shape values [C] to multiply x [B, C, …]."""
    return values.view(-1, *(1,) * (x.ndim - 2))
