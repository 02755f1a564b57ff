"""A run's records: run.json, run.toml, metrics.jsonl, speed.jsonl, loss.png, and what --log names."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from shard.errors import PARSE_ERRORS, InputError
from shard.files import atomic_write, write_bytes
from shard.plain_json import without_nan
from shard.settings_file import write_settings
from train.accepted import Change, format_changes, parse_changes
from train.config import Config
from train.recipe import StartRecord, chosen_settings, describe_recipe, parse_start, train_command
from train.trackers.open import TrackerName, open_trackers, scalars_of

CARD, METRICS, SPEED = "run.json", "metrics.jsonl", "speed.jsonl"
LOCK = "train"  # name of the run folder's lock, which the writing process holds
# Kind of line → the fields it must have.
_LINES = {
    METRICS: {"step": ("step", "epoch", "loss"), "epoch": ("step", "epoch", "loss"),
              "online": ("step", "epoch", "knn_auroc", "linear_auroc")},
    SPEED: {"start": ("time", "step"), "step": ("time", "step", "images_per_s", "data_wait"), "stop": ("time", "step")},
}  # fmt: skip
_ALWAYS_FINITE = ("step", "epoch", "time")  # unlike measured values, which may be NaN or infinite


def write_card(
    run: Path, config: Config, accepted: list[Change], start: StartRecord, views: dict[str, Any], *, origin: str,
    ranks: int, steps_per_epoch: int,
) -> None:  # fmt: skip
    """Write run.json: the command, the settings, the steps per epoch, what the encoder started from, what --views=auto
    measured, and what --accept changed during the run; and run.toml, the settings for --settings.

    origin: the other run's checkpoint that this run started from, or "".
    """
    command = train_command(config.plain())
    if ranks > 1:
        command = f"{command}  # on {ranks} ranks, started by srun or torchrun as before"
    card = {"command": command, "settings": config.plain(), "accepted": accepted, "init": start, "views": views,
            "ranks": ranks, "steps_per_epoch": steps_per_epoch}  # fmt: skip
    write_bytes(run / CARD, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    settings = chosen_settings({**config.plain(), **({"views": views["chosen"]} if views else {}),
                                **({"resume": origin} if origin else {})})  # fmt: skip
    notes = [f"--accept changed during the run: {format_changes(accepted)}"] if accepted else []
    write_settings(run / "run.toml", settings, "python -m train", notes)


class Journal:
    """Appends lines to metrics.jsonl and speed.jsonl, and sends them to the trackers of --log.

    metrics.jsonl contains what the settings decide, and no times. Lines that a resumed run will write again are
    dropped, so that the final file equals that of an uninterrupted run. speed.jsonl contains rates, waiting
    times and starts.
    """

    def __init__(
        self, run: Path, step: int, lines: int, log: Sequence[TrackerName] = (),
        settings: Mapping[str, Any] | None = None, *, new: bool = False,
    ) -> None:  # fmt: skip
        """Continue after `step` steps and the first `lines` lines of metrics.jsonl; 0 and 0 for a new run.

        log: the trackers. settings: of the run, for those that show them. new: whether they should show another run.
        """
        kept = read_journal(run)[:lines]
        # Rewrite both files without a last line that a killed process left unfinished.
        for name, complete in ((METRICS, kept), (SPEED, read_journal(run, SPEED))):
            write_bytes(run / name, "".join(map(_line, complete)).encode())
        self.lines = len(kept)
        self._metrics: IO[str] = (run / METRICS).open("a")
        self._speed: IO[str] = (run / SPEED).open("a")
        self._trackers = open_trackers(log, run, step, kept, settings or {}, new=new or step == 0)

    def write(self, kind: str, **values: float) -> None:
        """Append a line of kind "step", "epoch" or "online" to metrics.jsonl. values: step, epoch and metrics."""
        line = {"kind": kind, **values}
        self._metrics.write(_line(line))
        self._metrics.flush()
        self.lines += 1
        self._track(line)

    def write_speed(self, kind: str, **values: float) -> None:
        """Append a line of kind "start", "step" or "stop" to speed.jsonl, with the time of day."""
        self._speed.write(_line({"kind": kind, "time": round(time.time(), 1), **values}))
        self._speed.flush()
        if kind == "step":
            self._track({"kind": "speed", **values})

    def _track(self, line: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.write(*scalars_of(line))

    def sync(self) -> None:
        """Sync metrics.jsonl to disk. A checkpoint must not exist without the lines before it."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def close(self, status: str = "stopped") -> None:
        """Flush and close all files. status: for trackers, "finished", "stopped" or "failed"."""
        self._metrics.close()
        self._speed.close()
        for tracker in self._trackers:
            try:
                tracker.close(status)
            except OSError as error:  # training reports a full disk itself
                print(f"warning: --log: {error}", file=sys.stderr)


