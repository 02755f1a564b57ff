"""The encoders under comparison, through one door: what each is, and where its weights come from."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from pipeline.augmentation import Augmentation
from probe.names import GUESSING, MAJORITY, check_name, split_key, split_spec
from probe.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Input, Stated, read_flag, settle
from probe.published_protocol import NOISE
from probe.weights import FOLDER_FILES, Weights, read_weights
from shard.errors import InputError
from train.accepted import changes_of, with_changes
from train.architectures import build_encoder
from train.checkpoint import (
    FORMAT,
    UnreadableTensors,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    read_tensors,
    translate_load_errors,
)
from train.journal import CARD
from train.model import encoder_of
from train.presets import say_recipe
from train.unreadable import plain

SIDE = 16  # of the thumbnail
SCRATCH, THUMBNAIL, IMAGENET, SIMCLR = "Scratch", "Thumbnail", "ImageNet", "SimCLR"
_BASELINES = (SCRATCH, THUMBNAIL, IMAGENET)
_OURS = (*_BASELINES, NOISE, MAJORITY, GUESSING)  # names of rows, which no encoder that is given may have
# Of a checkpoint, what a report says of the run.
KEPT = ("config", "augmentation", "shards", "step", "epoch", "step_in_epoch", "origin", "accepted", "fingerprint",
        "commit")


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder, [B, 1, S, S] → [B, F]; `module` is None where it can't be had, and `missing` says why.

    input: how its images are made. said: how it was read, and what its images are, in whole lines; assumed: what of
    that nobody stated, for its row in a table. collapsed: what is wrong with its features, where they tell no images
    apart. state: of a run, what its checkpoint holds beside the weights; run: its folder.
    """

    name: str
    source: str
    module: nn.Module | None
    input: Input
    missing: str = ""
    state: dict[str, Any] | None = None
    run: Path | None = None
    said: tuple[str, ...] = ()
    assumed: str = ""
    collapsed: str = ""

    @property
    def is_given(self) -> bool:
        """Whether the report is asked about it, and not a baseline."""
        return self.name not in _BASELINES

    def sha256(self) -> str:
        """A hash of all that its features depend on, but the images."""
        digest = hashlib.sha256(f"{self.input} {self.module}".encode())
        for name, value in (self.module.state_dict() if self.module is not None else {}).items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


class Pixels(nn.Module):
    """No encoder at all: the image's own grey levels, averaged over SIDE × SIDE squares."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 1, S, S] → [B, SIDE²]."""
        return nn.functional.adaptive_avg_pool2d(x, SIDE).flatten(1)


