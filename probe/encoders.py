"""The encoders under comparison: what each is, and where its weights come from or why they can't be had."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from shard.errors import InputError
from train.checkpoint import UnreadableTensors, load_checkpoint, newest_checkpoint, read_tensors
from train.model import grey_resnet

# Per-channel statistics torchvision's ImageNet weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIDE = 16  # of the thumbnail
THUMBNAIL = "Thumbnail"


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder, [B, 1, S, S] → [B, F]; `module` is None where it can't be had, and `missing` says why."""

    name: str
    source: str
    module: nn.Module | None
    missing: str = ""


class Pixels(nn.Module):
    """No encoder at all: the image's own grey levels, averaged over SIDE × SIDE squares."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 1, S, S] → [B, SIDE²]."""
        return nn.functional.adaptive_avg_pool2d(x, SIDE).flatten(1)


class GreyAsColour(nn.Module):
    """A three-channel ImageNet encoder fed with a grey image three times, as torchvision would normalise it.

    The exact twin of folding the stem to one channel, whose zero padding would mean another grey at the border.
    """

    imagenet_mean: torch.Tensor
    imagenet_std: torch.Tensor

    def __init__(self, resnet: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.resnet, self.mean, self.std = resnet, mean, std
        self.register_buffer("imagenet_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("imagenet_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 1, S, S] normalised by our statistics → features [B, F]."""
        colour = (x * self.std + self.mean - self.imagenet_mean) / self.imagenet_std  # [B, 3, S, S]
        features: torch.Tensor = self.resnet(colour)
        return features


def read_run(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run. Raises InputError where there is none."""
    path = newest_checkpoint(run)
    if path is None:
        raise InputError(f"{run}: no checkpoint in {run / 'checkpoints'}; train first: python -m train --out={run}")
    return load_checkpoint(path)


def simclr_encoder(state: dict[str, Any]) -> Encoder:
    """The encoder of a checkpoint's model."""
    module, _ = grey_resnet(state["config"]["arch"])
    prefix = "encoder."
    weights = {name[len(prefix) :]: value for name, value in state["model"].items() if name.startswith(prefix)}
    module.load_state_dict(weights)
    epochs = f"epoch {state['epoch']}" if not state["done_in_epoch"] else f"step {state['step']}"
    return Encoder("SimCLR", f"{state['config']['arch']}, this run, {epochs}", module.eval())


def scratch_encoder(arch: str, seed: int) -> Encoder:
    """The same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, _ = grey_resnet(arch)
    return Encoder("Scratch", f"{arch}, random weights, seed {seed}", module.eval())


def thumbnail_encoder() -> Encoder:
    """The raw-pixel baseline: what does not beat it has learned nothing."""
    return Encoder(THUMBNAIL, f"the image's own grey levels, {SIDE}×{SIDE}", Pixels().eval())


def imagenet_encoder(arch: str, mean: float, std: float, weights: Path | None) -> Encoder:
    """torchvision's ImageNet weights from `weights` or its download; without a module where neither can be had.

    mean, std: the statistics our images were normalised by. Raises InputError where a given file doesn't fit.
    """
    resnet = torchvision.models.get_model(arch, weights=None)
    default = torchvision.models.get_model_weights(arch).DEFAULT
    if weights is None:
        try:
            state = default.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, or a download cut short
            source = f"{default} could not be downloaded ({error}); give a file with --imagenet-weights=FILE"
            return Encoder("ImageNet", source, None, missing="weights could not be downloaded")
        source = str(default)
    else:
        state, source = _read_weights(weights), weights.name
    try:
        resnet.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).split("\n")[1 if "\n" in str(error) else 0].strip()[:120]
        raise InputError(f"--imagenet-weights={weights}: not torchvision's {arch} weights ({reason}); "
                         f"wanted is the file of {default}") from None
    resnet.fc = nn.Identity()
    return Encoder("ImageNet", f"{arch}, {source}", GreyAsColour(resnet, mean, std).eval())


def _read_weights(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"--imagenet-weights={path}: no such file; give a state dict saved by torchvision")
    try:
        return read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"--imagenet-weights={path}: not a state dict ({error}); give one of torchvision's") from None
