"""The status command: where a run stands and what to run next, from its files only."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shard.files import is_locked
from train.accepted import append_changes, required_accepts
from train.checkpoint import list_checkpoints, step_of
from train.collapse import detect_collapse
from train.journal import CARD, LOCK, SPEED, read_card, read_journal
from train.moved import locate_shards
from train.recipe import describe_recipe, train_command

_METRICS = {"top1": "top-1 {:.1%}", "positive_similarity": "positive similarity {:.3f}",
             "negative_similarity": "negative {:.3f}", "embedding_rank": "embedding rank {:.1f}"}  # fmt: skip
RECENT_S = 60.0  # on file systems without locks, a run that wrote nothing for longer counts as killed


def status(run: Path) -> None:
    """Print where a run stands and what to run next; for a folder of runs, such as a sweep's, for each run.

    Only reads files, so it works at any time. Raises InputError if the folder is not a run.
    """
    runs = [] if (run / CARD).exists() else sorted(card.parent for card in run.glob(f"*/{CARD}"))
    for number, folder in enumerate(runs or [run]):
        if number:
            print()
        _print_status(folder)


def _print_status(run: Path) -> None:
    card = read_card(run)
    settings = card["settings"]
    lines, speed = read_journal(run), read_journal(run, SPEED)
    total = settings["epochs"] * card["steps_per_epoch"]
    # Not the largest step: speed.jsonl keeps the steps that were lost when a run was killed.
    step = max((journal[-1]["step"] for journal in (lines, speed) if journal), default=0)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    saved = max(map(step_of, list_checkpoints(run)), default=0)  # written after the last epoch's line
    done = bool(epochs) and epochs[-1]["epoch"] >= settings["epochs"] and saved >= total
    print(f"{run}: {settings['arch']} at {settings['size']} px, batch {settings['batch_size']}, step {step} of {total},"
          f" epoch {step / card['steps_per_epoch']:.2f} of {settings['epochs']}; "
          f"{append_changes(describe_recipe(settings, card['init']), card['accepted'])}")  # fmt: skip
    _print_metrics(lines)
    if collapse := detect_collapse(lines, settings):
        print(collapse)
    ago = _print_speed(speed, settings, total - step)
    for newest in list_checkpoints(run)[:1]:
        age = time.time() - newest.stat().st_mtime
        print(f"last checkpoint: {newest}, after step {step_of(newest)}, {_format_duration(age)} old")
    here = shlex.quote(str(run.absolute()))
    shards, elsewhere = _locate_shards(run, settings)
    if done:
        print(f"done; next: python -m probe report {here} --shards={shlex.quote(shards)}{elsewhere}")
    elif is_locked(run, LOCK):
        watch = f"; watch it with: tensorboard --logdir={here}" if (run / "tensorboard").exists() else ""
        print(f"running{watch}")
    elif ago is not None and abs(ago) < RECENT_S:
        print("last written a moment ago, but no process holds its lock: it was killed, or the file system does not "
              f"support locks; check the job. To resume: {_resume_command(run, card, shards)}{elsewhere}")  # fmt: skip
    else:
        print(f"not running; next: {_resume_command(run, card, shards)}{elsewhere}")


def _locate_shards(run: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """Return where the run's shards are, and a remark if they are not found."""
    found = locate_shards(settings["shards"], settings.get("out", str(run)), run)
    return (found, "") if found else (settings["shards"],
        "  # its shards are not on this machine, maybe on a node's disk; submit its job again, or give --shards=")


def _resume_command(run: Path, card: dict[str, Any], shards: str) -> str:
    """Return the command that resumes the run in this folder, even if the folder was moved."""
    settings = {**card["settings"], "out": str(run.absolute()), "shards": shards}
    checkpoints = list_checkpoints(run)
    accept = [name for name in str(settings.get("accept", "")).split(",") if name]
    if checkpoints:  # the run resumes from its own newest one, even if it started from another run's
        settings["resume"] = "auto"
        settings["accept"] = ",".join(required_accepts(accept, card["accepted"], step_of(checkpoints[0])))
    ranks = card.get("ranks", 1)
    notes = [f"on {ranks} ranks, started by srun or torchrun as before"] if ranks != 1 else []
    notes += [] if checkpoints else [f"starts from scratch: there is no checkpoint in {run / 'checkpoints'}"]
    return "  # ".join([train_command(settings), *notes])


def _format_duration(seconds: float) -> str:
    """Format a duration in seconds; negative ones, caused by differing clocks, as 0."""
    return str(tqdm.format_interval(max(0.0, seconds)))


def _print_metrics(lines: list[dict[str, Any]]) -> None:
    steps = [line for line in lines if line["kind"] == "step"]
    if steps:
        last = steps[-1]
        metrics = ", ".join(form.format(last[name]) for name, form in _METRICS.items() if name in last)
        print(f"loss {last['loss']:.4f} at step {last['step']}" + (f"; {metrics}" if metrics else ""))
    online = [line for line in lines if line["kind"] == "online"]
    if online:
        best = max(online, key=lambda line: float(line["linear_auroc"]))
        print(f"online probe: AUROC {online[-1]['linear_auroc']:.3f} at epoch {online[-1]['epoch']}, best "
              f"{best['linear_auroc']:.3f} at epoch {best['epoch']} (training patients)")  # fmt: skip


def _print_speed(speed: list[dict[str, Any]], settings: dict[str, Any], steps_left: int) -> float | None:
    """Print the rate and the time left. Return the seconds since the last line, None if the run ended normally."""
    if not speed:
        return None
    rates = [line for line in speed if line["kind"] == "step"]
    if rates and rates[-1]["images_per_s"]:
        rate = rates[-1]["images_per_s"]
        left = tqdm.format_interval(steps_left * settings["batch_size"] / rate)
        print(f"{rate:.0f} images/s, {rates[-1]['data_wait']:.1%} of the time waiting for data, {left} left")
    ago = time.time() - speed[-1]["time"]
    starts = sum(line["kind"] == "start" for line in speed)
    print(f"started {starts} time{'s' * (starts > 1)}; last line {_format_duration(ago)} ago")
    return None if speed[-1]["kind"] == "stop" else ago
