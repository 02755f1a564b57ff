"""Prepare an encoder's tensors: their number format, names and sizes of other projects, and BatchNorm's statistics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from shard.errors import InputError
from train.timm_models import TIMM
from train.weights.diagnosis import printable
from train.weights.find_encoder import Found, State, compare
from train.weights.outline import COUNTER, Outline

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Prefixes to try for the original project's network, which has none of timm's names.
ROOTS = ("", "module.", "state_dict.", "state_dict.module.", "model.", "model.module.")


def to_float32(found: Found, path: Path) -> tuple[State, list[str]]:
    """Convert an encoder's tensors to float32, except counters: (state dict, notes on other formats).

    Raises InputError for weights in integers, 8-bit floats or quantised ones.
    """
    state, formats, expected = {}, set(), found.outline.encoder.state_dict()
    for name, value in found.state.items():
        if not expected[name].is_floating_point():
            state[name] = value.to(expected[name].dtype)
            continue
        if value.dtype not in FLOATS or value.layout != torch.strided or value.is_quantized:
            kind = f"{value.dtype}, {value.layout}".replace("torch.", "").replace(", strided", "")
            raise InputError(f"{path}: {printable(name)} is stored as {kind}, like quantised weights; give weights in "
                             "float32, float16 or bfloat16")  # fmt: skip
        formats |= {str(value.dtype).removeprefix("torch.")} - {"float32"}
        state[name] = value.float()
    return state, [f"stored as {' and '.join(sorted(formats))}, used as float32"] if formats else []


def convert_by_timm(candidates: list[Found], tensors: Mapping[str, torch.Tensor], outline: Outline) -> list[Found]:
    """Convert tensors with timm's own filter for an architecture's checkpoints; [] if it has none, or none fits.

    It renames those of the original projects and interpolates positions of another image size. candidates: the tensors
    under prefixes that have most of the architecture's names; if none has half of them, all tensors are tried.
    """
    convert = _timm_filter(outline.arch)
    if convert is None:
        return []
    prefixes = [found.prefix for found in candidates if 2 * len(found.state) >= len(outline.shapes)] or [
        prefix for prefix in ROOTS if any(name.startswith(prefix) for name in tensors)]  # fmt: skip
    converted = []
    for prefix in dict.fromkeys(prefixes):
        given = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        try:
            state = convert(given, outline.encoder)
        except Exception:  # timm's filters raise various errors for a layout that they do not know
            continue
        found = compare({str(name): value for name, value in state.items()}, outline, prefix)
        converted += [found] if found.fits else []
    return converted


def describe_conversion(found: Found, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Note what timm's filter has changed: names, and sizes."""
    own = {name.removeprefix(found.prefix): value for name, value in tensors.items() if name.startswith(found.prefix)}
    renamed = [name for name in found.state if name not in own and not name.endswith(COUNTER)]
    resized = [f"{printable(name)} from {list(own[name].shape)} to {list(value.shape)}"
               for name, value in found.state.items() if name in own and own[name].shape != value.shape]  # fmt: skip
    more = f" and {len(resized) - 1} more" if resized[1:] else ""
    what = "converted" if renamed else "interpolated"
    return [*([f"{len(renamed)} tensors renamed by timm, from the names of the original project"] if renamed else []),
            *([f"{what} by timm: {resized[0]}{more}"] if resized else [])]  # fmt: skip


def _timm_filter(arch: str) -> Callable[[State, nn.Module], State] | None:
    """Return the function with which timm.create_model(pretrained=True) converts checkpoints, None if it has none."""
    if not arch.startswith(TIMM):
        return None
    import timm

    module = inspect.getmodule(timm.model_entrypoint(arch.removeprefix(TIMM).split(".")[0]))
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return None
    takes = inspect.signature(convert).parameters
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in takes else {}  # DeiT III's names, as in timm.deit

    def apply(state: State, encoder: nn.Module) -> State:
        converted: State = convert(state, encoder, **options)
        return converted

    return apply
