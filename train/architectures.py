"""The encoder architectures that --arch offers. To add one, write a function that builds it and list it below."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line lists the architectures without importing PyTorch, which takes a second
    from torch import nn


def grey_resnet(name: str) -> tuple[nn.Module, int]:
    """Build torchvision's ResNet with random weights, one input channel and no classifier."""
    import torchvision
    from torch import nn

    resnet = torchvision.models.get_model(name, weights=None)
    old = resnet.conv1
    resnet.conv1 = nn.Conv2d(1, old.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's other convs
    features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, features


# Name → function that builds the encoder, [N, 1, S, S] → [N, F], and returns it with F.
ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    name: partial(grey_resnet, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}


def build_encoder(arch: str) -> tuple[nn.Module, int]:
    """Build the encoder of an architecture, with random weights, and return it with its feature width F."""
    return ARCHITECTURES[arch]()
