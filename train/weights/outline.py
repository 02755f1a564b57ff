"""The names and shapes of an architecture's tensors, found without memory for weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from train.architectures import TORCHVISION, build_encoder
from train.torchvision_models import classifier_name

OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")  # PyTorch before 0.4 named them norm.1, conv.2
COUNTER = "num_batches_tracked"  # PyTorch before 0.4.1 did not count batches, and features do not depend on it


class Outline(NamedTuple):
    """An architecture without weights.

    encoder: the module, on the meta device. shapes: of its tensors, by name. classifier: names of the layers that were
    left out of it.
    """

    arch: str
    channels: int
    encoder: nn.Module
    shapes: dict[str, torch.Size]
    classifier: tuple[str, ...]


OUTLINES: dict[str, Outline] = {}  # made so far, by the arguments of make_outline


def make_outline(arch: str, size: int, channels: int, model_args: Mapping[str, Any]) -> Outline:
    """Outline an architecture. Raises InputError if it is unknown or can't take images of size × size."""
    key = repr((arch, size, channels, sorted(model_args.items())))
    if key not in OUTLINES:
        OUTLINES[key] = _make_outline(arch, size, channels, model_args)
    return OUTLINES[key]


def _make_outline(arch: str, size: int, channels: int, model_args: Mapping[str, Any]) -> Outline:
    with torch.device("meta"):
        encoder, _ = build_encoder(arch, size, channels, model_args)
        classifier = classifier_name(arch) if arch.startswith(TORCHVISION) else ""
    config = getattr(encoder, "pretrained_cfg", None) or {}
    names = classifier or config.get("classifier") or "fc"
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    return Outline(arch, channels, encoder, shapes, (names,) if isinstance(names, str) else tuple(names))


class Naming(NamedTuple):
    """Names that a file has for an encoder's tensors and children.

    tensors: from theirs to the encoder's. children, classifier: theirs of the encoder's children, and of the layers
    that were left out.
    """

    tensors: dict[str, str]
    children: frozenset[str]
    classifier: tuple[str, ...]


def list_namings(outline: Outline) -> list[Naming]:
    """List the names that files may have for an encoder's tensors.

    The encoder's own; children numbered as in nn.Sequential(*network.children()); DenseNet's before PyTorch 0.4; both.
    """
    numbers = {name: str(number) for number, (name, _) in enumerate(outline.encoder.named_children())}

    def number(name: str) -> str:
        head, dot, rest = name.partition(".")
        return numbers.get(head, head) + dot + rest

    def age(name: str) -> str:
        return OLD_DENSENET.sub(r"\1.\2.", name)

    renames: list[Callable[[str], str]] = [str]
    if all("." in name for name in outline.shapes):  # a parameter of the network itself has no number
        renames.append(number)
    if any(OLD_DENSENET.search(name) for name in outline.shapes):
        renames += [age, lambda name: age(number(name))]
    return [Naming({rename(name): name for name in outline.shapes}, frozenset(map(rename, numbers)),
                   tuple(map(rename, outline.classifier))) for rename in renames]  # fmt: skip
