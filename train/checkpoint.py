"""Checkpoints: RUN/checkpoints/step-000000123-0123456789abcdef.pt, each whole or not there; data, never code."""

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
from train.weights.read import UnreadableTensors, read_tensors

FORMAT = "cxr-simclr-checkpoint/3"
KEEP = 2  # the newest; a run names others to be kept
HASH_DIGITS = 16  # of the file's sha256, in its name, as PyTorch's hub has it


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: Iterable[int] = ()) -> Path:
    """Write the state after `step` steps, synced and renamed; then drop all but the newest two and the steps `keep`."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    for torn in folder.glob(".step-*"):  # what a kill left; who writes here is alone
        torn.unlink()
    path = folder / f"step-{step:09d}-{_hash(content.getbuffer())}.pt"
    write_bytes(path, content.getbuffer())
    kept = set(keep)
    older = [old for old in list_checkpoints(run) if old != path]
    for number, old in enumerate(older, start=1):
        # Of this very step there may be another, from before the end of the epoch that it completes.
        if step_of(old) == step or (number >= KEEP and step_of(old) not in kept):
            old.unlink()
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((run / "checkpoints").glob("step-[0-9]*.pt"), reverse=True)


def step_of(path: Path) -> int:
    """How many steps a checkpoint is after, by its name."""
    return int(path.name.split("-")[1].split(".")[0])


class CorruptCheckpoint(InputError):
    """A checkpoint whose bytes are not those that were written."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state onto the CPU.

    Raises CorruptCheckpoint if its bytes do not match the hash in its name, InputError if it has another format.
    """
    content = path.read_bytes()
    said = re.search(rf"-([0-9a-f]{{{HASH_DIGITS}}})\.pt$", path.name)
    if said and (digest := _hash(content)) != said[1]:
        raise CorruptCheckpoint(f"{path}: truncated or corrupt ({len(content)} bytes with sha256 "
                                f"{digest}…, its name says "
                         f"{said[1]}…); remove it to go on from the one before")
    try:
        state = read_tensors(io.BytesIO(content), path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); "
                         "remove it to go on from the one before") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format {found!r}, this version reads {FORMAT!r}; train anew in another folder")
    return dict(state)


@contextlib.contextmanager
def translate_load_errors(path: Path) -> Iterator[None]:
    """Within the block a checkpoint's content is put to use; what does not fit ends in an InputError that names it."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: does not hold what a run's checkpoint does ({type(error).__name__}: {reason}); take "
                         "another one, or train anew in another folder") from error


def load_newest_good(run: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """The newest checkpoint that is whole, its state, and the newer ones that are not; None where there is none at all.

    Raises InputError where there are some and none is whole.
    """
    rotten: list[Path] = []
    for path in list_checkpoints(run):
        try:
            return path, load_checkpoint(path), rotten
        except CorruptCheckpoint:
            rotten.append(path)
    if rotten:
        raise InputError(f"{rotten[0].parent}: {', '.join(path.name for path in rotten)}: truncated or corrupt, and "
                         "there is no other; remove them to train anew")
    return None


def load_newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """load_newest_good for who only reads a run: newer ones that are not whole are told of on stderr and left there."""
    found = load_newest_good(run)
    if found is None:
        return None
    path, state, rotten = found
    for other in rotten:
        print(f"warning: {other} is truncated or corrupt; {path} is taken", file=sys.stderr)
    return path, state


def set_aside(path: Path) -> Path:
    """Rename a rotten checkpoint, so that it neither counts as one nor is lost to who wants to look at it."""
    return path.rename(path.with_name(f"rotten-{path.name}"))


def _hash(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
