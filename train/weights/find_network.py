"""Find the network in a file of weights: compare its tensors with the architectures that they may be of."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from shard.errors import InputError
from train.timm_models import TIMM
from train.weights.choose_network import choose_network
from train.weights.convert import convert_by_timm, describe_conversion
from train.weights.find_architecture import Architecture
from train.weights.find_encoder import Found, State, find_encoder
from train.weights.outline import Outline, make_outline
from train.weights.unknown import describe_unknown

USUAL_SIZE = 224  # px, for encoders that take any size


class Network(NamedTuple):
    """A network that was found in a file. size: of the images that it is built for. notes: on how it was found."""

    found: Found
    architecture: Architecture
    size: int
    notes: list[str]


def find_network(
    path: Path, key: str, tensors: State, architectures: Sequence[Architecture], sizes: tuple[int, int]
) -> Network:  # fmt: skip
    """Find the network that fits the first possible of the architectures.

    key: of the network, "" for any. sizes: that of the images, and that which a config states; 0 if unknown. Raises
    InputError if none fits, or if several do and nothing decides between them.
    """
    compared: list[Found] = []
    for named in architectures:
        size = sizes[0] or _native_size(path, named, sizes[1], tensors)
        fitting, others = _compare(path, named, size, tensors)
        if fitting:
            found, notes = choose_network(fitting, tensors, path, key)
            converted = not any(found is other for other in others)
            notes += describe_conversion(found, tensors) if converted else []
            return Network(found, named, size, notes)
        compared += others
    raise InputError(describe_unknown(path, tensors, architectures, compared))


def _compare(path: Path, named: Architecture, size: int, tensors: State) -> tuple[list[Found], list[Found]]:
    """Compare an architecture, with three input channels and with one, with a file's tensors: (fitting, all)."""
    outlines, compared = [], list[Found]()
    for channels in (3, 1):
        outlines.append(_outline(path, named, size, channels))
        compared += find_encoder(tensors, outlines[-1])
        if fitting := [found for found in compared if found.fits]:
            return fitting, compared
    for outline in outlines:
        candidates = [found for found in compared if found.outline is outline]
        if converted := convert_by_timm(candidates, tensors, outline):
            return converted, compared
    return [], compared


def _outline(path: Path, named: Architecture, size: int, channels: int) -> Outline:
    try:
        return make_outline(named.arch, size, channels, named.model_args)
    except InputError as error:
        stated = f"{named.source}: " if named.source.startswith("the ") else ""
        raise InputError(f"{path}: {stated}{error}") from None


def _native_size(path: Path, named: Architecture, stated: int, tensors: State) -> int:
    """The side in pixels of the images that the weights were trained with; stated: that of a config, 0 if none."""
    if not named.arch.startswith(TIMM):
        return stated or USUAL_SIZE
    import timm

    config = timm.get_pretrained_cfg(named.arch.removeprefix(TIMM))
    usual = int(config.input_size[-1]) if config else USUAL_SIZE
    if config is None or not config.fixed_input_size:
        return stated or usual
    encoder = _outline(path, named, usual, 3).encoder
    positions, patch = getattr(encoder, "pos_embed", None), getattr(encoder, "patch_embed", None)
    if not isinstance(positions, torch.Tensor) or positions.ndim != 3 or patch is None:
        return stated or usual
    extra = positions.shape[1] - math.prod(patch.grid_size)  # class and register tokens
    grid = _grid(tensors, positions.shape[2], extra)
    return grid * int(patch.patch_size[0]) or stated or usual


def _grid(tensors: State, width: int, extra: int) -> int:
    """The patches in a row that a file's position embeddings are for; 0 if unknown."""
    for name, value in tensors.items():
        positions = re.search(r"(^|\.)(pos_embed|positional_embedding)$", name) and value.ndim in (2, 3)
        if positions and value.shape[-1] == width:
            for count in (value.shape[-2] - extra, value.shape[-2] - extra - 1):  # DINOv2: one of the class token
                if count > 0 and math.isqrt(count) ** 2 == count:
                    return math.isqrt(count)
    return 0
