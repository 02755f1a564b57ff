"""Which checkpoint a run goes on from: its own newest whole one, or the one of another run that it was told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard.errors import InputError
from train.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    load_newest_good,
    set_aside,
    step_of,
    translate_load_errors,
)
from train.config import Config


def find_checkpoint(config: Config, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that --resume asks to go on from, and its state; None for a new run.

    say: where warnings go. Raises InputError where what is asked for is not there, or not to be had.
    """
    wanted, out = config.resume, config.out
    if wanted == "never" and list_checkpoints(out):
        raise InputError(f"--resume=never: {out} has checkpoints, up to step {step_of(list_checkpoints(out)[0])}; "
                         "choose another --out, or remove that folder")  # fmt: skip
    own = load_newest_good(out)
    if wanted in ("auto", "never"):
        return _after_rot(*own, say) if own else None
    there = Path(wanted).expanduser().resolve()
    if own is None:
        path = _checkpoint_at(there)
        return path, load_checkpoint(path)
    # It has begun, so this is not looked for again: that run may have gone on since, or dropped that checkpoint.
    with translate_load_errors(own[0]):
        origin = Path(own[1]["origin"] or own[0].resolve())
    if there in (origin, origin.parent.parent):
        return _after_rot(*own, say)
    if there.is_relative_to(out.resolve()):
        raise InputError(f"--resume={wanted}: is of the run in {out} itself, which goes on from its newest; to "
                         "branch off there, choose another --out")  # fmt: skip
    raise InputError(f"--resume={wanted}: {out} holds a run that did not begin there, up to step {own[1]['step']}; "
                     "choose another --out")


def _after_rot(
    path: Path, state: dict[str, Any], rotten: list[Path], say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """Set the newer ones that are rotten aside, and say so."""
    for other in rotten:
        say(f"warning: {other} is truncated or corrupt; it is set aside as {set_aside(other).name}, and the run "
            f"goes on from {path}")
    return path, state


def _checkpoint_at(path: Path) -> Path:
    """A checkpoint named by itself or by its run."""
    if path.is_file():
        return path
    found = load_newest(path) if path.is_dir() else None
    if found is None:
        raise InputError(f"--resume={path}: no checkpoint there; give a run's folder, one of its checkpoints, auto or "
                         "never")
    return found[0]
