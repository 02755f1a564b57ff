"""The commands that reproduce a run up to one of its checkpoints, or the reason why none can."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.accepted import UNRECORDED, Change, accepted_changes, format_changes
from train.fingerprint import RANKS, THREADS, hash_code
from train.recipe import train_command

# Keys of the fingerprint that follow from settings.
DERIVED = {"augmentation", "backend"}


def reproduction_commands(state: Mapping[str, Any], out: Path, shards: Path | str) -> list[str]:
    """Return shell commands that reproduce a checkpoint's run into `out`, in order, or a comment if no command can.

    They repeat the changes that --accept allowed after the same steps. Raises what translate_load_errors translates.
    """
    config, origin = state["config"], state.get("origin", "")
    changes, first_step = accepted_changes(state), _step_in(origin)
    lost = [change for change in changes if change["step"] >= first_step and not _has_flag(change, config)]
    if lost:
        return [f"# no command reproduces {out}: no flag sets what --accept allowed: {format_changes(lost)}"]
    finished = state["step_in_epoch"] == 0 and state["epoch"] >= config["epochs"]
    settings = {**config, "out": str(out), "shards": str(shards), "resume": origin or "auto", "accept": "",
                **{name: state.get("fingerprint", {}).get(name, 1) for name in (RANKS, THREADS)}}  # fmt: skip
    if config.get("device") == "cuda" or any(change["name"] == "views" for change in changes):
        # Where they were made; the default and "auto" may choose otherwise.
        settings["views"] = state.get("fingerprint", {}).get("views", settings.get("views"))
    commands, until = [], 0 if finished else state["step"]
    groups = [list(group) for _, group in itertools.groupby(changes, key=lambda change: int(change["step"]))]
    for group in reversed([group for group in groups if group[0]["step"] >= first_step]):
        names = dict.fromkeys(change["name"] for change in group)
        commands.append(_command({**settings, "accept": ",".join(names)}, until, _threads_matter(changes)))
        for change in reversed(group):
            settings[change["name"]] = change["then"]
        settings |= {"epochs": config["epochs"]} if settings["epochs"] == "any" else {}
        until = group[0]["step"]
    if not commands or until > first_step:
        commands.append(_command(settings, until, _threads_matter(changes)))
    return [*_comments(state, origin), *reversed(commands)]


def _has_flag(change: Change, config: Mapping[str, Any]) -> bool:
    """Return whether a command can repeat a change; code and versions have no flags."""
    return change["name"] in {*config, *DERIVED, RANKS, THREADS} and change["then"] not in (None, UNRECORDED)


def _step_in(origin: str) -> int:
    """Return the step of the checkpoint `origin` from its name; 0 if it has another name or is ""."""
    found = re.search(r"step-(\d+)", Path(origin).name)
    return int(found[1]) if found else 0


def _threads_matter(changes: list[Change]) -> bool:
    return any(change["name"] == THREADS for change in changes)


def _command(settings: Mapping[str, Any], until: int, threads: bool) -> str:
    """Return a command on the recorded numbers of ranks and threads. until: its last step, 0 for the run's end."""
    plain = {name: value for name, value in settings.items() if name not in {*DERIVED, RANKS, THREADS}}
    command = train_command(plain) + (f" --limit-steps={until}" if until else "")
    before = f"OMP_NUM_THREADS={settings[THREADS]} " if threads else ""
    ranks = settings[RANKS]
    return before + command + (f"  # on {ranks} ranks, started by srun or torchrun" if ranks != 1 else "")


def _comments(state: Mapping[str, Any], origin: str) -> list[str]:
    """Return comments on what has changed since the run and must be restored."""
    comments = []
    then = state.get("fingerprint", {})
    if then.get("code", hash_code()) != hash_code():
        comments.append(f"# requires the code of commit {state.get('commit', 'unknown')}, which differs from this code")
    if origin and not Path(origin).exists():
        comments.append(f"# the run started from {origin}, which no longer exists")
    start = state.get("init") or {}
    if start.get("file") and not Path(start["file"]).exists():
        comments.append(f"# its encoder started from {start['file']}, which no longer exists; its sha256 was "
                        f"{start['file_sha256']}")  # fmt: skip
    return comments
