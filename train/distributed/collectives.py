"""Collectives with gradients: every rank computes what one process would compute on the joint batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def all_gather(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, int]:
    """Concatenate the ranks' x along `dim`, with gradients; also return the index at which this rank's x begins."""
    if not dist.is_initialized():
        return x, 0
    gathered: torch.Tensor = _AllGather.apply(x)  # [world, *x.shape]
    return torch.cat(gathered.unbind(), dim), dist.get_rank() * x.shape[dim]


def all_reduce_mean(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the ranks' x, with gradients; x itself in a run of one process."""
    if not dist.is_initialized():
        return x
    total: torch.Tensor = _AllReduceSum.apply(x)
    return total / dist.get_world_size()


def gather_flat(x: torch.Tensor) -> torch.Tensor:
    """Stack the ranks' x, [world, *x.shape], without gradients."""
    gathered = x.new_empty(dist.get_world_size() * x.numel())
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name in older PyTorch
    gather(gathered, x.reshape(-1))  # flat, as gloo demands
    return gathered.view(-1, *x.shape)


class _AllGather(torch.autograd.Function):
    """Stack x of all ranks, [world, *x.shape]; the gradient of x is summed over the losses of all ranks."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return gather_flat(x)

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
