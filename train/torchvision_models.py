"""torchvision's classifiers as encoders, for files of weights only: --arch offers its ResNets, and timm's models."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torchvision
from torch import nn

from shard.errors import InputError
from train.architectures import TORCHVISION


def create_classifier(arch: str, channels: int) -> tuple[nn.Module, int]:
    """Create a classifier of torchvision with random weights, without its last linear layer, and return its width F.

    Features are what that layer gets. Raises InputError if torchvision has no such classifier.
    """
    model, name = _create(arch)
    classifier = model.get_submodule(name)
    assert isinstance(classifier, nn.Linear)
    model.set_submodule(name, nn.Identity())
    if channels != 3:
        _replace_stem(model, channels)
    return model, classifier.in_features


def classifier_name(arch: str) -> str:
    """Return the name of the linear layer that create_classifier removes."""
    return _create(arch)[1]


def _create(arch: str) -> tuple[nn.Module, str]:
    name = arch.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, cutoff=0.3) or known[:3]
        raise InputError(f"{arch}: torchvision {torchvision.__version__} has no such classifier; closest: "
                         f"{', '.join(TORCHVISION + other for other in close)}")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet's and Inception's, on how they are initialised
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"{arch}: has no linear classifier, so what its features are is not defined; use another")
    return model, linear[-1]


def _replace_stem(model: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels."""
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    settings: dict[str, Any] = {key: getattr(old, key) for key in ("out_channels", "kernel_size", "stride", "padding")}
    model.set_submodule(name, nn.Conv2d(channels, bias=old.bias is not None, **settings))
