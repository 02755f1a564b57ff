"""Checkpoints: RUN/checkpoints/step-000000123.pt, each whole or not there; data, never code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shard.errors import InputError
from shard.files import replacing

FORMAT = "cxr-simclr-checkpoint/1"
KEEP = 2


def save_checkpoint(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps, synced and renamed; then drop all but the newest two."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    with replacing(path) as file:
        torch.save({"format": FORMAT, **state}, file)
    for old in sorted(folder.glob("step-*.pt"))[:-KEEP]:
        old.unlink()
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the most steps, None where there is none."""
    return max((run / "checkpoints").glob("step-*.pt"), default=None)


class UnreadableTensors(Exception):
    """A file that PyTorch can't read as data; its text is the reason, in one line."""


def read_tensors(path: Path) -> Any:
    """What torch.save wrote, onto the CPU, as data alone: code in the file is refused. Raises UnreadableTensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a rotten pickle may raise anything at all
        reason = str(error).strip().split("\n")[0][:120]
        raise UnreadableTensors(f"{type(error).__name__}: {reason}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state onto the CPU. Raises InputError where it can't be read or is of another format."""
    try:
        state = read_tensors(path)
    except UnreadableTensors as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); "
                         "remove it to go on from the one before") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format {found!r}, this version reads {FORMAT!r}; train anew in another folder")
    return dict(state)
