"""The fingerprint of a run: everything that decides its numbers. A run resumes only if none of it has changed."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shard.errors import InputError
from shard.machine import version_of
from train.accepted import Change, format_changes, shorten
from train.config import Config

ROOT = Path(__file__).parent.parent
# Files whose change may change a weight's last bit: those that compute views and steps.
CODE = (
    *(f"pipeline/{name}.py" for name in ("augmentation", "sampler", "partners", "view_parameters", "prefetch",
                                         "dali_inputs", "dali", "torchvision_views", "loader")),
    "shard/kernels/jit.py", "shard/kernels/llvm.py",
    *(f"pipeline/fused/{name}.py" for name in ("jit", "simd", "atomics", "taps", "workspaces", "kernel",
                                               "dali_operator")),
    *(f"train/{name}.py" for name in ("setup", "device", "architectures", "timm_models", "model", "loss", "large_batch",
                                      "distributed/collectives", "distributed/batchnorm",
                                      "distributed/batchnorm_kernels", "distributed/gradients", "optim", "step")),
)
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "numba", "numpy", "pillow", "timm")
RANKS, THREADS, INIT = "ranks", "threads", "init"
NEVER_ACCEPTED = {"arch", "optimizer", "shards", "batch_size", INIT}  # the checkpoint's state would not fit

Fingerprint = dict[str, str | int | float | bool | None]


def compute_fingerprint(
    config: Config, loader_fingerprint: dict[str, Any], world: int, start: Mapping[str, str] | None = None
) -> Fingerprint:  # fmt: skip
    """Return what decides a run's numbers, by name: settings, the loader's fingerprint, ranks, code and versions.

    start: the record of the weights that the encoder starts from; empty if they are random.
    """
    loader = {name: str(value) for name, value in loader_fingerprint.items() if name in ("shards", "augmentation",
                                                                                         "backend", "views")}
    versions = {name: version_of(name) for name in PACKAGES}
    # The number of CPU threads splits sums differently, which changes their last bit.
    threads = {THREADS: torch.get_num_threads()} if config.device == "cpu" else {}
    init = {INIT: start["sha256"]} if start else {}
    return {**config.decisive(), **init, **loader, RANKS: world, **threads, "code": hash_code(), **versions}


def differences(then: Fingerprint, now: Fingerprint) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two fingerprints: name → (then, now)."""
    return {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}


def check_ranks(fingerprints: Sequence[Fingerprint]) -> None:
    """Raise InputError if a rank's fingerprint differs from the first rank's, except in the number of threads."""
    for rank, fingerprint in enumerate(fingerprints):
        for name, (first, here) in differences(fingerprints[0], fingerprint).items():
            if name == THREADS:  # may differ between machines
                continue
            raise InputError(f"rank {rank}: {name} is {shorten(here)}, but the first rank's is {shorten(first)}; give "
                             "all ranks the same shards, flags and environment")  # fmt: skip


def check_fingerprint(
    path: Path, then: Fingerprint, now: Fingerprint, *, between_epochs: bool, accept: Sequence[str],
    changes: Sequence[Change] = (),
) -> None:  # fmt: skip
    """Raise InputError, after printing a table, if a value differs that `accept` does not allow.

    Between epochs the number of ranks may differ. changes: what --accept already allowed, for the message.
    """
    differing = differences(then, now)
    # The number of threads changes with the number of ranks.
    allowed = {*accept, *((RANKS, THREADS) if between_epochs and RANKS in differing else ())}
    if never := [name for name in accept if name in NEVER_ACCEPTED]:
        raise InputError(f"--accept={','.join(accept)}: {never[0]} cannot change in a resumed run, because the "
                         "checkpoint depends on it; train from scratch with another --out")  # fmt: skip
    if wrong := [name for name in accept if name not in {**then, **now}]:
        raise InputError(f"--accept={','.join(accept)}: {wrong[0]} is not one of the differences; "
                         f"{', '.join(differing) or 'nothing'} differs")  # fmt: skip
    refused = {name: pair for name, pair in differing.items() if name not in allowed}
    if not refused:
        return
    rows = [("", "there", "now"), *((name, shorten(old), shorten(new)) for name, (old, new) in refused.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, old, new in rows:
        print(f"  {name:{widths[0]}}  {old:{widths[1]}}  {new}", file=sys.stderr)
    before = [change for change in changes if change["name"] in refused]
    history = f" (since --accept: {format_changes(before)})" if before else ""
    ranks = "; the number of ranks can change only between epochs" if RANKS in refused else ""
    accepting = "" if NEVER_ACCEPTED & refused.keys() else f", or resume anyway with --accept={','.join(refused)}"
    raise InputError(f"{path}: saved under other settings, code or data: {', '.join(refused)}{history}; restore them, "
                     f"or train from scratch with another --out{accepting}{ranks}")  # fmt: skip


def hash_code(files: Sequence[str] = CODE) -> str:
    """Hash the code of files, named from the root, without comments and docstrings."""
    digest = hashlib.sha256()
    for name in files:
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]
