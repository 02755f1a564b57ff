"""Collectives with gradients: every rank computes what one process would compute on the joint batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def all_gather(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    """Concatenate the ranks' x along `dim`, with gradients; also return the index at which this rank's x begins."""
    if not dist.is_initialized():
        return x, 0
    gathered: torch.Tensor = _AllGather.apply(x)  # [world, *x.shape]
    return torch.cat(gathered.unbind(), dim), dist.get_rank() * x.shape[dim]


def all_reduce_mean(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the ranks' x, with gradients."""
    total: torch.Tensor = _AllReduceSum.apply(x)
    return total / dist.get_world_size()


class _AllGather(torch.autograd.Function):
    """Stack x of all ranks, [world, *x.shape]; the gradient of x is summed over the losses of all ranks."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, x.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _AllReduceSum(torch.autograd.Function):
    """Sum x over all ranks."""

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


def average_gradients(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Replace each gradient by its mean over the ranks, and return the mean loss [].

    One all-reduce of all gradients, always in the same layout. DistributedDataParallel rebuilds its buckets after the
    first step, so that the sums of three or more ranks would differ in the last bit after a resume.
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
    joint_loss: torch.Tensor = mean[0].to(loss.dtype, copy=True)  # a view would keep all of `flat` in memory
    return joint_loss
