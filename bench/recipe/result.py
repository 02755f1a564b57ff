"""RunResult: the result of a job in a small file, from which the study's page can be made without training."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probe.statistics import Scores
from shard.files import atomic_write
from train.journal import SPEED, read_journal

Floats = npt.NDArray[np.float64]
CURVE = "curve"
UNDEFINED = -128  # the step of a replicate without a value
SizeScores = dict[int, dict[str, Scores]]  # size of the images in pixels → task → scores


@dataclass(frozen=True)
class RunResult:
    """The seconds of training, the loss [E, 2] with epoch and value, the scores, and what computed it.

    curve: the AUROC in each replicate, for each point of the curve over labels, at the only size.
    """

    seconds: float
    loss: npt.NDArray[np.floating]
    scores: SizeScores
    curve: dict[str, Floats]
    machine: dict[str, str]


def training_seconds(run: Path) -> float:
    """Sum the seconds of training over all starts of a run."""
    intervals = (line["time"] - previous["time"] for previous, line in pairwise(read_journal(run, SPEED))
                 if line["kind"] != "start")  # fmt: skip
    return float(sum(intervals))


def loss_curve(run: Path | None) -> npt.NDArray[np.floating]:
    """Read the mean loss of each epoch, [E, 2]; empty without a run."""
    lines = read_journal(run) if run else []
    return np.array([(line["epoch"], line["loss"]) for line in lines if line["kind"] == "epoch"]).reshape(-1, 2)


def write_result(path: Path, identity: Mapping[str, Any], result: RunResult) -> None:
    """Write a result with its identity.

    Replicates are kept as differences from the estimate in 8 bits, in steps of 1/127 of the largest: about 0.03
    standard errors, so that their variance changes by less than 0.1 %. The estimates are in float32.
    """
    arrays: dict[str, Any] = {"loss": result.loss.astype(np.float32)}
    names = {str(size): [*scores] for size, scores in result.scores.items()} | {CURVE: [*result.curve]}
    for size, scores in result.scores.items():
        arrays[f"{size} draws"] = np.stack([one.draws for one in scores.values()]).astype(np.float32)
        for part in ("both", "patients"):
            arrays |= _pack(f"{size} {part}", [getattr(one, part) for one in scores.values()])
    if result.curve:
        arrays |= _pack(CURVE, [*result.curve.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, identity=_encode(identity), machine=_encode(result.machine), names=_encode(names),
                            seconds=result.seconds, **arrays)  # fmt: skip


def _pack(name: str, replicates: Sequence[Floats]) -> dict[str, npt.NDArray[Any]]:
    """Encode replicates [R] of several tasks: the estimates, the largest differences from them, and 8-bit steps.

    A replicate is undefined if it has no patient of one class.
    """
    values = np.stack(replicates)
    steps = values[:, 1:] - values[:, :1]
    defined = np.isfinite(steps)
    largest = np.maximum(np.abs(np.where(defined, steps, 0)).max(axis=1, keepdims=True), 1e-9)
    whole = np.where(defined, np.rint(np.where(defined, steps, 0) * (127 / largest)), UNDEFINED)
    return {f"{name} scale": np.concatenate([values[:, :1], largest], axis=1).astype(np.float32),
            f"{name} steps": whole.astype(np.int8)}  # fmt: skip


def _unpack(arrays: Mapping[str, Any], name: str) -> Floats:
    """Decode replicates, [tasks, R]."""
    scale = arrays[f"{name} scale"].astype(np.float64)
    first, largest = scale[:, :1], scale[:, 1:]
    steps = arrays[f"{name} steps"]
    replicates = np.where(steps == UNDEFINED, np.nan, first + steps * (largest / 127))
    values: Floats = np.concatenate([first, replicates], axis=1)
    return values


def _encode(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def read_result(path: Path, identity: Mapping[str, Any]) -> RunResult | None:
    """Read a result. Returns None if the file is missing, truncated or corrupt, or has another identity.

    Its scores lack what EvaluationSet.complete adds.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, ValueError):
        return None
    if str(arrays.get("identity")) != _encode(identity):
        return None
    names = json.loads(str(arrays["names"]))
    curve = dict(zip(names.pop(CURVE), _unpack(arrays, CURVE), strict=True)) if names[CURVE] else {}
    names.pop(CURVE, None)
    scores = {int(size): _read_scores(arrays, size, tasks) for size, tasks in names.items()}
    return RunResult(float(arrays["seconds"]), arrays["loss"], scores, curve, json.loads(str(arrays["machine"])))


def _read_scores(arrays: Mapping[str, Any], size: str, tasks: Sequence[str]) -> dict[str, Scores]:
    both, patients = (_unpack(arrays, f"{size} {part}") for part in ("both", "patients"))
    draws = arrays[f"{size} draws"].astype(np.float64)
    return {task: Scores(both[number], patients[number], draws[number], rarer=0) for number, task in enumerate(tasks)}
