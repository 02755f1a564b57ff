"""The model: a ResNet whose stem takes one grey channel, and SimCLR's projector on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

PROJECTION = 128


class SimCLR(nn.Module):
    """Encoder f and projector g of SimCLR (Chen et al., 2020): x [N, 1, S, S] → h [N, F] → z [N, 128]."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.encoder, features = grey_resnet(arch)
        self.projector = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, PROJECTION)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images → projections; the loss normalises them."""
        z: torch.Tensor = self.projector(self.encoder(x))
        return z


def encoder_of(state: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The encoder in a checkpoint's state, and its feature width F.

    Raises what checkpoint.translate_load_errors makes an InputError of, where there is none.
    """
    encoder, features = grey_resnet(state["config"]["arch"])
    prefix = "encoder."
    encoder.load_state_dict({name[len(prefix) :]: value for name, value in state["model"].items()
                             if name.startswith(prefix)})  # fmt: skip
    return encoder, features


def grey_resnet(arch: str) -> tuple[nn.Module, int]:
    """torchvision's ResNet with random weights, one input channel and no classifier; and its feature width F."""
    resnet = torchvision.models.get_model(arch, weights=None)
    old = resnet.conv1
    resnet.conv1 = nn.Conv2d(1, old.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's other convs
    features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, features
