"""Which network of a file of weights is taken: its one ResNet, or of several the one that its makers take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shard.errors import InputError
from train.unreadable import plain

State = dict[str, torch.Tensor]
DEPTH = 6  # of mappings within mappings
STEM, LAYER = "conv1.weight", "layer1."  # what every ResNet has by torchvision's and timm's names
TOP = "(top)"  # how the key of a network that lies at the top is shown
AVERAGED = r"(^|[._])(ema|swa|averaged)([._]|$)"
# Of several networks in a file: the one whose key says this, and why.
CHOICES = (
    (AVERAGED, "the averaged weights, as timm does"),
    (r"(^|[._])teacher([._]|$)", "the teacher, as DINO's evaluation does"),
    (r"(^|[._])encoder_q([._]|$)", "the query encoder, as MoCo's evaluation does"),
)


class Found(NamedTuple):
    """A network's tensors by name, and what there is to say of why these were taken, in whole lines."""

    state: State
    said: list[str]


def tensors_of(content: Any) -> State:
    """All tensors in nested mappings, by their names joined with dots."""
    return dict(_flatten(content, "", DEPTH))


def choose_state(tensors: State, path: Path, wanted: str) -> Found | None:
    """The ResNet among a file's tensors; None where there is none. wanted: its key, or how that begins; "" for any.

    Raises InputError where none has the key, and where there are several and nothing says which is meant.
    """
    prefixes = [name.removesuffix(STEM) for name in tensors if name == STEM or name.endswith("." + STEM)]
    prefixes = [one for one in prefixes if any(name.startswith(one + LAYER) for name in tensors)]
    states = {one.rstrip("."): _under(tensors, one, prefixes) for one in prefixes}
    listed = ", ".join(plain(key) or TOP for key in states)
    if wanted:
        chosen = [key for key in states if wanted in (key, key or TOP)] or [
            key for key in states if key.startswith(wanted + ".")]  # fmt: skip
        if len(chosen) != 1:
            raise InputError(f"{path}::{wanted}: {f'{len(chosen)} networks have' if chosen else 'no network has'} that "
                             f"key; there are: {listed or 'none'}")  # fmt: skip
        return Found(states[chosen[0]], [f"weights of {plain(chosen[0]) or TOP}, as asked; the file has {listed}"])
    distinct = [key for number, key in enumerate(states)
                if not any(_equal(states[key], states[other]) for other in list(states)[:number])]  # fmt: skip
    if len(distinct) == 1:
        return Found(states[distinct[0]], [] if any(re.search(AVERAGED, key, re.I) for key in states) else
                     _not_read(tensors, distinct[0]))  # fmt: skip
    for pattern, why in CHOICES:
        chosen = [key for key in distinct if re.search(pattern, key, re.I)]
        if len(chosen) == 1:
            others = [plain(key) or TOP for key in distinct if key != chosen[0]]
            line = f"weights of {plain(chosen[0])}, {why}; for those of {' or '.join(others)}: {path}::{others[0]}"
            return Found(states[chosen[0]], [line])
    if distinct:
        raise InputError(f"{path}: {len(distinct)} networks, {listed}; say which: {path}::{plain(distinct[0]) or TOP}")
    return None


def _flatten(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif depth and isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.", depth - 1)


def _under(tensors: State, prefix: str, prefixes: list[str]) -> State:
    """The tensors of a prefix by the rest of their names, without those of networks that lie within."""
    within = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {name.removeprefix(prefix): value for name, value in tensors.items()
            if name.startswith(prefix) and not name.startswith(within)}  # fmt: skip


def _equal(one: State, other: State) -> bool:
    """Whether two names stand for one network, as where a module is held under both."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _not_read(tensors: State, taken: str) -> list[str]:
    """A line where averaged weights lie in the file that are no ResNet by name, beside the raw ones that are taken."""
    other = next((name for name in tensors if re.search(AVERAGED, name.split(".")[0], re.I)), None)
    said = f"weights of {plain(taken) or TOP}; the averaged ones ({plain(other)}, …) are no ResNet by name"
    return [said] if other else []
