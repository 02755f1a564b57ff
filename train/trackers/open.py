"""open_trackers: what --log names, opened for a run."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from shard.errors import InputError
from train.trackers.background import Background, is_behind
from train.trackers.csv_file import CSVFile
from train.trackers.mlflow_run import MLflowRun, prepare_mlflow
from train.trackers.tensorboard_file import TensorBoardFile
from train.trackers.wandb_run import WandbRun, check_wandb, prepare_wandb

TrackerName = Literal["tensorboard", "csv", "mlflow", "wandb"]
SERVERS = ("mlflow", "wandb")
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
    """Raise InputError if a package is missing, or if wandb has neither a key nor an offline mode.

    Imports the packages: later, in a thread, an import could meet the fork of a loader's processes.
    """
    for name in names:
        if name not in SERVERS:
            continue
        spec = importlib.util.find_spec(name)
        # Python also finds a plain folder of that name, such as ./wandb with earlier runs; it has no origin.
        if spec is None or spec.origin is None:
            raise InputError(f"--log={name}: the package is missing; pip install '.[{name}]'")
        prepare_mlflow() if name == "mlflow" else prepare_wandb()
        importlib.import_module("mlflow.tracking" if name == "mlflow" else name)
        if name == "wandb":
            check_wandb()


def open_trackers(
    names: Sequence[TrackerName], run: Path, step: int, lines: Sequence[Line], settings: Mapping[str, Any], *,
    new: bool,
) -> list[Tracker]:  # fmt: skip
    """Open the trackers of a run that continues after `step` steps.

    lines: of metrics.jsonl up to there, for trackers that lack them. settings: of the run; what is PRIVATE is not sent.
    new: whether servers should begin another run, whatever the folder was used for.
    """
    sent = {name: value for name, value in settings.items() if name not in PRIVATE}
    run = run.absolute()
    trackers: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            trackers.append(TensorBoardFile(run / "tensorboard", step))
        elif name == "csv":
            trackers.append(CSVFile(run / "metrics.csv", map(scalars_of, lines)))
        else:
            connect = MLflowRun if name == "mlflow" else WandbRun
            (run / FOLDER).mkdir(exist_ok=True)
            sent_file = _sent_file(run, name)
            if new:
                sent_file.unlink(missing_ok=True)
            remote = connect(run, run / FOLDER / f"{name}-id.txt", sent, new=new)
            trackers.append(Background(name, remote, map(scalars_of, lines), sent_file))
    return trackers


def _sent_file(run: Path, name: TrackerName) -> Path:
    return run / FOLDER / f"{name}-sent.json"


def servers_behind(names: Iterable[TrackerName], run: Path) -> bool:
    """Return whether a server lacks the end of a finished run."""
    return any(name in SERVERS and is_behind(_sent_file(run, name)) for name in names)


def scalars_of(line: Line) -> tuple[int, dict[str, float]]:
    """Return the step of a journal's line, and its scalars by tag: {"step/loss": 4.1, …}."""
    return int(line["step"]), {f"{line['kind']}/{name}": value for name, value in line.items()
                               if name not in ("kind", "step")}  # fmt: skip
