"""A frozen encoder under comparison: the network, how its images are made, and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.model import hash_weights
from train.weights.pooling import describe_pooling
from train.weights.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Input, ResolvedInput

AS_FIRST = "as the first encoder"  # where a baseline's input comes from


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder, [B, 1, S, S] → [B, F]. `module` is None if it is not available; `missing` gives the reason.

    source: description of architecture and weights. input: how its images are made. notes: how it was read, one per
    line. given_input: its input as resolved from what its weights state. collapsed: evidence that its features do not
    distinguish images; "" if they do. state: a run's settings and progress, from its checkpoint. run: its folder.
    """

    name: str
    source: str
    module: nn.Module | None
    input: Input
    missing: str = ""
    state: dict[str, Any] | None = None
    run: Path | None = None
    notes: tuple[str, ...] = ()
    given_input: ResolvedInput | None = None
    collapsed: str = ""

    @property
    def label(self) -> str:
        """The name, marked as collapsed if it is."""
        return f"{self.name} (collapsed)" if self.collapsed else self.name

    @property
    def fed(self) -> ResolvedInput:
        """Its input with the statistics that it is normalised by; a baseline gets the first encoder's images."""
        if self.given_input is not None:
            return self.given_input
        if isinstance(self.module, GreyAsColour):
            return ResolvedInput(self.input, *self.module.statistics(), "as in its training")
        return ResolvedInput(self.input, (self.input.mean,), (self.input.std,), AS_FIRST)

    @property
    def features(self) -> str:
        """What its features are, in a few words; "" if it has no module."""
        network = self.module.network if isinstance(self.module, GreyAsColour) else self.module
        return "" if network is None else describe_pooling(network)

    def sha256(self) -> str:
        """Hash all that its features depend on, except the images."""
        return hash_weights(self.module, f"{self.input} {self.module}")


class GreyAsColour(nn.Module):
    """A network of one or three channels that gets the grey image in each, normalised as it was trained.

    Folding the stem of three channels into one would not be equivalent: its zero padding would be a different grey.
    """

    colour_mean: torch.Tensor
    colour_std: torch.Tensor

    def __init__(
        self, network: nn.Module, mean: float, std: float, colour_mean: Sequence[float] = IMAGENET_MEAN,
        colour_std: Sequence[float] = IMAGENET_STD,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.register_buffer("colour_mean", torch.tensor(colour_mean).view(1, -1, 1, 1))
        self.register_buffer("colour_std", torch.tensor(colour_std).view(1, -1, 1, 1))

    def around(self, network: nn.Module) -> GreyAsColour:
        """Feed another network in the same way."""
        return GreyAsColour(network, self.mean, self.std, *self.statistics())

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and std per channel that the network's images are normalised by."""
        mean, std = (tuple(float(f"{value:.7g}") for value in values.flatten().tolist())  # the digits of float32
                     for values in (self.colour_mean, self.colour_std))  # fmt: skip
        return mean, std

    def extra_repr(self) -> str:
        """Show the statistics with which the input images are normalised."""
        return f"mean={self.mean}, std={self.std}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [B, 1, S, S], normalised by our statistics, to features [B, F]."""
        colour = (x * self.std + self.mean - self.colour_mean) / self.colour_std  # [B, 1 or 3, S, S]
        features: torch.Tensor = self.network(colour)
        return features
