"""BatchNorm over the images of all ranks by PyTorch's CUDA kernels, without waits for the GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from train.distributed.collectives import gather_flat


def sync_batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, running_mean: torch.Tensor,
    running_var: torch.Tensor, momentum: float, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Normalise x [B, C, …] by the moments of the joint batch [B·world, C, …]; update running statistics in place.

    nn.SyncBatchNorm uses the same kernels. It allows ranks without images, whose statistics it drops by three boolean
    masks in every layer, and each mask makes the CPU wait for the GPU. Here all ranks have the same B.
    """
    normalised: torch.Tensor = _SyncBatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
    return normalised


class _SyncBatchNorm(torch.autograd.Function):
    """The gradient of x is summed over the losses of all ranks; those of weight and bias are this rank's."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
        running_mean: torch.Tensor, running_var: torch.Tensor, momentum: float, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        x = _dense(x)
        world = dist.get_world_size()
        own = torch.stack(torch.batch_norm_stats(x, eps))  # [2, C]: mean and 1 / standard deviation
        means, scales = gather_flat(own).unbind(1)  # [world, C] each
        counts = torch.full((world,), x.numel() // x.shape[1], dtype=running_mean.dtype, device=x.device)
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, running_mean, running_var, momentum, eps, counts
        )
        context.save_for_backward(x, weight, mean, scale, counts.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale, counts = context.saved_tensors
        gradient, of_x = _dense(gradient), None
        needs_x, needs_weight, needs_bias = context.needs_input_grad[:3]
        total, total_by_x, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, x, mean, scale, weight, needs_x, needs_weight, needs_bias
        )
        if needs_x:
            totals = torch.stack([total, total_by_x])
            dist.all_reduce(totals)
            of_x = torch.batch_norm_backward_elemt(gradient, x, mean, scale, weight, totals[0], totals[1], counts)
        return of_x, of_weight if needs_weight else None, of_bias if needs_bias else None, None, None, None, None


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
