"""Notes on an encoder that was read from a file: what is assumed, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from train.weights.diagnosis import list_some, printable
from train.weights.find_encoder import Found


def note_encoder(encoder: nn.Module, found: Found) -> list[str]:
    """Note what the file has beside the encoder, and BatchNorm statistics that were never updated."""
    heads = {layer.partition(".")[0] for layer in found.outline.classifier}
    rest = dict.fromkeys(name.partition(".")[0] + ".*" * ("." in name) for name in found.left
                         if name.partition(".")[0] not in heads)  # fmt: skip
    return [*note_statistics(encoder), *([f"left out: {list_some(list(rest), 4)}"] if rest else [])]


def note_statistics(encoder: nn.Module) -> list[str]:
    """Warn if BatchNorm layers have their initial statistics, so that they normalise nothing."""
    norms = [(module.running_mean, module.running_var) for module in encoder.modules()
             if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]  # fmt: skip
    unused = sum(mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())
                 for mean, variance in norms)  # fmt: skip
    return [f"WARNING: {unused} of {len(norms)} BatchNorm layers have the statistics that they start with (mean 0, "
            "variance 1): never updated, or lost when the weights were saved"] if unused else []  # fmt: skip


def list_rest(found: Found, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """List what a file has beside the encoder, each name cut where it departs from the encoder's prefix."""
    parts, left = found.prefix.split(".")[:-1], set(found.left)
    short = []
    for name in tensors:
        if name.startswith(found.prefix) and name.removeprefix(found.prefix) not in left:
            continue
        own = name.split(".")
        pairs = enumerate(zip(parts, own, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), len(parts))
        short.append(printable(".".join(own[: shared + 1]) + ".*" * (len(own) > shared + 1)))
    return list(dict.fromkeys(short))


def note_assumption(arch: str) -> str:
    """Note what is assumed of an architecture that only its tensors' names tell."""
    network = arch.rpartition("/")[2]
    details = " (7×7 stem of stride 2, max pooling, ReLU, no dilation)" if network.startswith("resnet") else ""
    return (f"ASSUMED to be torchvision's {network}{details}: the weights alone do not exclude another network with "
            "these tensor names")  # fmt: skip


def note_segmentation(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Note a segmentation head in the file, because such backbones are mostly dilated."""
    head = next((name for name, value in tensors.items()
                 if re.search(r"(^|\.)(aux_)?classifier\.", name) and value.ndim == 4), None)  # fmt: skip
    return [f"the file has a segmentation head ({printable(head)}); such backbones are mostly dilated, which is "
            "ignored here and changes the features"] if head else []  # fmt: skip
