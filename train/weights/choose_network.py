"""Choose the network in a file of weights: the only one, or among several the one that its authors evaluate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shard.errors import InputError
from train.weights.diagnosis import printable
from train.weights.find_encoder import Found, State

DEPTH = 6  # levels of nested mappings to search
TOP = "(top)"  # the displayed key of a network at the top level
# Components of names that wrappers insert: torch.compile, activation checkpointing, FSDP.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
AVERAGED = r"(^|[._])(ema|swa|averaged)([._]|$)"
# Pattern of the key → why this network is chosen. The first pattern that matches exactly one network decides.
CHOICES = (
    (AVERAGED, "the averaged weights, as in timm"),
    (r"(^|[._])teacher([._]|$)", "the teacher, as in DINO's evaluation"),
    (r"(^|[._])encoder_q([._]|$)", "the query encoder, as in MoCo's evaluation"),
    (r"^(?!.*(^|[._])momentum([._]|$))", "the network beside its momentum copy, as in solo-learn's evaluation"),
)


class Chosen(NamedTuple):
    """A network, and notes on why it was chosen, one per line."""

    found: Found
    notes: list[str]


def split_key(path: Path) -> tuple[Path, str]:
    """Split PATH::KEY into the file and the key of a network in it, "" if none is given. An existing path has none."""
    file, separator, key = str(path).rpartition("::")
    return (path, "") if path.exists() or not separator else (Path(file), key)


def flatten_tensors(content: Any) -> State:
    """Collect all tensors in nested mappings under dotted names, without the components that wrappers insert."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): value
            for name, value in _flatten(content, "", DEPTH)}  # fmt: skip


def choose_network(fitting: Sequence[Found], tensors: State, path: Path, key: str) -> Chosen:
    """Choose one of the networks that fit an architecture.

    key: the network's key or the start of it; "" for any. Raises InputError if no or several networks have the key, or
    if there are several networks and nothing decides between them.
    """
    networks = {found.prefix.rstrip("."): found for found in fitting}
    if key:
        return _network_of_key(networks, path, key)
    distinct = [name for number, (name, found) in enumerate(networks.items())
                if not any(_equal(found.state, other.state) for other in list(networks.values())[:number])]  # fmt: skip
    if len(distinct) == 1:
        averaged = any(re.search(AVERAGED, name, re.I) for name in networks)
        return Chosen(networks[distinct[0]], [] if averaged else _averaged_skipped(tensors, networks[distinct[0]]))
    for pattern, reason in CHOICES:
        chosen = [name for name in distinct if re.search(pattern, name, re.I)]
        if len(chosen) == 1:
            others = [printable(name) or TOP for name in distinct if name != chosen[0]]
            note = (f"weights of {printable(chosen[0]) or TOP}, {reason}; for those of {' or '.join(others)}: "
                    f"{path}::{others[0]}")  # fmt: skip
            return Chosen(networks[chosen[0]], [note])
    raise InputError(f"{path}: {len(distinct)} networks: {_list(networks)}; choose one: "
                     f"{path}::{printable(distinct[0]) or TOP}")  # fmt: skip


def _network_of_key(networks: Mapping[str, Found], path: Path, key: str) -> Chosen:
    chosen = [name for name in networks if key in (name, name or TOP)] or [
        name for name in networks if name.startswith(key + ".")]  # fmt: skip
    if len(chosen) != 1:
        raise InputError(f"{path}::{key}: {f'{len(chosen)} networks have' if chosen else 'no network has'} that key; "
                         f"available: {_list(networks) or 'none'}")  # fmt: skip
    note = f"weights of {printable(chosen[0]) or TOP}, as requested; the file contains {_list(networks)}"
    return Chosen(networks[chosen[0]], [note])


def _list(networks: Mapping[str, Found]) -> str:
    return ", ".join(printable(name) or TOP for name in networks)


def _flatten(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif depth and isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.", depth - 1)


def _equal(first: State, second: State) -> bool:
    """Whether two state dicts are one network, such as a module registered under two names."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _averaged_skipped(tensors: State, chosen: Found) -> list[str]:
    """Note that averaged weights in the file do not fit the architecture, so that the raw ones are used."""
    averaged = next((name for name in tensors if re.search(AVERAGED, name.split(".")[0], re.I)), None)
    note = (f"weights of {printable(chosen.prefix.rstrip('.')) or TOP}; the averaged ones ({printable(averaged)}, …) "
            f"are not named like {chosen.outline.arch}'s")  # fmt: skip
    return [note] if averaged else []
