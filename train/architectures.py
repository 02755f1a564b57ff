"""The encoder architectures that --arch offers: those listed below, and every model of timm as timm/NAME.

To add one, write a function that builds it and list it in ARCHITECTURES.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from shard.errors import InputError
from train.timm_models import STRIDES, UNFIT, CutOff, check_patches, create, explain_unfit, feature_width

if TYPE_CHECKING:  # the command line checks the listed names without importing PyTorch, which takes a second
    from torch import nn

TORCHVISION = "torchvision/"  # prefix of torchvision's models, for files of weights
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")  # torchvision's; timm has the same networks


def grey_resnet(name: str, channels: int = 1) -> tuple[nn.Module, int]:
    """Build torchvision's ResNet with random weights and no classifier."""
    import torchvision
    from torch import nn

    resnet = torchvision.models.get_model(name, weights=None)
    old = resnet.conv1
    resnet.conv1 = nn.Conv2d(channels, old.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's other convs
    features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, features


# Name → function that builds an encoder [N, C, S, S] → [N, F] for C input channels and returns it with F.
ARCHITECTURES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    name: partial(grey_resnet, name) for name in RESNETS
}


def build_encoder(
    arch: str, size: int = 224, channels: int = 1, model_args: Mapping[str, Any] | None = None
) -> tuple[nn.Module, int]:  # fmt: skip
    """Build the encoder of an architecture, with random weights, and return it with its feature width F.

    size: the images' side in pixels, for architectures that are built for one size, such as vision transformers.
    model_args: further arguments of timm.create_model. Raises InputError if the architecture is unknown or can't take
    images of that size.
    """
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch](channels)
    if arch.startswith(TORCHVISION):
        from train.torchvision_models import create_classifier

        return create_classifier(arch, channels)
    width = feature_width(arch, size, channels, model_args or {}, list(ARCHITECTURES))
    return create(arch, size, channels, model_args or {}), width


def check_arch(arch: str, size: int, *, flag: str = "--arch=") -> None:
    """Raise InputError if no architecture has this name, or if it can't take grey images of size × size.

    flag: what the message puts before the name.
    """
    if arch in ARCHITECTURES:
        return
    if arch.startswith(TORCHVISION):
        raise InputError(f"{flag}{arch}: torchvision's names are for files of weights; give "
                         f"{', '.join(ARCHITECTURES)} or a model of timm, as timm/NAME")  # fmt: skip
    try:
        feature_width(arch, size, 1, {}, list(ARCHITECTURES))
    except InputError as error:
        raise InputError(f"{flag}{error}") from None


def first_convs(encoder: nn.Module) -> list[str]:
    """Return the names of the convolutions that the images enter: one, or several parallel ones as in RepVGG."""
    from torch import nn

    convs = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)}
    named = (getattr(encoder, "pretrained_cfg", None) or {}).get("first_conv") or ()
    known = [name for name in ([named] if isinstance(named, str) else named) if name in convs]
    return known or list(convs)[:1]


def first_conv(encoder: nn.Module) -> str:
    """Return the name of the convolution that the images enter; of several parallel ones the first."""
    return first_convs(encoder)[0]


def resize_input(encoder: nn.Module, size: int, channels: int = 0) -> None:
    """Prepare an encoder, in place, for images of size × size.

    timm's models with one image size get their positions interpolated; an encoder that takes any size stays as it is.
    channels: of the images; by default those of the first convolution.
    Raises InputError if the encoder can't take images of that size.
    """
    try:
        _set_input_size(encoder, size, channels)
    except UNFIT as error:
        name = (getattr(encoder, "pretrained_cfg", None) or {}).get("architecture") or type(encoder).__name__
        strides = (error.patch,) if isinstance(error, CutOff) else STRIDES
        unfit = explain_unfit(size, error, partial(_can_resize, encoder, channels), strides, "omit --size")
        raise InputError(f"--size={size}: {name} {unfit}") from None


def _set_input_size(encoder: Any, size: int, channels: int) -> None:
    import torch

    check_patches(encoder, size)
    if hasattr(encoder, "set_input_size"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about timm's own use of PyTorch
            encoder.set_input_size(img_size=(size, size))
    weight = encoder.get_submodule(first_conv(encoder)).weight
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        encoder(torch.zeros(1, channels or weight.shape[1], size, size, device=weight.device))
    encoder.train(training)


def _can_resize(encoder: nn.Module, channels: int, size: int) -> bool:
    """Whether resize_input would succeed, tried on a copy without weights."""
    try:
        _set_input_size(copy.deepcopy(encoder).to("meta"), size, channels)
    except UNFIT:
        return False
    return True
