"""Choose the checkpoint to resume from: the run's own newest intact one, or one of another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard.errors import InputError
from train.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    load_newest_intact,
    rename_corrupt,
    step_of,
    translate_load_errors,
)
from train.config import Config


def select_checkpoint(config: Config, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint that --resume selects, and its state; None for a new run.

    warn: prints a warning. Raises InputError if the checkpoint is missing or cannot be used.
    """
    wanted, out = config.resume, config.out
    if wanted == "never" and list_checkpoints(out):
        raise InputError(f"--resume=never: {out} contains checkpoints, up to step {step_of(list_checkpoints(out)[0])}; "
                         "choose another --out, or remove that folder")  # fmt: skip
    own = load_newest_intact(out)
    if wanted in ("auto", "never"):
        return _rename_corrupt(*own, warn) if own else None
    source = Path(wanted).expanduser().resolve()
    if own is None:
        path = _resolve_checkpoint(source)
        return path, load_checkpoint(path)
    # The run has begun, so the other run is not read again: it may have deleted that checkpoint since.
    with translate_load_errors(own[0]):
        origin = Path(own[1]["origin"] or own[0].resolve())
    if source in (origin, origin.parent.parent):
        return _rename_corrupt(*own, warn)
    if source.is_relative_to(out.resolve()):
        raise InputError(f"--resume={wanted}: belongs to the run in {out} itself, which resumes from its newest "
                         "checkpoint; to start a new run from it, choose another --out")  # fmt: skip
    raise InputError(f"--resume={wanted}: {out} contains a run that did not begin there, up to step {own[1]['step']}; "
                     "choose another --out")


def _rename_corrupt(
    path: Path, state: dict[str, Any], corrupt: list[Path], warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """Rename the newer, corrupt checkpoints, and warn about each."""
    for other in corrupt:
        warn(f"warning: {other} is truncated or corrupt; renamed to {rename_corrupt(other).name}; the run resumes from "
             f"{path}")  # fmt: skip
    return path, state


def _resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint at `path`, which is a checkpoint or a run's folder."""
    if path.is_file():
        return path
    found = load_newest(path) if path.is_dir() else None
    if found is None:
        raise InputError(f"--resume={path}: no checkpoint there; give a run's folder, one of its checkpoints, auto or "
                         "never")
    return found[0]
