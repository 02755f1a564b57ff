"""Weights with three input channels that give the features of a grey encoder's."""

from __future__ import annotations

import torch
from torch import nn

from train.architectures import build_encoder

TOLERANCE = 1e-3  # of the largest feature; rounding is below 1e-5 of it


def three_channel_encoder(encoder: nn.Module, arch: str, size: int) -> nn.Module | None:
    """Build the encoder whose features of three equal channels are those of a grey encoder for one.

    The weights that images enter by become thirds, repeated. encoder: in evaluation mode, [N, 1, S, S] → [N, F].
    Returns None if there are no such weights: a stem that standardises its weights, as NFNet's, undoes the division.
    """
    colour, _ = build_encoder(arch, size, channels=3)
    colour.eval()
    weights = encoder.state_dict()
    for name, expected in colour.state_dict().items():
        if weights[name].shape != expected.shape:
            if weights[name].ndim != 4:  # patches embedded by a linear layer: the order of its inputs is not known
                return None
            # [O, C, K, K] → [O, 3·C, K, K]; the three channels of one pixel are neighbours where C > 1 (space to depth)
            weights[name] = (weights[name] / 3).repeat_interleave(3, dim=1)
    colour.load_state_dict(weights)
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    return colour if equal_features(encoder, images, colour, images.expand(-1, 3, -1, -1)) else None


def equal_features(one: nn.Module, images: torch.Tensor, other: nn.Module, others: torch.Tensor) -> bool:
    """Whether two encoders in evaluation mode give the same features, up to rounding, each of its own images."""
    with torch.no_grad():
        first, second = one(images), other(others)
    return first.shape == second.shape and bool((first - second).abs().max() <= TOLERANCE * first.abs().max())
