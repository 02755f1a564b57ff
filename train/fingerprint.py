"""The fingerprint of a run: all that decides its numbers. A run goes on only where nothing of it has changed."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shard.errors import InputError
from shard.machine import version_of
from train.accepted import Change, say_changes, short
from train.config import Config

ROOT = Path(__file__).parent.parent
# Files whose change may change a weight's last bit: who makes the views, and who makes a step of them.
CODE = (
    *(f"pipeline/{name}.py" for name in ("augmentation", "sampler", "partners", "view_parameters", "prefetch",
                                         "dali_inputs", "dali", "torchvision_views", "loader")),
    *(f"pipeline/fused/{name}.py" for name in ("jit", "llvm", "simd", "atomics", "weights", "workspaces", "kernel",
                                               "dali_operator")),
    *(f"train/{name}.py" for name in ("setup", "device", "architectures", "model", "loss", "large_batch",
                                      "distributed/collectives", "distributed/batchnorm", "optim", "step")),
)
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "numba", "numpy", "pillow", "timm")
RANKS, THREADS = "ranks", "threads"
NEVER_ACCEPTED = {"arch", "optimizer", "shards", "batch_size"}  # a state of another would not fit

Fingerprint = dict[str, str | int | float | bool]


def take_fingerprint(config: Config, loader_fingerprint: dict[str, Any], world: int) -> Fingerprint:
    """What decides a run's numbers, by name: settings, what its loader promises, ranks, code and versions."""
    loader = {name: str(value) for name, value in loader_fingerprint.items() if name in ("shards", "augmentation",
                                                                                         "backend", "views")}
    versions = {name: version_of(name) for name in PACKAGES}
    # On a CPU sums are split over its threads, and add up to another last bit.
    threads = {THREADS: torch.get_num_threads()} if config.device == "cpu" else {}
    return {**config.decisive(), **loader, RANKS: world, **threads, "code": hash_code(), **versions}


def differences(then: Fingerprint, now: Fingerprint) -> dict[str, tuple[Any, Any]]:
    """What differs between two fingerprints: name → (then, now)."""
    return {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}


def check_ranks(fingerprints: Sequence[Fingerprint]) -> None:
    """Raise InputError where a rank's fingerprint is not the first's; on other machines they may have other threads."""
    for rank, other in enumerate(fingerprints):
        apart = {name: pair for name, pair in differences(fingerprints[0], other).items() if name != THREADS}
        for name, (first, here) in apart.items():
            raise InputError(f"rank {rank}: {name} is {short(here)}, the first rank's is {short(first)}; give all "
                             "ranks the same shards, flags and environment")  # fmt: skip


def check_fingerprint(
    path: Path, then: Fingerprint, now: Fingerprint, *, between_epochs: bool, accept: Sequence[str],
    changes: Sequence[Change] = (),
) -> None:  # fmt: skip
    """Raise InputError where what is not accepted differs, a table of it printed; between epochs ranks may differ.

    changes: what --accept let through before, for the message.
    """
    differing = differences(then, now)
    # Other ranks have other threads each.
    allowed = {*accept, *((RANKS, THREADS) if between_epochs and RANKS in differing else ())}
    if never := [name for name in accept if name in NEVER_ACCEPTED]:
        raise InputError(f"--accept={','.join(accept)}: {never[0]} can't be another in a run that goes on, whose state "
                         "is of the one it began with; train anew with another --out")  # fmt: skip
    if wrong := [name for name in accept if name not in {**then, **now}]:
        raise InputError(f"--accept={','.join(accept)}: {wrong[0]} is nothing that could be accepted; "
                         f"{', '.join(differing) or 'nothing'} differs")  # fmt: skip
    refused = {name: pair for name, pair in differing.items() if name not in allowed}
    if not refused:
        return
    rows = [("", "there", "now"), *((name, short(one), short(other)) for name, (one, other) in refused.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, one, other in rows:
        print(f"  {name:{widths[0]}}  {one:{widths[1]}}  {other}", file=sys.stderr)
    before = [one for one in changes if one["name"] in refused]
    known = f" (since --accept: {say_changes(before)})" if before else ""
    ranks = "; another number of ranks goes on from an epoch's end alone" if RANKS in refused else ""
    accepting = "" if NEVER_ACCEPTED & refused.keys() else f", or go on all the same with --accept={','.join(refused)}"
    raise InputError(f"{path}: made under what gives other numbers, {', '.join(refused)}{known}; go back to that, or "
                     f"train anew with another --out{accepting}{ranks}")  # fmt: skip


def hash_code(files: Sequence[str] = CODE) -> str:
    """A hash of the code in some files, named from the root: of what it does, not of comments and docstrings."""
    digest = hashlib.sha256()
    for name in files:
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]
