"""What a run writes of itself: run.json, metrics.jsonl, speed.jsonl, TensorBoard, and loss.png drawn from them."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import IO, Any

from shard.errors import InputError
from shard.files import atomic_write, write_bytes
from shard.plain_json import without_nan
from train.accepted import Change, check_changes
from train.config import Config
from train.recipe import describe_recipe, train_command
from train.tensorboard_file import TensorBoardFile

CARD, METRICS, SPEED = "run.json", "metrics.jsonl", "speed.jsonl"
LOCK = "train"  # of the folder, held by whoever writes there
# Kind of line → the numbers that are read of it.
_LINES = {
    METRICS: {"step": ("step", "epoch", "loss"), "epoch": ("step", "epoch", "loss"),
              "online": ("step", "epoch", "knn_auroc", "linear_auroc")},
    SPEED: {"start": ("time", "step"), "step": ("time", "step", "images_per_s", "data_wait"), "stop": ("time", "step")},
}  # fmt: skip
_CLOCKS = ("step", "epoch", "time")  # which are never without end, whatever a measure may be


def write_card(run: Path, config: Config, accepted: list[Change], *, ranks: int, steps_per_epoch: int) -> None:
    """Write run.json: the command, the settings, how many steps they make, and what --accept changed on the way."""
    command = train_command(config.plain())
    if ranks > 1:
        command = f"{command}  # on {ranks} ranks, started by srun or torchrun as before"
    card = {"command": command, "settings": config.plain(), "accepted": accepted, "ranks": ranks,
            "steps_per_epoch": steps_per_epoch}  # fmt: skip
    write_bytes(run / CARD, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())


class Journal:
    """Appends lines to metrics.jsonl, which a resumed run goes on with, and to speed.jsonl, which tells what happened.

    metrics.jsonl holds what the recipe decides, and no clock: a line that a resumed run will write again is dropped
    first, so that it ends equal to that of a run never stopped. speed.jsonl holds rates, waits and starts.
    """

    def __init__(self, run: Path, step: int, lines: int) -> None:
        """Go on after so many steps, and so many lines of metrics.jsonl; 0 and 0 for a new run."""
        kept = read_journal(run)[:lines]
        for name, lines_of in ((METRICS, kept), (SPEED, read_journal(run, SPEED))):  # without what a kill tore
            write_bytes(run / name, "".join(map(_line, lines_of)).encode())
        self.lines = len(kept)
        self._metrics: IO[str] = (run / METRICS).open("a")
        self._speed: IO[str] = (run / SPEED).open("a")
        self._board = TensorBoardFile(run / "tensorboard", step)

    def write(self, kind: str, **values: float) -> None:
        """Append a line of kind "step", "epoch" or "online"; values holds step, epoch and what was measured."""
        self._metrics.write(_line({"kind": kind, **values}))
        self._metrics.flush()
        self.lines += 1
        self._show(kind, values)

    def write_speed(self, kind: str, **values: float) -> None:
        """Append a line to speed.jsonl with the time of day: kind "start", "step" or "stop"."""
        self._speed.write(_line({"kind": kind, "time": round(time.time(), 1), **values}))
        self._speed.flush()
        if kind == "step":
            self._show("speed", values)

    def _show(self, kind: str, values: dict[str, float]) -> None:
        scalars = {f"{kind}/{name}": value for name, value in values.items() if name != "step"}
        self._board.write(int(values["step"]), scalars)

    def sync(self) -> None:
        """Have all lines on the disk: a checkpoint must not be there without the lines before it."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Flush and close all files."""
        self._metrics.close()
        self._speed.close()
        self._board.close()


def _line(values: dict[str, Any]) -> str:
    """A line of a journal: a measure that is not finite is null, and read as NaN."""
    return json.dumps(without_nan(values), allow_nan=False) + "\n"


def read_card(run: Path) -> dict[str, Any]:
    """What write_card wrote. Raises InputError where there is none, or what is there is not one."""
    path = run / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        settings = card["settings"]
        numbers = [card["steps_per_epoch"], *(settings[name] for name in ("epochs", "size", "batch_size"))]
        texts = [card["command"], settings.get("out", ""), *(settings[name] for name in ("arch", "shards"))]
        if not all(type(number) is int and 0 < number < 2**60 for number in numbers) or not all(
            type(text) is str for text in texts
        ):
            raise ValueError(f"its numbers are {numbers}, its texts {texts}")
        describe_recipe(settings)
        card["accepted"] = check_changes(card.get("accepted", []))
    except FileNotFoundError:
        raise InputError(f"{run}: no {CARD}; give the folder of a run, what python -m train had as --out") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a run's card ({type(error).__name__}: {error}); run the training's command "
                         "again, which writes it anew") from None
    return card


def set_journal_aside(run: Path) -> Path | None:
    """Keep the lines of a run that begins anew under another name, which is returned; None where there are none."""
    if not read_journal(run):
        return None
    names = (run / f"metrics-before-{number}.jsonl" for number in itertools.count(1))
    return (run / METRICS).rename(next(name for name in names if not name.exists()))


def read_journal(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The journal's lines; a last line that a killed run left unfinished is not one.

    Raises InputError naming the first line that is none of a journal's.
    """
    path = run / name
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            break
        try:
            lines.append(_checked(json.loads(text), _LINES[name]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: line {number} can't be read ({type(error).__name__}: {error}); mend it, or "
                             "remove that line alone") from None
    return lines


def _checked(line: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    line = {name: math.nan if value is None and name not in _CLOCKS else value for name, value in line.items()}
    for name, value in line.items():
        if name != "kind" and not (type(value) in (int, float) and (abs(value) < 2**60 or name not in _CLOCKS)):
            raise ValueError(f"{name} is {value!r}")
    for name in kinds[line["kind"]]:
        line[name]
    return line


def plot_loss(run: Path, batch_size: int) -> None:
    """Plot loss.png: NT-Xent against epochs and images seen, and the loss of a model that can't tell 2B views apart."""
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
        images = epochs[-1]["step"] * batch_size / epochs[-1]["epoch"]  # an epoch
        seen = axes.secondary_xaxis("top", (lambda epoch: epoch * images, lambda count: count / images))
        seen.set_xlabel("images seen")
    axes.legend(frameon=False)
    axes.spines["right"].set_visible(False)
    with atomic_write(run / "loss.png") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)
