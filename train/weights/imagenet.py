"""ImageNet's weights of an architecture: torchvision's for our ResNets, timm's for its models."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

import torchvision

from shard.errors import InputError
from train.architectures import TORCHVISION, build_encoder
from train.timm_models import TIMM
from train.weights.hub import download, timm_repository
from train.weights.load import Weights, read_weights
from train.weights.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Stated

# In the tags of timm's weights: trained on ImageNet-1k, -12k, -21k or -22k, maybe after other images.
TRAINED_ON_IMAGENET = re.compile(r"(^|_)inw?(1k|12k|21k|22k)(_|$)")
MISSING, UNREACHABLE = "no weights for this architecture", "weights could not be downloaded"


class NoImageNetWeights(InputError):
    """There are no ImageNet weights for an architecture, or they can't be downloaded; `short` says which."""

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short


def read_imagenet(arch: str, size: int = 224, file: Path | None = None) -> Weights:
    """Read ImageNet's weights for three channels, from a file or downloaded; its first note names them.

    arch: a ResNet, torchvision/NAME, timm/NAME or timm/NAME.TAG. size: the side in pixels of the images, for
    architectures that are built for one size. Mean, std and interpolation are torchvision's or those of timm's
    pretrained_cfg, unless a config next to the file states others. Raises NoImageNetWeights if there are none, and
    InputError if a given file does not fit.
    """
    try:
        name, stated = _timm_weights(arch) if arch.startswith(TIMM) else _torchvision_weights(arch)
    except NoImageNetWeights as error:
        if file is None:
            raise
        raise InputError(f"--imagenet-weights={file}: {error}; omit it") from None
    if file is None:
        return _download_timm(arch, size, name, stated) if arch.startswith(TIMM) else _download_torchvision(
            arch, size, name, stated)  # fmt: skip
    if not file.exists():
        raise InputError(f"--imagenet-weights={file}: no such file; give the file of {name}")
    try:
        weights = read_weights(file, arch, size)
    except InputError as error:
        raise InputError(f"--imagenet-weights={error}; or give the file of {name}") from None
    if weights.arch != arch or weights.channels != 3:
        raise InputError(f"--imagenet-weights={file}: not {arch}'s weights for colour images, but {weights.arch}'s for "
                         f"{weights.channels} channels; give the file of {name}")  # fmt: skip
    return _named(weights, file.name, stated)


def _named(weights: Weights, name: str, stated: Stated) -> Weights:
    return weights._replace(stated=stated if weights.stated.mean is None else weights.stated,
                            notes=[name, *weights.notes])  # fmt: skip


def _torchvision_weights(arch: str) -> tuple[str, Stated]:
    """Return the name of torchvision's weights and the input that they were trained with."""
    # V1, although torchvision defaults to V2: those were trained with label smoothing and mixed images, and such
    # features are worse for linear probes (Kornblith et al., 2021, "Why do better loss functions lead to less
    # transferable features?"). Also, not every ResNet has V2 weights.
    name = arch.removeprefix(TORCHVISION)
    if name not in torchvision.models.list_models(torchvision.models):
        raise NoImageNetWeights(f"torchvision has no {arch}", MISSING)
    default = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    return str(default), Stated(IMAGENET_MEAN, IMAGENET_STD, source="as torchvision's")


def _download_torchvision(arch: str, size: int, name: str, stated: Stated) -> Weights:
    default = torchvision.models.get_weight(name)
    encoder, _ = build_encoder(arch, size, 3)
    try:
        state = default.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network, or a truncated download
        raise NoImageNetWeights(f"{name} could not be downloaded ({error})", UNREACHABLE) from None
    encoder.load_state_dict({tensor: state[tensor] for tensor in encoder.state_dict()})  # without the classifier
    return Weights(arch, encoder.eval(), 3, None, stated, [name])


def _timm_weights(arch: str) -> tuple[str, Stated]:
    """Return the name of timm's weights and the input that timm states for them."""
    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    if config is None or not (config.hf_hub_id or config.url):
        raise NoImageNetWeights(f"timm has no pretrained weights for {arch}", MISSING)
    if config.tag and not TRAINED_ON_IMAGENET.search(config.tag):
        raise NoImageNetWeights(f"timm's pretrained weights for {arch} are {config.tag}, not ImageNet's; name others: "
                                f"{arch.split('.')[0]}.TAG", MISSING)  # fmt: skip
    stated = Stated(tuple(config.mean), tuple(config.std), int(config.input_size[-1]), config.interpolation,
                    source="from timm's pretrained_cfg")  # fmt: skip
    return f"timm/{config.architecture}{f'.{config.tag}' * bool(config.tag)}", stated


def _download_timm(arch: str, size: int, name: str, stated: Stated) -> Weights:
    try:
        folder = download(timm_repository(arch))
    except InputError as error:
        raise NoImageNetWeights(str(error), UNREACHABLE) from None
    return _named(read_weights(folder, arch, size), name, stated)
