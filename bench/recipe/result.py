"""What a run of the recipe study came to, kept in a small file: its folder of checkpoints is not needed after that."""

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
_CURVES = {ONLINE: ("online", "linear_auroc"), LOSS: ("epoch", "loss")}  # the kind of line, and its value
_PARTS = ("both", "patients", "draws")


@dataclass(frozen=True)
class Result:
    """Of one run: how long it trained, its curves, [E, 2] of epoch and value each, and its scores by task."""

    seconds: float
    curves: dict[str, npt.NDArray[np.floating]]
    scores: dict[str, Scores]


def result_of(run: Path, scores: dict[str, Scores]) -> Result:
    """What a finished run's journals and its exam say; seconds are over all its starts."""
    speed, lines = read_journal(run, SPEED), read_journal(run)
    seconds = float(sum(line["time"] - before["time"] for before, line in pairwise(speed) if line["kind"] != "start"))
    curves = {name: np.array([(line["epoch"], line[value]) for line in lines if line["kind"] == kind]).reshape(-1, 2)
              for name, (kind, value) in _CURVES.items()}  # fmt: skip
    return Result(seconds, curves, scores)


def write_result(path: Path, identity: Mapping[str, Any], result: Result) -> None:
    """Keep a result and what it is of, in half the digits: an AUROC's rounding shows in the eighth."""
    arrays: dict[str, Any] = {f"curve {name}": values for name, values in result.curves.items()}
    arrays |= {f"{part} {task}": getattr(scores, part) for task, scores in result.scores.items() for part in _PARTS}
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, identity=json.dumps(identity, sort_keys=True, allow_nan=False), seconds=result.seconds, **arrays)


def read_result(path: Path, identity: Mapping[str, Any]) -> Result | None:
    """The result that was kept there; None where there is none, where it is of other settings, or cut short."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = {name: kept[name] for name in kept.files}
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, ValueError):
        return None
    if str(found.get("identity")) != json.dumps(identity, sort_keys=True, allow_nan=False):
        return None
    tasks = [name.removeprefix("both ") for name in found if name.startswith("both ")]
    return Result(float(found["seconds"]), {name: found[f"curve {name}"] for name in _CURVES},
                  {task: Scores(*(found[f"{part} {task}"].astype(np.float64) for part in _PARTS)) for task in tasks})