def _line(values: dict[str, Any]) -> str:
    """Format a line of a journal. A value that is not finite becomes null, which is read as NaN."""
    return json.dumps(without_nan(values), allow_nan=False) + "\n"


def read_card(run: Path) -> dict[str, Any]:
    """Read what write_card wrote. Raises InputError if the file is missing or malformed."""
    path = run / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        settings = card["settings"]
        numbers = [card["steps_per_epoch"], *(settings[name] for name in ("epochs", "size", "batch_size"))]
        texts = [card["command"], settings.get("out", ""), *(settings[name] for name in ("arch", "shards"))]
        if not all(type(number) is int and 0 < number < 2**60 for number in numbers) or not all(
            type(text) is str for text in texts
        ):
            raise ValueError(f"invalid numbers or texts: {numbers}, {texts}")
        describe_recipe(settings)
        card["accepted"] = parse_changes(card.get("accepted", []))
        card["init"] = parse_start(card.get("init"))
    except FileNotFoundError:
        raise InputError(f"{run}: no {CARD}; give the folder of a run, the --out of python -m train") from None
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not written by a training run ({type(error).__name__}: {error}); run the training "
                         "command again, which rewrites it") from None
    return card


def backup_journal(run: Path) -> Path | None:
    """Rename metrics.jsonl before a run starts from scratch, and return the new path; None if it has no lines."""
    if not read_journal(run):
        return None
    names = (run / f"metrics-before-{number}.jsonl" for number in itertools.count(1))
    return (run / METRICS).rename(next(name for name in names if not name.exists()))


def read_journal(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Read the lines of a journal, except a last one that a killed run left unfinished.

    Raises InputError naming the first malformed line.
    """
    path = run / name
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            break
        try:
            lines.append(_validate(json.loads(text), _LINES[name]))
        except PARSE_ERRORS as error:
            raise InputError(f"{path}: line {number} can't be read ({type(error).__name__}: {error}); fix or remove "
                             "that line") from None
    return lines


def _validate(line: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    line = {name: math.nan if value is None and name not in _ALWAYS_FINITE else value for name, value in line.items()}
    for name, value in line.items():
        if name != "kind" and not (type(value) in (int, float) and (abs(value) < 2**60 or name not in _ALWAYS_FINITE)):
            raise ValueError(f"{name} is {value!r}")
    for name in kinds[line["kind"]]:
        line[name]
    return line


def plot_loss(run: Path, batch_size: int) -> None:
    """Plot loss.png: NT-Xent against epochs and images seen, and the chance loss of 2B views."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_journal(run)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    axes.plot([line["epoch"] for line in steps], [line["loss"] for line in steps], color="0.7", lw=1, label="interval")
    axes.plot([line["epoch"] for line in epochs], [line["loss"] for line in epochs], "o-", ms=3, label="epoch mean")
    axes.axhline(math.log(2 * batch_size - 1), color="0.4", ls="--", lw=1, label=f"chance, ln {2 * batch_size - 1}")
    axes.margins(y=0.05)
    axes.set(xlabel="epoch", ylabel="NT-Xent loss", title="Pre-training loss")
    if epochs:
        images = epochs[-1]["step"] * batch_size / epochs[-1]["epoch"]  # per epoch
        seen = axes.secondary_xaxis("top", functions=(lambda epoch: epoch * images, lambda count: count / images))
        seen.set_xlabel("images seen")
    axes.legend(frameon=False)
    axes.spines["right"].set_visible(False)
    with atomic_write(run / "loss.png") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
