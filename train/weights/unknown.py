"""Say why no architecture fits a file's tensors, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from train.weights.diagnosis import printable
from train.weights.find_architecture import GIVEN, Architecture
from train.weights.find_encoder import Found

EXPECTED = ("give a state dict of a ResNet or DenseNet of torchvision or timm, or name another architecture: "
            "timm/NAME=PATH or torchvision/NAME=PATH")  # fmt: skip
VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
# A tensor's name → what the file is, and what to give instead.
KINDS = (
    (r"(^|\.)attnpool\.", "CLIP's modified ResNet (a stem of three convolutions, attention pooling), not torchvision's",
     "name it, such as timm/resnet50_clip=PATH"),
    (r"embeddings\.patch_embeddings\.|embedder\.embedder\.convolution\.", "named as in Hugging Face's transformers",
     "give its folder, which has a config.json"),
    (r"(^|\.)visual\.class_embedding$", "CLIP's vision transformer",
     "name it, such as timm/vit_base_patch16_clip_224=PATH"),
)  # fmt: skip


def describe_unknown(
    path: Path, tensors: Mapping[str, torch.Tensor], architectures: Sequence[Architecture], compared: Sequence[Found]
) -> str:  # fmt: skip
    """Return the message for a file that fits none of the architectures that it was compared with.

    compared: these, with the tensors that have some of their names.
    """
    named = {architecture.arch: architecture for architecture in architectures}
    near = [found for found in compared if 2 * len(found.state) >= len(found.outline.shapes)]
    closest = min(near, key=_differences, default=None)
    arch = closest.outline.arch if closest else next(iter(named), "")
    source = named[arch].source if named else ""
    names = list(tensors)
    shown = f"{', '.join(map(printable, names[:2]))}{', …' if names[2:] else ''}"
    mismatch = closest.describe_mismatch() if closest else f"none of its names among {shown}"
    if source and source != GIVEN:
        return (f"{path}: {source}, which its tensors do not fit ({mismatch}): another network, or the config of "
                f"another file; {EXPECTED}")  # fmt: skip
    kind, cure = (not (source and closest) and _kind(names)) or (not closest and _vision_transformer(tensors)) or (
        "", EXPECTED)  # fmt: skip
    if source or (closest and not kind):
        return f"{path}: not {arch}'s weights ({kind or mismatch}); {cure}"
    unknown = f"no architecture is known by the names of its {len(names)} tensors ({shown})"
    return f"{path}: {kind or unknown}; {cure}"


def _differences(found: Found) -> int:
    return len(found.missing) + len(found.misfits) + len(found.foreign)


def _kind(names: Iterable[str]) -> tuple[str, str] | None:
    for pattern, kind, cure in KINDS:
        if any(re.search(pattern, name) for name in names):
            return kind, cure
    return None


def _vision_transformer(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str] | None:
    """Describe a vision transformer by its width, depth and patches; None if the file has none in timm's names."""
    stem = next((value for name, value in tensors.items() if name.endswith("patch_embed.proj.weight")), None)
    blocks = {name.partition("blocks.")[2].split(".")[0] for name in tensors if re.search(r"(^|\.)blocks\.\d+\.", name)}
    if stem is None or stem.ndim != 4 or not blocks:
        return None
    width, patch = stem.shape[0], stem.shape[-1]
    example = f"timm/vit_{VIT_WIDTHS.get(width, 'base')}_patch{patch}_224"
    return (f"a vision transformer of width {width}, {len(blocks)} blocks and {patch}×{patch} patches, whose names do "
            "not tell which", f"name its architecture, such as {example}=PATH")  # fmt: skip
