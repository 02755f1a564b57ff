"""Checkpoint files, RUN/checkpoints/step-000000123-0123456789abcdef.pt: written atomically, loaded without code.

Checkpointer defines what they contain; docs/formats.md lists the fields.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from shard.errors import InputError
from shard.files import write_bytes
from train.timm_models import UnfitArch
from train.weights.read import UnreadableTensors, read_tensors

FORMAT = "cxr-simclr-checkpoint/4"
READS = (FORMAT, "cxr-simclr-checkpoint/3")  # 3: before version 0.1.0, may lack fields that were added to it
KEEP = 2  # the newest checkpoints; a run may name others to keep
HASH_DIGITS = 16  # of the file's sha256, in its name, as in torch.hub


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: Iterable[int] = ()) -> Path:
    """Write the state after `step` steps atomically, then delete older checkpoints.

    The newest two remain, and those of the steps in `keep`. Returns the new file.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    for partial in folder.glob(".step-*"):  # left by a killed process; the run's lock excludes other writers
        partial.unlink()
    path = folder / f"step-{step:09d}-{_hash(content.getbuffer())}.pt"
    write_bytes(path, content.getbuffer())
    kept = set(keep)
    older = [old for old in list_checkpoints(run) if old != path]
    for number, old in enumerate(older, start=1):
        # Another checkpoint of the same step may exist, saved before the end-of-epoch work (probe, log).
        if step_of(old) == step or (number >= KEEP and step_of(old) not in kept):
            old.unlink()
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """List a run's checkpoints, the newest first."""
    return sorted((run / "checkpoints").glob("step-[0-9]*.pt"), reverse=True)


def step_of(path: Path) -> int:
    """Return the number of steps before a checkpoint, from its name."""
    return int(path.name.split("-")[1].split(".")[0])


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this format; False if it cannot be read."""
    if path.suffix == ".safetensors":
        return False
    try:
        content = read_tensors(path)
    except UnreadableTensors:
        return False
    return isinstance(content, dict) and content.get("format") in READS


class CorruptCheckpoint(InputError):
    """A checkpoint whose bytes do not match the hash in its name."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's state onto the CPU.

    Raises CorruptCheckpoint if its bytes do not match the hash in its name, InputError if it has another format.
    """
    content = path.read_bytes()
    expected = re.search(rf"-([0-9a-f]{{{HASH_DIGITS}}})\.pt$", path.name)
    if expected and (digest := _hash(content)) != expected[1]:
        raise CorruptCheckpoint(f"{path}: truncated or corrupt ({len(content)} bytes with sha256 {digest}…, but its "
                                f"name has {expected[1]}…); remove it to resume from the previous one")
    try:
        state = read_tensors(io.BytesIO(content), path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); "
                         "remove it to resume from the previous one") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found not in READS:
        raise InputError(f"{path}: format {found!r}, this version reads {' and '.join(READS)}; train from scratch in "
                         "another folder, or use the version that wrote it")  # fmt: skip
    return dict(state)


@contextlib.contextmanager
def translate_load_errors(path: Path) -> Iterator[None]:
    """Translate the errors of malformed checkpoint content within the block into an InputError that names `path`."""
    try:
        yield
    except UnfitArch as error:  # another version of timm wrote the checkpoint
        raise InputError(f"{path}: {error}") from None
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: not the content of a run's checkpoint ({type(error).__name__}: {reason}); use "
                         "another one, or train from scratch in another folder") from error


def load_newest_intact(run: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """Load the newest intact checkpoint; return it, its state and the newer, corrupt ones, or None if there is none.

    Raises InputError if all of the run's checkpoints are corrupt.
    """
    corrupt: list[Path] = []
    for path in list_checkpoints(run):
        try:
            return path, load_checkpoint(path), corrupt
        except CorruptCheckpoint:
            corrupt.append(path)
    if corrupt:
        raise InputError(f"{corrupt[0].parent}: {', '.join(path.name for path in corrupt)}: truncated or corrupt, and "
                         "there is no other; remove them to train from scratch")
    return None


def load_newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest intact checkpoint without changing the run; warn on stderr about newer, corrupt ones."""
    found = load_newest_intact(run)
    if found is None:
        return None
    path, state, corrupt = found
    for other in corrupt:
        print(f"warning: {other} is truncated or corrupt; using {path}", file=sys.stderr)
    return path, state


def rename_corrupt(path: Path) -> Path:
    """Rename a corrupt checkpoint, so that it no longer counts but can still be inspected."""
    return path.rename(path.with_name(f"corrupt-{path.name}"))


def _hash(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
