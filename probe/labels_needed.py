"""How many labelled examples an AUROC takes: a power law through the curve over shots, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probe.statistics import Scores

Floats = npt.NDArray[np.float64]
LEAST_POINTS = 4  # numbers of shots; the law has three parameters
FURTHEST = 10  # times the largest number of shots; the law is not trusted beyond
EXPONENTS = np.geomspace(0.05, 3, 120)


class PowerLaw(NamedTuple):
    """AUROC = ceiling − scale · shots^(−exponent), one for each replicate [R]. The scale is at least 0."""

    ceiling: Floats
    scale: Floats
    exponent: Floats


class Needed(NamedTuple):
    """Labelled examples per class for an AUROC, and the 95 % interval; infinite if it is not reached."""

    labels: float
    low: float
    high: float


def fit_power_law(shots: Sequence[int], aurocs: Floats) -> PowerLaw:
    """Fit the law to the AUROC [R, S] at these numbers of shots [S] by least squares, with a ceiling of at most 1.

    For a given exponent the fit is linear, so the best of EXPONENTS is found for all replicates at once. Classifiers'
    learning curves follow such laws (Figueroa et al., 2012, "Predicting sample size required for classification
    performance").
    """
    best = np.full(len(aurocs), np.inf)
    law = PowerLaw(*(np.full(len(aurocs), np.nan) for _ in range(3)))
    for exponent in EXPONENTS:
        x = np.asarray(shots, float) ** -exponent
        centred = x - x.mean()
        scale = -((aurocs - aurocs.mean(axis=1, keepdims=True)) @ centred) / (centred @ centred)
        ceiling = aurocs.mean(axis=1) + scale * x.mean()
        above = ceiling > 1
        scale = np.maximum(0.0, np.where(above, ((1 - aurocs) @ x) / (x @ x), scale))
        ceiling = np.where(above, 1.0, np.where(scale > 0, ceiling, aurocs.mean(axis=1)))
        error = ((aurocs - ceiling[:, None] + scale[:, None] * x) ** 2).sum(axis=1)
        for values, found in zip(law, (ceiling, scale, np.full(len(aurocs), exponent)), strict=True):
            values[error < best] = found[error < best]
        best = np.minimum(best, error)
    return law


def labels_needed(curve: Mapping[int, Scores], target: float) -> Needed | None:
    """Return how many examples per class reach the AUROC `target`.

    curve: shots → the AUROC. The interval is over draws and test patients: the percentiles of the same fit to each
    replicate of the bootstrap. Up to the smallest number of shots the result is that number; beyond FURTHEST times the
    largest it is infinite. None for fewer than LEAST_POINTS numbers of shots, or if the AUROC is undefined.
    """
    shots = sorted(curve)
    if len(shots) < LEAST_POINTS:
        return None
    aurocs = np.stack([curve[number].both for number in shots], axis=1)  # [R, S]
    defined = np.isfinite(aurocs.sum(axis=1))
    if not defined[0] or defined.sum() < 3:
        return None
    law = fit_power_law(shots, aurocs[defined])
    gap = law.ceiling - target
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        needed = np.where(gap > 0, (law.scale / gap) ** (1 / law.exponent), math.inf)
    needed = np.maximum(needed, shots[0])
    needed[needed > FURTHEST * shots[-1]] = math.inf
    low, high = np.quantile(needed[1:], [0.025, 0.975], method="nearest")
    return Needed(float(needed[0]), float(low), float(high))
