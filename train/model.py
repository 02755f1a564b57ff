"""The model: a ResNet whose stem takes one grey channel, and SimCLR's projector on top."""

from __future__ import annotations

import math
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

    Raises what checkpoint.taking_up makes an InputError of, where there is none, or its images can't be made so.
    """
    encoder, features = grey_resnet(state["config"]["arch"])
    prefix = "encoder."
    encoder.load_state_dict({name[len(prefix) :]: value for name, value in state["model"].items()
                             if name.startswith(prefix)})  # fmt: skip
    check_input(**{name: state["recipe"][name] for name in ("size", "mean", "std")})
    return encoder, features


def check_input(size: Any, mean: Any, std: Any) -> None:
    """Raise ValueError where images of this size can't be, or not be normalised by these."""
    numbers = [value for value in (mean, std) if type(value) in (int, float) and math.isfinite(value)]
    if type(size) is not int or not 1 <= size <= 4096 or len(numbers) < 2 or not std > 0:
        raise ValueError(f"images of size {size!r}, mean {mean!r} and std {std!r} can't be made")


def grey_resnet(arch: str) -> tuple[nn.Module, int]:
    """torchvision's ResNet with random weights, one input channel and no classifier; and its feature width F."""
    resnet = torchvision.models.get_model(arch, weights=None)
    old = resnet.conv1
    resnet.conv1 = nn.Conv2d(1, old.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's other convs
    features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, features
