"""Models of timm as encoders: their names, the sizes of images that they take, and their feature widths."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shard.errors import InputError

if TYPE_CHECKING:  # the command line checks the listed names without importing PyTorch, which takes a second
    from torch import nn

TIMM = "timm/"  # prefix of timm's models
WIDTHS: dict[tuple[str, int, int, str], int] = {}  # found so far, by the arguments of feature_width
LARGEST_SIZE = 1024  # of views
STRIDES = (16, 32, 64)  # sizes to suggest are multiples of one of these, or of the model's patches
# What timm's models raise for images that they can't take.
UNFIT = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError,
         ZeroDivisionError)  # fmt: skip


class UnfitArch(InputError):
    """An architecture that does not exist, or can't take the images. The message begins with its name."""


def create(arch: str, size: int, channels: int, model_args: Mapping[str, Any]) -> nn.Module:
    """Create a model of timm with random weights, without a classifier."""
    import timm

    given = {"num_classes": 0, "in_chans": channels, **({"img_size": size} if _has_fixed_size(arch) else {})}
    encoder: nn.Module = timm.create_model(arch.removeprefix(TIMM), pretrained=False, **{**model_args, **given})
    return encoder


def feature_width(
    arch: str, size: int, channels: int, model_args: Mapping[str, Any], own: Sequence[str] = ()
) -> int:  # fmt: skip
    """Return the width of the features of size × size images, found by a forward pass without data or weights.

    own: names of other architectures, to suggest. Raises InputError if timm has no such model, or if it can't take
    images of that size.
    """
    key = (arch, size, channels, repr(sorted(model_args.items())))
    if key not in WIDTHS:
        WIDTHS[key] = _find_width(arch, size, channels, model_args, own)
    return WIDTHS[key]


def _find_width(arch: str, size: int, channels: int, model_args: Mapping[str, Any], own: Sequence[str]) -> int:
    _check_name(arch, own)
    try:
        return _trace(arch, size, channels, model_args)
    except UNFIT as error:
        raise UnfitArch(f"{arch}: {_explain(arch, size, channels, model_args, error)}") from None


def _check_name(arch: str, own: Sequence[str]) -> None:
    """Raise InputError if timm has no model of that name. own: names of other architectures."""
    import timm

    name, _, tag = arch.removeprefix(TIMM).partition(".")
    models = timm.list_models()  # without the former names that timm still accepts, of which it lacks the image size
    if not arch.startswith(TIMM):
        if name in models:
            raise UnfitArch(f"{arch}: is a model of timm; give {TIMM}{arch}")
        raise UnfitArch(f"{arch}: no such architecture; closest: {_closest(arch, [*own, *map(TIMM.__add__, models)])}")
    if name not in models:
        raise UnfitArch(f"{arch}: timm {timm.__version__} has no such model; closest: "
                         f"{_closest(name, [*own, *map(TIMM.__add__, models)])}")  # fmt: skip
    tagged = timm.list_models(f"{name}.*", pretrained=True)
    if tag and f"{name}.{tag}" not in tagged:
        raise UnfitArch(f"{arch}: timm {timm.__version__} has no such weights of {name}; closest: "
                         f"{_closest(arch, [TIMM + weights for weights in tagged])}")  # fmt: skip


def _closest(wanted: str, names: list[str]) -> str:
    """List up to three of the names, without tags: those that continue the wanted one, then the most similar."""
    shown = {name.removeprefix(TIMM): name for name in reversed(names)}  # the first of two of the same name
    bare = wanted.removeprefix(TIMM)
    longer = sorted((name for name in shown if bare and name.startswith(f"{bare}_")), key=len)
    close = difflib.get_close_matches(bare, shown, 3, cutoff=0.3)
    return ", ".join(shown.get(name, name) for name in list(dict.fromkeys([*longer, *close]))[:3] or names[:3])


def _trace(arch: str, size: int, channels: int, model_args: Mapping[str, Any]) -> int:
    import torch

    with warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        warnings.simplefilter("ignore")  # about timm's own use of PyTorch
        encoder = create(arch, size, channels, model_args).eval()
        if not any(isinstance(module, torch.nn.Conv2d) for module in encoder.modules()):
            raise ValueError("images enter it by no convolution")
        check_patches(encoder, size)
        features = encoder(torch.zeros(2, channels, size, size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        shape = f"features of shape {list(features.shape)}" if isinstance(features, torch.Tensor) else "several outputs"
        raise ValueError(f"it returns {shape}, and not one vector per image")
    return int(features.shape[1])


class CutOff(ValueError):
    """Patches do not fill the image, and timm would ignore the rest of it. patch: their side."""

    def __init__(self, patch: int) -> None:
        super().__init__(f"it cuts them into patches of {patch}×{patch}")
        self.patch = patch


def check_patches(encoder: nn.Module, size: int) -> None:
    """Raise CutOff if patches do not fill images of size × size."""
    patch = _patch_size(encoder)
    if patch and size % patch:
        raise CutOff(patch)


def _patch_size(encoder: nn.Module) -> int:
    """Return the side of the patches that a model with one image size cuts images into; 0 for other models."""
    patches = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    config = getattr(encoder, "pretrained_cfg", None) or {}
    if not config.get("fixed_input_size") or patches is None:
        return 0
    return int(patches if isinstance(patches, int) else patches[0])


def _has_fixed_size(arch: str) -> bool:
    """Whether timm builds the model for one image size, such as a vision transformer's positions."""
    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    return bool(config and config.fixed_input_size)


def _explain(arch: str, size: int, channels: int, model_args: Mapping[str, Any], error: Exception) -> str:
    """Say that the model can't take images of size × size, why, and what to do about it."""

    def fits(side: int) -> bool:
        try:
            return bool(_trace(arch, side, channels, model_args))
        except UNFIT:
            return False

    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    usual = int(config.input_size[-1]) if config else size
    patch = error.patch if isinstance(error, CutOff) else 0
    return explain_unfit(size, error, fits, (patch,) if patch else (*STRIDES, usual), "choose another architecture")


def explain_unfit(
    size: int, error: Exception, fits: Callable[[int], bool], strides: Sequence[int], otherwise: str
) -> str:  # fmt: skip
    """Describe an error of a model on images of size × size, and suggest sizes that it takes.

    strides: the nearest multiples of these are tried. fits: whether it takes images of a size. otherwise: what to
    suggest if it takes none of them.
    """
    reason = " ".join(str(error).split())[:100]
    below = {size // stride * stride for stride in strides} - {size, 0}
    above = {size // stride * stride + stride for stride in strides}
    lower = next((side for side in sorted(below, reverse=True) if fits(side)), 0)
    upper = next((side for side in sorted(above) if side <= LARGEST_SIZE and fits(side)), 0)
    found = [f"--size={side}" for side in (lower, upper) if side]
    cure = f"give {' or '.join(found)}" if found else otherwise
    return f"can't take grey images of {size}×{size}{f' ({reason})' if reason else ''}; {cure}"
