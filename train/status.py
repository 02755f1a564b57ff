"""status: where a run stands and what to run next, from its files alone."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shard.files import is_locked
from train.accepted import still_to_accept, with_changes
from train.checkpoint import list_checkpoints, step_of
from train.collapse import say_collapse
from train.journal import CARD, LOCK, SPEED, read_card, read_journal
from train.moved import find_moved
from train.recipe import describe_recipe, train_command

_MEASURES = {"top1": "top-1 {:.1%}", "positive_similarity": "positive similarity {:.3f}",
             "negative_similarity": "negative {:.3f}", "embedding_rank": "embedding rank {:.1f}"}  # fmt: skip
FRESH_S = 60.0  # a run that wrote nothing for as long has been killed, where locks tell nothing


def status(run: Path) -> None:
    """Say where RUN stands and what to run next; of a folder of runs, as a sweep leaves it, where each does.

    Reads their files alone, and may be asked at any time. Raises InputError where there is no run.
    """
    several = [] if (run / CARD).exists() else sorted(card.parent for card in run.glob(f"*/{CARD}"))
    for number, one in enumerate(several or [run]):
        if number:
            print()
        _say_status(one)


def _say_status(run: Path) -> None:
    card = read_card(run)
    settings = card["settings"]
    lines, speed = read_journal(run), read_journal(run, SPEED)
    total = settings["epochs"] * card["steps_per_epoch"]
    # The last lines', not the largest: what was lost when a run was killed stays in the second.
    step = max((some[-1]["step"] for some in (lines, speed) if some), default=0)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    saved = max(map(step_of, list_checkpoints(run)), default=0)  # the last epoch's line is before its checkpoint
    done = bool(epochs) and epochs[-1]["epoch"] >= settings["epochs"] and saved >= total
    print(f"{run}: {settings['arch']} at {settings['size']} px, batch {settings['batch_size']}, step {step} of {total},"
          f" epoch {step / card['steps_per_epoch']:.2f} of {settings['epochs']}; "
          f"{with_changes(describe_recipe(settings), card['accepted'])}")  # fmt: skip
    _say_measures(lines)
    if collapse := say_collapse(lines, settings):
        print(collapse)
    ago = _say_speed(speed, settings, total - step)
    for newest in list_checkpoints(run)[:1]:
        age = time.time() - newest.stat().st_mtime
        print(f"last checkpoint: {newest}, after step {step_of(newest)}, {_span(age)} old")
    here = shlex.quote(str(run.absolute()))
    shards, elsewhere = _shards_of(run, settings)
    if done:
        print(f"done; next: python -m probe report {here} --shards={shlex.quote(shards)}{elsewhere}")
    elif is_locked(run, LOCK):
        print(f"it is running; watch it with: tensorboard --logdir={here}")
    elif ago is not None and abs(ago) < FRESH_S:
        print("it was writing a moment ago, and its lock is free: killed, or on a disk without locks; look at its job. "
              f"To go on: {_go_on(run, card, shards)}{elsewhere}")  # fmt: skip
    else:
        print(f"not running; next: {_go_on(run, card, shards)}{elsewhere}")


def _shards_of(run: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """Where the shards of a run lie, and what there is to say where they are not found."""
    found = find_moved(settings["shards"], settings.get("out", str(run)), run, "manifest.json")
    return (str(found), "") if found else (settings["shards"],
        "  # its shards are not on this machine, maybe on a node's disk: submit its job again, or say --shards=")


def _go_on(run: Path, card: dict[str, Any], shards: str) -> str:
    """The command that goes on with the run in this very folder, wherever it was trained and is asked about."""
    settings = {**card["settings"], "out": str(run.absolute()), "shards": shards}
    checkpoints = list_checkpoints(run)
    accept = [name for name in str(settings.get("accept", "")).split(",") if name]
    if checkpoints:  # it goes on from its own newest, however it began
        settings["resume"] = "auto"
        settings["accept"] = ",".join(still_to_accept(accept, card["accepted"], step_of(checkpoints[0])))
    ranks = card.get("ranks", 1)
    notes = [f"on {ranks} ranks, started by srun or torchrun as before"] if ranks != 1 else []
    notes += [] if checkpoints else [f"begins anew: there is no checkpoint in {run / 'checkpoints'}"]
    return "  # ".join([train_command(settings), *notes])


def _span(seconds: float) -> str:
    """A time that went by; less than none where it was written under a clock ahead of this machine's."""
    return str(tqdm.format_interval(max(0.0, seconds)))


def _say_measures(lines: list[dict[str, Any]]) -> None:
    steps = [line for line in lines if line["kind"] == "step"]
    if steps:
        last = steps[-1]
        told = ", ".join(form.format(last[name]) for name, form in _MEASURES.items() if name in last)
        print(f"loss {last['loss']:.4f} at step {last['step']}" + (f"; {told}" if told else ""))
    online = [line for line in lines if line["kind"] == "online"]
    if online:
        best = max(online, key=lambda line: float(line["linear_auroc"]))
        print(f"online probe: AUROC {online[-1]['linear_auroc']:.3f} at epoch {online[-1]['epoch']}, best "
              f"{best['linear_auroc']:.3f} at epoch {best['epoch']} (training patients)")  # fmt: skip


def _say_speed(speed: list[dict[str, Any]], settings: dict[str, Any], steps_left: int) -> float | None:
    """Print the rate and the time left; how many seconds ago a run that did not say that it stopped wrote last."""
    if not speed:
        return None
    rates = [line for line in speed if line["kind"] == "step"]
    if rates and rates[-1]["images_per_s"]:
        rate = rates[-1]["images_per_s"]
        left = tqdm.format_interval(steps_left * settings["batch_size"] / rate)
        print(f"{rate:.0f} images/s, {rates[-1]['data_wait']:.1%} of the time waiting for data, {left} left")
    ago = time.time() - speed[-1]["time"]
    starts = sum(line["kind"] == "start" for line in speed)
    print(f"started {starts} time{'s' * (starts > 1)}; last line {_span(ago)} ago")
    return None if speed[-1]["kind"] == "stop" else ago
