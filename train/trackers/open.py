"""open_trackers: what --log names, opened for a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from shard.errors import InputError
from train.trackers.background import Background
from train.trackers.csv_file import CSVFile
from train.trackers.mlflow_run import MLflowRun
from train.trackers.tensorboard_file import TensorBoardFile
from train.trackers.wandb_run import WandbRun, check_wandb

TrackerName = Literal["tensorboard", "csv", "mlflow", "wandb"]
FOLDER = "trackers"  # in the run's folder: the ids by which servers know the run, and how many lines they have
# Settings that may contain names of people or of their files, and stay on this machine.
PRIVATE = ("shards", "out", "init", "resume")
Line = Mapping[str, Any]  # of metrics.jsonl: kind, step and metrics


class Tracker(Protocol):
    """Gets a run's scalars as they are measured."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars, tag → value, such as step/loss."""

    def close(self, status: str) -> None:
        """Record that the process ends: the run is "finished", "stopped" or "failed"."""


def check_trackers(names: Iterable[TrackerName]) -> None:
    """Raise InputError if a package is missing, or if wandb has neither a key nor an offline mode."""
    for name in names:
        if name in ("mlflow", "wandb") and importlib.util.find_spec(name) is None:
            raise InputError(f"--log={name}: the package is missing; pip install '.[{name}]'")
        if name == "wandb":
            check_wandb()


def open_trackers(
    names: Sequence[TrackerName], run: Path, step: int, lines: Sequence[Line], settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open the trackers of a run that continues after `step` steps.

    lines: of metrics.jsonl up to there, for trackers that lack them.
    settings: of the run. What is PRIVATE is not sent.
    """
    sent = {name: value for name, value in settings.items() if name not in PRIVATE}
    trackers: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            trackers.append(TensorBoardFile(run / "tensorboard", step))
        elif name == "csv":
            trackers.append(CSVFile(run / "metrics.csv", map(scalars_of, lines)))
        else:
            connect = MLflowRun if name == "mlflow" else WandbRun
            (run / FOLDER).mkdir(exist_ok=True)
            remote = connect(run, run / FOLDER / f"{name}-id.txt", sent, new=step == 0)
            trackers.append(Background(name, remote, map(scalars_of, lines), run / FOLDER / f"{name}-sent.txt"))
    return trackers


def scalars_of(line: Line) -> tuple[int, dict[str, float]]:
    """Return the step of a journal's line, and its scalars by tag: {"step/loss": 4.1, …}."""
    return int(line["step"]), {f"{line['kind']}/{name}": value for name, value in line.items()
                               if name not in ("kind", "step")}  # fmt: skip
