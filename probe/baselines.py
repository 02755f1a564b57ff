"""The baselines that encoders are compared with. To add one, add an entry to BASELINES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from probe.encoder import AS_FIRST, Encoder, GreyAsColour
from train.architectures import build_encoder
from train.weights.imagenet import UNREACHABLE, NoImageNetWeights, read_imagenet
from train.weights.preprocessing import Input, ResolvedInput
from train.weights.transformers_folder import TransformersEncoder

SIDE = 16  # the thumbnail's width and height in pixels
SCRATCH, THUMBNAIL, IMAGENET = "Scratch", "Thumbnail", "ImageNet"


@dataclass(frozen=True)
class Options:
    """What a baseline is built for. arch, images, module: of the first encoder given. The rest: the flags."""

    arch: str
    images: Input
    seed: int
    imagenet_weights: Path | None
    module: nn.Module | None = None


@dataclass(frozen=True)
class Baseline:
    """A baseline: its name in tables, its colour in figures (CSS), and the function that builds it."""

    name: str
    colour: str
    build: Callable[[Options], Encoder]


# A word of --baselines → the baseline. Encoders are compared with each in this order.
BASELINES: dict[str, Baseline] = {
    "scratch": Baseline(SCRATCH, "#8a8a8a",
                        lambda options: scratch_encoder(options.arch, options.seed, options.images, options.module)),
    "thumbnail": Baseline(THUMBNAIL, "#2f9e62", lambda options: thumbnail_encoder(options.images)),
    "imagenet": Baseline(IMAGENET, "#d9822b",
                         lambda options: imagenet_encoder(options.arch, options.images, options.imagenet_weights)),
}  # fmt: skip


def baseline_names() -> list[str]:
    """List the names of all baselines in tables. No encoder given by the user may have one of them."""
    return [baseline.name for baseline in BASELINES.values()]


class Pixels(nn.Module):
    """The image's own grey levels, averaged over SIDE × SIDE squares, in place of an encoder."""

    FEATURES = f"{SIDE * SIDE} grey levels"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [B, 1, S, S] to [B, SIDE²]."""
        return nn.functional.adaptive_avg_pool2d(x, SIDE).flatten(1)


def scratch_encoder(arch: str, seed: int, images: Input, like: nn.Module | None = None) -> Encoder:
    """Build the architecture with random weights. like: an encoder of it, for those that only transformers builds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(like, GreyAsColour) and isinstance(like.network, TransformersEncoder):
            module: nn.Module = like.around(like.network.with_random_weights())
            fed = ResolvedInput(images, *like.statistics(), AS_FIRST)
        else:
            module, _ = build_encoder(arch, images.size)
            fed = ResolvedInput(images, (images.mean,), (images.std,), AS_FIRST)
    return Encoder(SCRATCH, f"{arch}, random weights, seed {seed}", module.eval(), images, given_input=fed)


def thumbnail_encoder(images: Input) -> Encoder:
    """Build the raw-pixel baseline. An encoder that does not beat it has learned nothing beyond grey levels."""
    return Encoder(THUMBNAIL, f"the image's own grey levels, {SIDE}×{SIDE}", Pixels().eval(), images)


def imagenet_encoder(arch: str, images: Input, file: Path | None) -> Encoder:
    """Build the encoder with ImageNet's weights, from a file or downloaded, fed as they were trained.

    Without such weights for the architecture, or if the download fails, it has no module. Raises InputError if a given
    file does not fit the architecture.
    """
    try:
        weights = read_imagenet(arch, images.size, file)
    except NoImageNetWeights as error:
        cure = "; give a file with --imagenet-weights=FILE" if error.short == UNREACHABLE else ""
        return Encoder(IMAGENET, f"{error}{cure}", None, images, missing=error.short)
    stated = weights.stated
    assert stated.mean is not None and stated.std is not None, "read_imagenet states both"
    module = GreyAsColour(weights.encoder, images.mean, images.std, stated.mean, stated.std).eval()
    return Encoder(IMAGENET, f"{arch}, {weights.notes[0]}", module, images, notes=tuple(weights.notes[1:]))
