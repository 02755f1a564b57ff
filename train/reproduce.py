"""The commands that make a run again up to one of its checkpoints, or why there are none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.accepted import UNRECORDED, Change, changes_of, say_changes
from train.fingerprint import RANKS, THREADS, hash_code
from train.recipe import train_command

# What the fingerprint holds and settings decide.
DERIVED = {"augmentation", "backend"}


def reproduce_commands(state: Mapping[str, Any], out: Path, shards: Path) -> list[str]:
    """Commands for a shell, in their order, that make the run of a checkpoint's state again, into `out`; else a comment
    that says why none does.

    What --accept changed on the way is changed after the same step. See translate_load_errors for what it raises.
    """
    config, origin = state["config"], state.get("origin", "")
    changes, began = changes_of(state), _step_in(origin)
    lost = [one for one in changes if one["step"] >= began and not _has_flag(one, config)]
    if lost:
        return [f"# no command makes {out} again, for no flag sets what --accept let through: {say_changes(lost)}"]
    finished = state["step_in_epoch"] == 0 and state["epoch"] >= config["epochs"]
    settings = {**config, "out": str(out), "shards": str(shards), "resume": origin or "auto", "accept": "",
                **{name: state.get("fingerprint", {}).get(name, 1) for name in (RANKS, THREADS)}}  # fmt: skip
    if any(one["name"] == "views" for one in changes):
        settings["views"] = state["fingerprint"]["views"]  # which settings may leave open
    commands, until = [], 0 if finished else state["step"]
    groups = [list(group) for _, group in itertools.groupby(changes, key=lambda one: int(one["step"]))]
    for group in reversed([some for some in groups if some[0]["step"] >= began]):
        names = dict.fromkeys(one["name"] for one in group)
        commands.append(_command({**settings, "accept": ",".join(names)}, until, _threads_matter(changes)))
        for one in reversed(group):
            settings[one["name"]] = one["then"]
        settings |= {"epochs": config["epochs"]} if settings["epochs"] == "any" else {}
        until = group[0]["step"]
    if not commands or until > began:
        commands.append(_command(settings, until, _threads_matter(changes)))
    return [*_remarks(state, origin), *reversed(commands)]


def _has_flag(change: Change, config: Mapping[str, Any]) -> bool:
    """Whether a command can make a change: code and versions are no flags."""
    return change["name"] in {*config, *DERIVED, RANKS, THREADS} and change["then"] not in (None, UNRECORDED)


def _step_in(origin: str) -> int:
    """After how many steps the checkpoint `origin` is, by its name; 0 where it has another, or there is none."""
    found = re.search(r"step-(\d+)", Path(origin).name)
    return int(found[1]) if found else 0


def _threads_matter(changes: list[Change]) -> bool:
    return any(one["name"] == THREADS for one in changes)


def _command(settings: Mapping[str, Any], until: int, threads: bool) -> str:
    """One command, on as many ranks and threads as it was; until: the step it ends after, 0 for the run's end."""
    plain = {name: value for name, value in settings.items() if name not in {*DERIVED, RANKS, THREADS}}
    command = train_command(plain) + (f" --limit-steps={until}" if until else "")
    before = f"OMP_NUM_THREADS={settings[THREADS]} " if threads else ""
    ranks = settings[RANKS]
    return before + command + (f"  # on {ranks} ranks, started by srun or torchrun" if ranks != 1 else "")


def _remarks(state: Mapping[str, Any], origin: str) -> list[str]:
    """Comments: what has to be as it was, and is not now."""
    remarks = []
    then = state.get("fingerprint", {})
    if then.get("code", hash_code()) != hash_code():
        remarks.append(f"# with the code of then, commit {state.get('commit', 'unknown')}; this is other code")
    if origin and not Path(origin).exists():
        remarks.append(f"# it began from {origin}, which is not there now")
    return remarks
