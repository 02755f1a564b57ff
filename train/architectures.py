"""The encoder architectures that --arch offers: those listed below, and every model of timm as timm/NAME.

To add one, write a function that builds it and list it in ARCHITECTURES.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from shard.errors import InputError

if TYPE_CHECKING:  # the command line checks the listed names without importing PyTorch, which takes a second
    from torch import nn

TIMM = "timm/"  # prefix of timm's models
LARGEST_SIZE = 1024  # of views


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


# Name → function of the number of input channels C that builds the encoder, [N, C, S, S] → [N, F], and returns it with
# F.
ARCHITECTURES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    name: partial(grey_resnet, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")
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
    width = timm_width(arch, size, channels, tuple(sorted((model_args or {}).items())))
    return _create(arch, size, channels, dict(model_args or {})), width


def check_arch(arch: str, size: int) -> None:
    """Raise InputError if no architecture has this name, or if it can't take images of size × size."""
    if arch not in ARCHITECTURES:
        timm_width(arch, size)


def first_conv(encoder: nn.Module) -> str:
    """Return the name of the convolution that the images enter."""
    from torch import nn

    return next(str(name) for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d))


@functools.cache
def timm_width(arch: str, size: int, channels: int = 1, model_args: tuple[tuple[str, Any], ...] = ()) -> int:
    """Return the feature width of a model of timm, found by a forward pass without data.

    Raises InputError if timm has no such model, or if the model can't take images of that size.
    """
    _check_name(arch)
    try:
        return _trace(arch, size, channels, dict(model_args))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"--arch={arch}: can't take images of {size}×{size} ({reason}); "
                         f"{_sizes_that_fit(arch, size, channels, dict(model_args))}") from None  # fmt: skip


def _check_name(arch: str) -> None:
    import timm

    name, _, tag = arch.removeprefix(TIMM).partition(".")
    if arch.startswith(TIMM) and timm.is_model(name) and (
        not tag or f"{name}.{tag}" in timm.list_models(f"{name}.*", pretrained=True)
    ):
        return
    if not arch.startswith(TIMM) and timm.is_model(name):
        raise InputError(f"--arch={arch}: is a model of timm; give --arch={TIMM}{arch}")
    known = [*ARCHITECTURES, *(TIMM + model for model in timm.list_models())]
    if arch.startswith(TIMM) and timm.is_model(name):
        known = [TIMM + model for model in timm.list_models(f"{name}.*", pretrained=True)]
    wanted = arch if "/" in arch else TIMM + arch
    close = difflib.get_close_matches(wanted, known, 3, cutoff=0.3) or list(ARCHITECTURES)
    raise InputError(f"--arch={arch}: no such architecture; closest: {', '.join(close)}")


def _trace(arch: str, size: int, channels: int, model_args: dict[str, Any]) -> int:
    """Return the width of the features of size × size images, computed without data or weights."""
    import torch
    from torch import nn

    with torch.device("meta"), torch.no_grad():
        encoder = _create(arch, size, channels, model_args).eval()
        patches = encoder.get_submodule(first_conv(encoder))
        if _has_fixed_size(arch) and isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride:
            patch = patches.stride[0]
            if size % patch:
                raise ValueError(f"it cuts them into patches of {patch}×{patch}")
        features = encoder(torch.zeros(2, channels, size, size))
    if features.ndim != 2:
        raise ValueError(f"it returns {list(features.shape)} and not one vector per image")
    return int(features.shape[1])


def _create(arch: str, size: int, channels: int, model_args: dict[str, Any]) -> nn.Module:
    import timm

    given = {"num_classes": 0, "in_chans": channels, **({"img_size": size} if _has_fixed_size(arch) else {})}
    encoder: nn.Module = timm.create_model(arch.removeprefix(TIMM), pretrained=False, **{**model_args, **given})
    return encoder


def _has_fixed_size(arch: str) -> bool:
    """Whether timm builds the model for one image size, such as a vision transformer's positions."""
    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    return bool(config and config.fixed_input_size)


def _sizes_that_fit(arch: str, size: int, channels: int, model_args: dict[str, Any]) -> str:
    """Advise on the nearest sizes that the model can take."""

    def fits(side: int) -> bool:
        try:
            return bool(_trace(arch, side, channels, model_args))
        except (RuntimeError, AssertionError, ValueError, TypeError):
            return False

    below = next((side for side in range(size - 1, max(size - 65, 0), -1) if side % 4 == 0 and fits(side)), 0)
    above = next((side for side in range(size + 1, min(size + 257, LARGEST_SIZE)) if side % 4 == 0 and fits(side)), 0)
    found = [f"--size={side}" for side in (below, above) if side]
    return f"give {' or '.join(found)}" if found else "choose another architecture"
