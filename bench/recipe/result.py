"""RunResult: the result of a training run in a small file, so that its checkpoints can be deleted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probe.statistics import Scores
from shard.files import atomic_write
from train.journal import SPEED, read_journal

ONLINE, LOSS = "online", "loss"
_CURVES = {ONLINE: ("online", "linear_auroc"), LOSS: ("epoch", "loss")}  # curve → kind of journal line, its key
_PARTS = ("both", "patients", "draws")


@dataclass(frozen=True)
class RunResult:
    """The seconds of training, the curves by name, each [E, 2] with epoch and value, and the scores by task."""

    seconds: float
    curves: dict[str, npt.NDArray[np.floating]]
    scores: dict[str, Scores]


def collect_result(run: Path, scores: dict[str, Scores]) -> RunResult:
    """Combine the scores of a finished run with its journals. The seconds are summed over all starts."""
    speed, lines = read_journal(run, SPEED), read_journal(run)
    intervals = (line["time"] - previous["time"] for previous, line in pairwise(speed) if line["kind"] != "start")
    curves = {name: np.array([(line["epoch"], line[value]) for line in lines if line["kind"] == kind]).reshape(-1, 2)
              for name, (kind, value) in _CURVES.items()}  # fmt: skip
    return RunResult(float(sum(intervals)), curves, scores)


def write_result(path: Path, identity: Mapping[str, Any], result: RunResult) -> None:
    """Write a result with its identity, in float32: an AUROC is rounded in its eighth digit."""
    arrays: dict[str, Any] = {f"curve {name}": values for name, values in result.curves.items()}
    arrays |= {f"{part} {task}": getattr(scores, part) for task, scores in result.scores.items() for part in _PARTS}
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, identity=json.dumps(identity, sort_keys=True, allow_nan=False), seconds=result.seconds, **arrays)


def read_result(path: Path, identity: Mapping[str, Any]) -> RunResult | None:
    """Read a result. Returns None if the file is missing, truncated or corrupt, or has another identity.

    Its scores lack what EvaluationSet.complete adds.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, ValueError):
        return None
    if str(arrays.get("identity")) != json.dumps(identity, sort_keys=True, allow_nan=False):
        return None
    tasks = [name.removeprefix("both ") for name in arrays if name.startswith("both ")]
    return RunResult(float(arrays["seconds"]), {name: arrays[f"curve {name}"] for name in _CURVES},
                  {task: _read_scores(arrays, task) for task in tasks})


def _read_scores(arrays: Mapping[str, Any], task: str) -> Scores:
    both, patients, draws = (arrays[f"{part} {task}"].astype(np.float64) for part in _PARTS)
    return Scores(both, patients, draws, rarer=0)
