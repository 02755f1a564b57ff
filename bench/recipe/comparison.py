"""Compare encoders over training seeds: differences of AUROC, corrected p values, and what ten labels are worth."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bench.recipe.evaluation import CURVE
from probe.statistics import Effect, Scores, holm, mean_of, over_seeds

MEAN = "mean"
Seeds = list[dict[str, Scores]]  # one dict by task for each training seed
Floats = npt.NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)


def paired(scores: Seeds, reference: Seeds, task: str) -> list[Scores]:
    """Return the differences of a task by seed. A reference with one seed is subtracted from each."""
    others = reference if len(reference) > 1 else [*reference] * len(scores)
    return [one[task] - other[task] for one, other in zip(scores, others, strict=False)]


def difference(scores: Seeds, reference: Seeds, task: str) -> Effect:
    """Return scores minus reference on one task, paired by seed."""
    return over_seeds(paired(scores, reference, task))


def level(scores: Seeds, task: str) -> Effect:
    """Return the AUROC of a task over seeds. It has no p value."""
    return over_seeds([one[task] for one in scores])._replace(p=math.nan)


def with_mean(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Add the mean over tasks."""
    return {**scores, MEAN: mean_of([*scores.values()])}


def correct_p_values(effects: Mapping[Name, Effect]) -> dict[Name, Effect]:
    """Correct the p values for the number of effects (Holm)."""
    corrected = holm([effect.p for effect in effects.values()])
    return {name: effect._replace(p=p) for (name, effect), p in zip(effects.items(), corrected, strict=True)}


def claim_effects(
    scores: Seeds, rivals: Mapping[str, Seeds], tasks: Sequence[str]
) -> dict[tuple[str, str], Effect]:
    """Return (rival, task) → difference, and (rival, MEAN), with corrected p values.

    The mean is the primary endpoint, corrected for the number of rivals; the tasks are corrected for rivals × tasks.
    """
    primary = {(rival, MEAN): difference(scores, reference, MEAN) for rival, reference in rivals.items()}
    secondary = {(rival, task): difference(scores, reference, task)
                 for rival, reference in rivals.items() for task in tasks}  # fmt: skip
    return correct_p_values(primary) | correct_p_values(secondary)


class Worth(NamedTuple):
    """How many labels a class give a rival the AUROC of ours with ten, with a 95 % interval; infinite if no number."""

    labels: float
    low: float
    high: float


def worth(ours: Floats, rival: Mapping[int, Floats]) -> Worth:
    """Return how many labels a class the rival needs to reach the AUROC `ours` [R], in each replicate.

    rival: shots → its AUROC [R]. The curve is interpolated over the logarithm of the shots and made to rise; beyond its
    last point the number is infinite, before its first it is that. The first replicate is the estimate, the others give
    the interval by their percentiles.
    """
    shots = sorted(rival)
    rising = np.maximum.accumulate([rival[number] for number in shots], axis=0)  # [S, R]
    needed = np.array([_cross(np.log(shots), rising[:, replicate], ours[replicate]) for replicate in range(len(ours))])
    low, high = np.quantile(needed[1:], [0.025, 0.975], method="nearest")
    return Worth(float(needed[0]), float(low), float(high))


def _cross(log_shots: Floats, rising: Floats, value: float) -> float:
    if value > rising[-1]:
        return math.inf
    above = int(np.argmax(rising >= value))
    if above == 0:
        return float(np.exp(log_shots[0]))
    share = (value - rising[above - 1]) / (rising[above] - rising[above - 1])
    return float(np.exp(log_shots[above - 1] + share * (log_shots[above] - log_shots[above - 1])))


def curve_shots(pool: int) -> tuple[int, ...]:
    """Return the shots of the curve whose tasks have `pool` positive patients in every pool."""
    return tuple(shots for shots in CURVE if shots <= pool)
