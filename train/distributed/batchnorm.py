"""BatchNorm over the images of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from train.distributed.collectives import all_reduce_mean


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm of `model`, in place, by one over the views of all ranks.

    PyTorch's SyncBatchNorm on a GPU. It has none for a CPU; SyncBatchNorm2d replaces it there.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the children of `model` in place
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all ranks, the same number on each. In training it computes in float32 or wider."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [B, C, H, W] by the moments of the joint batch [B·world, C, H, W]."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_reduce_mean(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance = all_reduce_mean(centred.square().mean((0, 2, 3)))
        self._update_running_stats(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _update_running_stats(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Update the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
