"""A step over ranks: embeddings, gradients and BatchNorm of the joint batch, as if one process had it all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def gather(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    """Every rank's x, one after the other along `dim`, with its gradient; and where ours begins."""
    if not dist.is_initialized():
        return x, 0
    everyone: torch.Tensor = _Gather.apply(x)  # [world, *x.shape]
    return torch.cat(everyone.unbind(), dim), dist.get_rank() * x.shape[dim]


class _Gather(torch.autograd.Function):
    """x on each rank → all of them, [world, *x.shape]. Each rank's gradient is what all ranks' losses ask of its x."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        everyone = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, x.contiguous())
        return torch.stack(everyone)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _Sum(torch.autograd.Function):
    """x on each rank → their sum, on all."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def average(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Replace each gradient by its mean over ranks, and return the loss's: those of the joint batch.

    All in one sum, laid out alike at every start. DistributedDataParallel lays its buckets out anew after the first
    step, and three ranks' sums in another order would differ in the last bit after a resume.
    """
    if not dist.is_initialized():
        return loss
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [loss.to(gradients[0].dtype).reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *parts, mean = flat.split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    joint: torch.Tensor = mean[0].to(loss.dtype, copy=True)  # a view would keep all of flat
    return joint


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Have BatchNorm go over the views of all ranks: by PyTorch's own on a GPU, by ours on a CPU, where it has none."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, below the top
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d


class JointBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all ranks, as many on each; in training, in float32 at least."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] → normalised by the moments of [B·world, C, H, W]."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _mean_over_ranks(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance = _mean_over_ranks(centred.square().mean((0, 2, 3)))
        self._move(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _move(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """The running statistics, the unbiased variance among them, as nn.BatchNorm2d does."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)


def _mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Sum.apply(x)
    return total / dist.get_world_size()
