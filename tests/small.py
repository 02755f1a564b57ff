"""A small float64 model with all kinds of layers of the real one, and statistics for BatchNorm layers of any."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class SmallModel(nn.Module):
    """A stem, residual blocks of both kinds and a projector. Dropout reveals a random state that is not replayed."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        blocks = [BasicBlock(8, 8), BasicBlock(8, 16, 2, downsample), Bottleneck(16, 4), Bottleneck(16, 4)]
        self.blocks = nn.Sequential(*blocks)
        self.projector = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 128))
        self.double().train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.projector(self.blocks(self.stem(x)).mean((2, 3)))
        return z


def with_statistics(module: nn.Module) -> nn.Module:
    """Give BatchNorm layers statistics as of a training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.randn(norm.num_features) / 10
            norm.running_var = torch.rand(norm.num_features) + 0.5
    return module
