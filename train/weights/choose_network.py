"""Choose the network in a file of weights: its only ResNet, or among several the one that its authors evaluate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shard.errors import InputError
from train.weights.diagnosis import printable

State = dict[str, torch.Tensor]
DEPTH = 6  # levels of nested mappings to search
STEM, LAYER = "conv1.weight", "layer1."  # in every ResNet of torchvision or timm
TOP = "(top)"  # the displayed key of a network at the top level
AVERAGED = r"(^|[._])(ema|swa|averaged)([._]|$)"
# Pattern of the key → why this network is chosen. The first pattern that matches exactly one network decides.
CHOICES = (
    (AVERAGED, "the averaged weights, as in timm"),
    (r"(^|[._])teacher([._]|$)", "the teacher, as in DINO's evaluation"),
    (r"(^|[._])encoder_q([._]|$)", "the query encoder, as in MoCo's evaluation"),
)


class ChosenState(NamedTuple):
    """A network's state dict, and notes on why it was chosen, one per line."""

    state: State
    notes: list[str]


def split_key(path: Path) -> tuple[Path, str]:
    """Split PATH::KEY into the file and the key of a network in it, "" if none is given. An existing path has none."""
    file, separator, key = str(path).rpartition("::")
    return (path, "") if path.exists() or not separator else (Path(file), key)


def flatten_tensors(content: Any) -> State:
    """Collect all tensors in nested mappings under dotted names."""
    return dict(_flatten(content, "", DEPTH))


def choose_state(tensors: State, path: Path, key: str) -> ChosenState | None:
    """Choose the state dict of a ResNet among a file's tensors; None if there is none.

    key: the network's key or the start of it; "" for any. Raises InputError if no or several networks have the key, or
    if there are several networks and nothing decides between them.
    """
    prefixes = [name.removesuffix(STEM) for name in tensors if name == STEM or name.endswith("." + STEM)]
    prefixes = [prefix for prefix in prefixes if any(name.startswith(prefix + LAYER) for name in tensors)]
    states = {prefix.rstrip("."): _under(tensors, prefix, prefixes) for prefix in prefixes}
    if key:
        return _state_of_key(states, path, key)
    distinct = [name for number, name in enumerate(states)
                if not any(_equal(states[name], states[other]) for other in list(states)[:number])]  # fmt: skip
    if len(distinct) == 1:
        averaged = any(re.search(AVERAGED, name, re.I) for name in states)
        return ChosenState(states[distinct[0]], [] if averaged else _averaged_skipped(tensors, distinct[0]))
    for pattern, reason in CHOICES:
        chosen = [name for name in distinct if re.search(pattern, name, re.I)]
        if len(chosen) == 1:
            others = [printable(name) or TOP for name in distinct if name != chosen[0]]
            note = (f"weights of {printable(chosen[0])}, {reason}; for those of {' or '.join(others)}: "
                    f"{path}::{others[0]}")  # fmt: skip
            return ChosenState(states[chosen[0]], [note])
    if distinct:
        raise InputError(f"{path}: {len(distinct)} networks, {_list(states)}; choose one: "
                         f"{path}::{printable(distinct[0]) or TOP}")  # fmt: skip
    return None


def _state_of_key(states: Mapping[str, State], path: Path, key: str) -> ChosenState:
    chosen = [name for name in states if key in (name, name or TOP)] or [
        name for name in states if name.startswith(key + ".")]  # fmt: skip
    if len(chosen) != 1:
        raise InputError(f"{path}::{key}: {f'{len(chosen)} networks have' if chosen else 'no network has'} that key; "
                         f"available: {_list(states) or 'none'}")  # fmt: skip
    note = f"weights of {printable(chosen[0]) or TOP}, as requested; the file contains {_list(states)}"
    return ChosenState(states[chosen[0]], [note])


def _list(states: Mapping[str, State]) -> str:
    return ", ".join(printable(name) or TOP for name in states)


def _flatten(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif depth and isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.", depth - 1)


def _under(tensors: State, prefix: str, prefixes: list[str]) -> State:
    """The tensors under a prefix, without it in their names, and without those of networks nested deeper."""
    nested = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {name.removeprefix(prefix): value for name, value in tensors.items()
            if name.startswith(prefix) and not name.startswith(nested)}  # fmt: skip


def _equal(first: State, second: State) -> bool:
    """Whether two state dicts are one network, such as a module registered under two names."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _averaged_skipped(tensors: State, chosen: str) -> list[str]:
    """A note if the file also has averaged weights that are not named like a ResNet's, so that the raw ones count."""
    averaged = next((name for name in tensors if re.search(AVERAGED, name.split(".")[0], re.I)), None)
    note = (f"weights of {printable(chosen) or TOP}; the averaged ones ({printable(averaged)}, …) are not named like a "
            "ResNet's")  # fmt: skip
    return [note] if averaged else []