class GreyAsColour(nn.Module):
    """An encoder of one or three channels fed with a grey image in each, normalised as it was trained.

    With three the exact twin of folding the stem to one channel, whose zero padding would mean another grey at the
    border.
    """

    colour_mean: torch.Tensor
    colour_std: torch.Tensor

    def __init__(
        self, resnet: nn.Module, mean: float, std: float, colour_mean: Sequence[float] = IMAGENET_MEAN,
        colour_std: Sequence[float] = IMAGENET_STD,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resnet, self.mean, self.std = resnet, mean, std
        self.register_buffer("colour_mean", torch.tensor(colour_mean).view(1, -1, 1, 1))
        self.register_buffer("colour_std", torch.tensor(colour_std).view(1, -1, 1, 1))

    def extra_repr(self) -> str:
        """The statistics that its images come with."""
        return f"mean={self.mean}, std={self.std}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 1, S, S] normalised by our statistics → features [B, F]."""
        colour = (x * self.std + self.mean - self.colour_mean) / self.colour_std  # [B, 1 or 3, S, S]
        features: torch.Tensor = self.resnet(colour)
        return features


def open_encoders(
    given: Sequence[str], baselines: Sequence[str], *, otherwise: Input, size: int, imagenet_weights: Path | None,
    seed: int, inputs: str = "",
) -> list[Encoder]:  # fmt: skip
    """The baselines, then what is given: runs, checkpoints and files of weights, each maybe as NAME=PATH.

    otherwise: how to make images for weights that don't say it; size: for all of them, 0 for each its own; inputs:
    what --input says (see inputs.read_flag). The baselines have the architecture and the input of the first that is
    given.
    """
    named = []
    for spec in given:
        name, path = split_spec(spec)
        _check_there(path, spec)
        named.append((path, name or _name_of(path, len(given))))
        check_name(named[-1][1], _OURS)
    names = [name for _, name in named]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two encoders are called {name}; name them: NAME=PATH")
    asked = read_flag(inputs, names)
    opened = [open_encoder(path, name, otherwise, size, asked.get(name)) for path, name in named]
    arch, first = opened[0]
    make = {
        "scratch": lambda: scratch_encoder(arch, seed, first.input),
        "thumbnail": lambda: thumbnail_encoder(first.input),
        "imagenet": lambda: imagenet_encoder(arch, first.input, imagenet_weights),
    }
    return [*(make[word]() for word in dict.fromkeys(baselines)), *(encoder for _, encoder in opened)]


def _check_there(path: Path, spec: str) -> None:
    if not split_key(path)[0].exists():
        asked = f" (asked for as {spec})" if str(path) != spec else ""
        raise InputError(f"{path}: no such run or file of weights{asked}; a run is the --out of python -m train")


def open_encoder(
    path: Path, name: str, otherwise: Input, size: int, asked: Stated | None = None
) -> tuple[str, Encoder]:  # fmt: skip
    """One of a run's folder (its newest checkpoint), a checkpoint, or a file of weights: (architecture, encoder).

    path: PATH::KEY is the network under a key of a file. asked: what --input says of it.
    """
    _check_there(path, str(path))
    file, key = split_key(path)
    if file.is_dir() and not any((file / name).exists() for name in FOLDER_FILES):
        found = load_newest(file)
        if found is None:
            raise InputError(_no_run(file))
        _check_alone(file, name, key, asked, "a run")
        with translate_load_errors(found[0]):
            return found[1]["config"]["arch"], simclr_encoder(found[1], name, size, file)
    if file.is_file() and file.suffix != ".safetensors" and _is_checkpoint(file):
        _check_alone(file, name, key, asked, "a run's checkpoint")
        state = load_checkpoint(file)
        with translate_load_errors(file):
            if file.absolute().parent.name == "checkpoints":  # of a run that may have been moved since
                state["config"] = {**state["config"], "out": str(file.absolute().parent.parent)}
            return state["config"]["arch"], simclr_encoder(state, name, size, None)
    weights = read_weights(path)
    if weights.card is not None:
        _check_alone(file, name, "", asked, "an export")
    return weights.arch, weights_encoder(weights, name, file, otherwise, size, asked)


def _check_alone(path: Path, name: str, key: str, asked: Stated | None, kind: str) -> None:
    """Raise InputError if --input or ::KEY is given for a run or an export, which needs neither."""
    if key:
        raise InputError(f"{path}::{key}: {kind} holds one encoder; leave out ::{key}")
    if asked is not None:
        raise InputError(f"--input={name}:…: {path} is {kind}, which says itself how its images are made; leave it out")


def _no_run(path: Path) -> str:
    """What is wanted in a folder that holds neither a run's checkpoint nor weights."""
    if (path / "checkpoints").is_dir() or (path / CARD).exists():
        return f"{path}: no checkpoint in {path / 'checkpoints'}; train first: python -m train --out={path}"
    inside = sorted(one.name + "/" * one.is_dir() for one in path.iterdir())
    runs = [name for name in inside if (path / name / "checkpoints").is_dir()]
    files = [name for name in inside if name.endswith((".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin"))]
    if path.name == "checkpoints" and list_checkpoints(path.parent):
        cure = f"give the run: {path.parent}"
    elif runs or files:
        cure = f"it holds {', '.join(map(plain, (runs or files)[:3]))}: name one, as {path / (runs or files)[0]}"
    else:
        cure = f"it holds {', '.join(map(plain, inside[:3]))}{', …' * (len(inside) > 3)}" if inside else "it is empty"
    return (f"{path}: not a run of python -m train, which has checkpoints/step-….pt, and not a folder of timm's, which "
            f"has config.json and model.safetensors; {cure}")  # fmt: skip


def _is_checkpoint(path: Path) -> bool:
    try:
        content = read_tensors(path)
    except UnreadableTensors:  # read_weights says what is wrong with it
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _name_of(path: Path, given: int) -> str:
    if path.is_dir() and given == 1 and (path / "checkpoints").is_dir():
        return SIMCLR
    return path.resolve().stem if path.is_file() else path.resolve().name


def simclr_encoder(state: dict[str, Any], name: str = SIMCLR, size: int = 0, run: Path | None = None) -> Encoder:
    """The encoder of a checkpoint's model."""
    module, _ = encoder_of(state)
    augmentation = Augmentation(**state["augmentation"])  # which looks at it
    after = f"epoch {state['epoch']}" if not state["step_in_epoch"] else f"step {state['step']}"
    kept = {key: value for key, value in state.items() if key in KEPT}
    said = with_changes(say_recipe(state["config"]), changes_of(state))
    images = Input(size or augmentation.size, augmentation.mean, augmentation.std)
    return Encoder(name, f"{state['config']['arch']}, SimCLR, {said}, {after}", module.eval(), images, state=kept,
                   run=run, said=(_say_input(images, "checkpoint"),))  # fmt: skip


def _say_input(images: Input, source: str) -> str:
    """How images are made for an encoder of ours."""
    return (f"images whole, at {images.size} px, {images.interpolation}; mean {images.mean:.4g}, std {images.std:.4g}, "
            f"as its {source} says")  # fmt: skip


def weights_encoder(
    weights: Weights, name: str, path: Path, otherwise: Input, size: int, asked: Stated | None = None
) -> Encoder:  # fmt: skip
    """The encoder of a file of weights; its images as our export's card says, or as inputs.settle does."""
    source = f"{weights.arch}, {path.name}"
    if weights.card is not None:
        source += f", {weights.card.get('preset')}" if weights.card.get("accepted") else ""
        card = weights.card["input"]
        wanted = Input(size or card["size"], card["mean"], card["std"])
        colour = (card["mean"],) * 3, (card["std"],) * 3
        module = GreyAsColour(weights.resnet, wanted.mean, wanted.std, *colour) if weights.colour else weights.resnet
        said = (*weights.said, _say_input(wanted, "model card"))
        return Encoder(name, source, module.eval(), wanted, said=said)
    found = settle(path, name, 3 if weights.colour else 1, asked or Stated(), weights.stated, otherwise=otherwise,
                   size=size)  # fmt: skip
    images = found.images
    module = GreyAsColour(weights.resnet, images.mean, images.std, found.mean, found.std)
    return Encoder(name, source, module.eval(), images, said=(*weights.said, found.said), assumed=found.assumed)


def scratch_encoder(arch: str, seed: int, wanted: Input) -> Encoder:
    """The same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, _ = build_encoder(arch)
    return Encoder(SCRATCH, f"{arch}, random weights, seed {seed}", module.eval(), wanted)


def thumbnail_encoder(wanted: Input) -> Encoder:
    """The raw-pixel baseline: what does not beat it has learned nothing."""
    return Encoder(THUMBNAIL, f"the image's own grey levels, {SIDE}×{SIDE}", Pixels().eval(), wanted)


def imagenet_encoder(arch: str, wanted: Input, weights: Path | None) -> Encoder:
    """torchvision's ImageNet weights from `weights` or its download; without a module where neither can be had.

    Raises InputError where a given file doesn't fit.
    """
    # Not the second ones, which torchvision takes by default where it has them: trained with label smoothing and mixed
    # images, their features are known to tell less to a linear probe (Kornblith et al., 2021, "Why do better loss
    # functions lead to less transferable features?"); and not every ResNet has them.
    default = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    if weights is not None:
        if not weights.exists():
            raise InputError(f"--imagenet-weights={weights}: no such file; wanted is the file of {default}")
        read = read_weights(weights)
        if read.arch != arch or not read.colour:
            raise InputError(f"--imagenet-weights={weights}: not torchvision's {arch} weights, but {read.arch}'s; "
                             f"wanted is the file of {default}")  # fmt: skip
        resnet, source = read.resnet, weights.name
    else:
        resnet = torchvision.models.get_model(arch, weights=None)
        try:
            resnet.load_state_dict(default.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, or a download cut short
            source = f"{default} could not be downloaded ({error}); give a file with --imagenet-weights=FILE"
            return Encoder(IMAGENET, source, None, wanted, missing="weights could not be downloaded")
        resnet.fc, source = nn.Identity(), str(default)
    module = GreyAsColour(resnet, wanted.mean, wanted.std).eval()
    return Encoder(IMAGENET, f"{arch}, {source}", module, wanted)
