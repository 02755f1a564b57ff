"""The baselines that encoders are compared with. To add one, add an entry to BASELINES."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from probe.encoder import AS_FIRST, Encoder, GreyAsColour
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.load import read_weights
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


def imagenet_encoder(arch: str, images: Input, weights: Path | None) -> Encoder:
    """Build the encoder with torchvision's ImageNet weights, from the file `weights` or downloaded.

    If the download fails, or torchvision lacks the architecture, it has no module. Raises InputError if a given file
    does not fit the architecture.
    """
    if arch not in torchvision.models.list_models():  # an architecture of our own
        return Encoder(IMAGENET, f"torchvision has no {arch}", None, images, missing="no weights for this architecture")
    # V1, although torchvision defaults to V2: those were trained with label smoothing and mixed images, and such
    # features are worse for linear probes (Kornblith et al., 2021, "Why do better loss functions lead to less
    # transferable features?"). Also, not every ResNet has V2 weights.
    default = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    if weights is not None:
        if not weights.exists():
            raise InputError(f"--imagenet-weights={weights}: no such file; give the file of {default}")
        read = read_weights(weights)
        if read.arch != arch or read.channels != 3:
            raise InputError(f"--imagenet-weights={weights}: not torchvision's {arch} weights, but {read.arch}'s; "
                             f"give the file of {default}")  # fmt: skip
        resnet, source = read.encoder, weights.name
    else:
        resnet = torchvision.models.get_model(arch, weights=None)
        try:
            resnet.load_state_dict(default.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, or a truncated download
            source = f"{default} could not be downloaded ({error}); give a file with --imagenet-weights=FILE"
            return Encoder(IMAGENET, source, None, images, missing="weights could not be downloaded")
        resnet.fc, source = nn.Identity(), str(default)
    module = GreyAsColour(resnet, images.mean, images.std).eval()
    return Encoder(IMAGENET, f"{arch}, {source}", module, images)
