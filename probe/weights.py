"""A file of ResNet weights, from whomever → the network they belong to, and how it wants its images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from pipeline.recipe import Recipe
from shard.errors import InputError
from train.checkpoint import UnreadableTensors, read_tensors
from train.model import grey_resnet

# Residual blocks in each of the four layers, and whether they are bottlenecks.
ARCHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
PREFIXES = ("module.", "encoder.", "backbone.", "model.")  # of those who save an encoder inside of something
WANTED = "wanted is a state dict of a torchvision or timm resnet18, 34, 50 or 101, as python -m train export makes"


class Weights(NamedTuple):
    """A ResNet without its classifier. colour: whether it takes three channels; card: our export's, where it is one."""

    arch: str
    resnet: nn.Module
    colour: bool
    card: dict[str, Any] | None


def read_weights(path: Path) -> Weights:
    """Read a state dict of torchvision or timm, .pt or .safetensors, or timm's folder. Raises InputError with the cure.

    As data alone: code in the file is refused.
    """
    content, card = _read(path / "model.safetensors" if path.is_dir() else path)
    state = _state_of(content)
    if not state:
        raise InputError(f"{path}: holds no weights by name; {WANTED}")
    for prefix in PREFIXES:
        if prefix + "conv1.weight" in state:
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if "conv1.weight" not in state:
        raise InputError(f"{path}: no conv1.weight among its {len(state)} tensors ({', '.join(list(state)[:2])}, …); "
                         f"{WANTED}")  # fmt: skip
    blocks = tuple(len({name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")})
                   for layer in (1, 2, 3, 4))  # fmt: skip
    arch = ARCHS.get((blocks, "layer1.0.conv3.weight" in state))
    if arch is None:
        raise InputError(f"{path}: a network with {blocks} residual blocks; {WANTED}")
    colour = state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[1] == 3
    resnet = torchvision.models.get_model(arch, weights=None) if colour else grey_resnet(arch)[0]
    resnet.fc = nn.Identity()
    try:
        resnet.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).split("\n")[1 if "\n" in str(error) else 0].strip()[:120]
        raise InputError(f"{path}: not {arch}'s weights ({reason}); {WANTED}") from None
    return Weights(arch, resnet.eval(), colour, card)


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a file holds, and the model card in it."""
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise InputError(f"{path}: to read safetensors: pip install '.[export]'") from None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: can't be read as safetensors ({error}); {WANTED}") from None
        return state, _card_in(path, lambda: json.loads(metadata["card"])) if "card" in metadata else None
    try:
        content = read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: can't be read as weights ({error}); {WANTED}") from None
    return content, _card_in(path, lambda: content.card) if hasattr(content, "card") else None


def _card_in(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    """A file's model card, as far as it says how images are made. Raises InputError where it does not."""
    try:
        card: dict[str, Any] = read()
        Recipe(**{name: card["input"][name] for name in ("size", "mean", "std")})  # which looks at them
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its model card can't be read ({type(error).__name__}: {error}); {WANTED}") from None
    return card


def _state_of(content: Any) -> dict[str, torch.Tensor]:
    """The tensors by name, also where they lie under one of the usual names of a larger whole."""
    for name in ("state_dict", "model", "teacher", "student"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
