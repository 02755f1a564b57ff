"""The library that has an architecture, and the formats that its encoders can be exported in."""

from __future__ import annotations

from typing import Literal

from train.architectures import RESNETS
from train.timm_models import TIMM

Format = Literal["torchvision", "timm", "safetensors", "onnx"]
Library = Literal["torchvision", "timm", "train"]

# The first one is the default.
FORMATS: dict[Library, tuple[Format, ...]] = {
    "torchvision": ("torchvision", "timm", "safetensors", "onnx"),
    "timm": ("timm", "safetensors", "onnx"),
    "train": ("safetensors", "onnx"),  # added to train/architectures.py
}


def library_of(arch: str) -> Library:
    """Return the library that has an architecture of --arch."""
    return "timm" if arch.startswith(TIMM) else "torchvision" if arch in RESNETS else "train"


def short_name(arch: str) -> str:
    """Return an architecture's name without timm/ and without the tag, which names weights that timm publishes."""
    return arch.removeprefix(TIMM).partition(".")[0] if arch.startswith(TIMM) else arch
