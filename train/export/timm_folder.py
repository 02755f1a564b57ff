"""The folder that timm.create_model("local-dir:DIR") and the Hugging Face hub take: config.json and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from shard.errors import InputError
from shard.files import write_bytes
from train.export.channels import equal_features
from train.export.library import short_name
from train.timm_models import TIMM

WEIGHTS, CONFIG, PAGE = "model.safetensors", "config.json", "README.md"  # names that timm and the hub prescribe
TAG = "cxr_simclr"  # of the weights; those of timm have tags such as a1_in1k


def pooling_of(encoder: nn.Module) -> str:
    """Return timm's name of an encoder's pooling, such as avg, token or map, or "" if it is not known."""
    if hasattr(encoder, "avgpool"):  # torchvision's ResNet
        return "avg"
    for owner in (getattr(encoder, "head", None), encoder):  # as timm reads it
        for name in ("global_pool", "pool_type"):
            pool = getattr(owner, name, None)
            pool = getattr(pool, "pool_type", pool)
            if pool and isinstance(pool, str):
                return pool
    return ""


def timm_config(encoder: nn.Module, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's config.json of exported weights, with the card under "card", a key that timm ignores."""
    name, channels, size = card["arch"].removeprefix(TIMM), card["channels"], card["input"]["size"]
    published = _published(name)
    pretrained = {
        "tag": TAG, "custom_load": False, "input_size": (channels, size, size),
        # What timm's entry says of the architecture itself; the rest describes the weights that timm publishes.
        "fixed_input_size": published["fixed_input_size"] and not getattr(encoder, "dynamic_img_size", False),
        "first_conv": published["first_conv"], "classifier": published["classifier"], "num_classes": 0,
        # Like our probe: resize the complete image, since a center crop would cut off the costophrenic angles.
        "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (card["input"]["mean"],) * channels, "std": (card["input"]["std"],) * channels,
        "pool_size": published["pool_size"] if published["input_size"][-1] == size else None,
    }  # fmt: skip
    if published["min_input_size"]:
        pretrained["min_input_size"] = (channels, *published["min_input_size"][1:])
    pooling = {"global_pool": pool} if (pool := pooling_of(encoder)) else {}
    width = getattr(encoder, "num_features", card["features"])
    return {
        "architecture": short_name(card["arch"]), "num_classes": 0, "num_features": width, **pooling,
        "model_args": model_args(name, channels, size), "pretrained_cfg": pretrained, "card": dict(card),
    }  # fmt: skip


def model_args(name: str, channels: int, size: int) -> dict[str, Any]:
    """Return the arguments that timm.create_model needs beside num_classes=0 to build the encoder.

    name: timm's. Only those that differ from the architecture's: Hugging Face's transformers passes num_classes itself.
    """
    fixed = {"img_size": [size, size]} if _published(name)["fixed_input_size"] else {}
    return fixed if channels == 3 else {**fixed, "in_chans": channels}


def _published(name: str) -> dict[str, Any]:
    """Return what timm publishes of an architecture and its weights, by the names of config.json."""
    import timm
    from timm.models import PretrainedCfg

    return asdict(timm.get_pretrained_cfg(name) or PretrainedCfg())


def to_config(encoder: nn.Module, card: Mapping[str, Any]) -> bytes:
    """Return the content of config.json."""
    return (json.dumps(timm_config(encoder, card), indent=1, allow_nan=False) + "\n").encode()


def check_folder(files: Mapping[Path, bytes], grey: nn.Module, card: Mapping[str, Any]) -> None:
    """Raise InputError unless timm loads the files to an encoder of one channel with the features of `grey`."""
    import timm

    size = card["input"]["size"]
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            write_bytes(Path(folder, file.name), content)
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
            reason = "" if equal_features(grey, images, model, images) else "other features"
        except (RuntimeError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    if reason:
        raise InputError(f"--format=timm: timm does not load {card['arch']} back from such a folder ({reason}); "
                         "use --format=safetensors")
