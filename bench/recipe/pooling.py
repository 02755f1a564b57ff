"""Features from an encoder's last feature map other than its mean over positions, which discards where things are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from probe.encoder import Encoder

# Name → function from feature maps [B, C, H, W] to features [B, F].
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda maps: maps.amax((2, 3)),
    "mean and max": lambda maps: torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1),
    "2x2 means": lambda maps: nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1),
}
LAYERS = ("global_pool", "avgpool")  # what timm and torchvision call the layer that averages


class Pooling(nn.Module):
    """A pooling of POOLINGS as a layer, [B, C, H, W] → [B, F]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def extra_repr(self) -> str:
        """Show the name: cached features are kept under a hash of it."""
        return repr(self.name)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map feature maps [B, C, H, W] to features [B, F]."""
        return POOLINGS[self.name](maps)


def with_pooling(encoder: Encoder, name: str) -> Encoder:
    """Return a copy of a convolutional encoder whose features are pooled as POOLINGS names."""
    module = copy.deepcopy(encoder.module)
    assert module is not None, "its weights are known to be there"
    (network, layer), = [(part, layer) for part in module.modules() for layer in LAYERS
                         if isinstance(getattr(part, layer, None), nn.Module)]  # fmt: skip
    setattr(network, layer, Pooling(name))
    return replace(encoder, module=module.eval())
