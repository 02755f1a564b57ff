"""Scores over draws and patients: 95 % intervals by a two-level bootstrap, paired tests, and effects over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from probe.metrics import LANES, METRICS, Counts, count_ranking, stack_lanes
from shard.machine import cores

Floats = npt.NDArray[np.float64]
REPLICATES = 2000
CHUNK = 3 * LANES  # replicates that a thread scores at a time


@dataclass(frozen=True)
class Resamples:
    """How often each replicate takes each draw [R, D] and each test patient [R, P]; the first takes each once."""

    draws: npt.NDArray[np.int32]
    patients: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Scores:
    """One metric, or all METRICS in the last axis, in each replicate. Differences and means of Scores are Scores.

    both: [R], draws and patients resampled; patients: [R], patients alone resampled; draws: [D], each draw on all
    patients. The first entry of `both` and of `patients` is the estimate: the mean of `draws`.
    """

    both: Floats
    patients: Floats
    draws: Floats

    def of(self, metric: str) -> Scores:
        """Select one metric of METRICS."""
        number = list(METRICS).index(metric)
        return Scores(self.both[:, number], self.patients[:, number], self.draws[:, number])

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.both - other.both, self.patients - other.patients, self.draws - other.draws)


def join(parts: Sequence[Scores]) -> Scores:
    """Combine the scores of consecutive blocks of draws into the scores of all draws."""
    both, patients = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("both", "patients"))
    return Scores(both, patients, np.concatenate([part.draws for part in parts]))


def mean_of(scores: Sequence[Scores]) -> Scores:
    """Average several Scores, replicate by replicate."""
    both, patients, draws = (np.mean([getattr(score, name) for score in scores], axis=0)
                             for name in ("both", "patients", "draws"))  # fmt: skip
    return Scores(both, patients, draws)


@dataclass(frozen=True)
class Estimate:
    """A mean over draws with its 95 % interval and the standard error over replicates; all NaN if undefined."""

    mean: float
    low: float
    high: float
    error: float


def resample(draws: int, patients: int, *, replicates: int = REPLICATES, seed: int = 0) -> Resamples:
    """Sample the two-level bootstrap: each replicate takes draws, and independently patients, with replacement.

    All encoders share one Resamples, so their differences are paired.
    """
    rng = np.random.default_rng(seed)
    rows = [rng.multinomial(number, np.full(number, 1 / number), size=replicates) for number in (draws, patients)]
    once = [np.concatenate([np.ones((1, counts.shape[1]), int), counts]).astype(np.int32) for counts in rows]
    return Resamples(*once)


def score(
    decisions: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], patients: npt.NDArray[np.integer],
    resamples: Resamples, members: npt.NDArray[np.bool_] | None = None, first: int = 0,
) -> Scores:  # fmt: skip
    """Compute METRICS in each replicate, as the mean over its draws; for a block of draws, their share of it (`join`).

    decisions: [D, N], positive above 0; their logistic is the probability. labels: [N], 0 or 1. patients: [N], numbered
    from 0. members: [D, N], the images that each draw is tested on; None for all. first: the number of the first draw,
    for a block. A metric is NaN if its images leave it undefined: AUROC, AUPRC and balanced accuracy need both
    classes.
    """
    draw_counts = np.ascontiguousarray(resamples.draws[:, first : first + len(decisions)])
    order = np.argsort(-decisions, axis=1, kind="stable").astype(np.int32)
    ranked = np.take_along_axis(decisions, order, axis=1)
    last = np.ones(order.shape, bool)  # whether it is the last of equal decision values
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    probability = 1 / (1 + np.exp(-np.clip(ranked, -500, 500).astype(np.float64)))
    tested = np.ones(order.shape, bool) if members is None else np.take_along_axis(members, order, axis=1)
    both, of_patients = np.zeros((2, len(resamples.draws), len(METRICS)))
    of_draws = np.empty((len(decisions), len(METRICS)))
    ranking = (order, last, ranked > 0, probability, tested, labels.astype(np.int8), patients.astype(np.int32))

    def score_chunk(start: int) -> None:
        chunk = slice(start, start + CHUNK)
        counts = np.empty((len(Counts._fields), len(both[chunk]), len(decisions)))
        count_ranking(*ranking, stack_lanes(resamples.patients[chunk]), counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.stack([metric(Counts(*counts)) for metric in METRICS.values()], axis=-1)  # [chunk, D, metrics]
        for draw in range(len(decisions)):
            both[chunk] += draw_counts[chunk, draw, None] * found[:, draw] / resamples.draws.shape[1]
            of_patients[chunk] += found[:, draw] / resamples.draws.shape[1]
        if start == 0:  # the first replicate takes each patient once
            of_draws[:] = found[0]

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(score_chunk, range(0, len(both), CHUNK)))
    return Scores(both, of_patients, of_draws)


def estimate(scores: Scores) -> Estimate:
    """Estimate the mean over draws with its percentile interval, from the replicates in which it is defined."""
    value, replicates = float(scores.both[0]), _replicates(scores)
    if not np.isfinite(value) or len(replicates) < 2:
        return Estimate(value, *(float("nan"),) * 3)
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Estimate(value, float(low), float(high), float(replicates.std(ddof=1)))


def p_value(difference: Scores) -> float:
    """The two-sided bootstrap p value of a paired difference; NaN if it is undefined."""
    replicates = _replicates(difference)
    if not np.isfinite(difference.both[0]) or len(replicates) < 2:
        return float("nan")
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(replicates) + 1)))


def _replicates(scores: Scores) -> Floats:
    """The replicates of one metric, centred on the estimate and scaled to its variance.

    Draws and patients are crossed, so the mean has the variance D/n_d + P/n_p + I: of draws, of patients, and of their
    interaction. Resampling draws gives D/n_d + I, patients P/n_p + I, and both D/n_d + P/n_p + 3 I (Owen 2007, "The
    pigeonhole bootstrap"). The last counts I three times, and I dominates if probes rarely agree. So I is solved from
    the three variances, and the replicates of both are shrunk. They are centred because resampling biases a calibration
    error, which is never below 0, upwards: its interval would lie above the estimate.
    """
    both, patients = (values[1:][np.isfinite(values[1:])] for values in (scores.both, scores.patients))
    number = len(scores.draws)
    if len(both) < 2 or not both.var():
        return both
    variance = of_both = both.var(ddof=1)
    if number > 1:  # a single draw does not show how draws vary; its interval is over patients alone
        of_patients, of_draws = patients.var(ddof=1), scores.draws.var(ddof=1) / number
        interaction = of_both - of_patients - of_draws * (number - 1) / number
        variance = max(of_patients + of_draws - interaction, of_patients, of_draws)
    shrunk: Floats = scores.both[0] + (both - both.mean()) * np.sqrt(min(variance / of_both, 1.0))
    return shrunk


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple testing (Holm 1979), in the order given. NaN stays NaN and is not counted."""
    given = np.asarray(p_values, float)
    result, largest = np.full(len(given), np.nan), 0.0
    tested = [index for index in np.argsort(given) if np.isfinite(given[index])]
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * given[index]))
        result[index] = largest
    return [float(value) for value in result]


class Effect(NamedTuple):
    """A mean over training seeds with its 95 % interval over draws, patients and seeds, and a two-sided p value.

    seeds: their number; with one seed the interval is over draws and patients alone.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def over_seeds(seeds: Sequence[Scores]) -> Effect:
    """Average the scores of several training seeds, mostly paired differences, with an interval and a p value.

    The variance is that of the seeds' mean over the draws and patients that they share, plus the variance between seeds
    over their number. Seeds, and maybe draws, are few, so the interval uses Student's t with Satterthwaite's degrees of
    freedom. A seed's own dependence on draws and patients enters both terms: the interval is conservative.
    """
    within = estimate(mean_of(seeds))
    values = np.array([float(scores.both[0]) for scores in seeds])
    between = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    error = math.sqrt(within.error**2 + between)
    if not error > 0:
        return Effect(within.mean, *(float("nan"),) * 3, len(seeds))
    draws = max(1, len(seeds[0].draws) - 1)  # degrees of freedom of the variance over draws
    freedom = error**4 / (within.error**4 / draws + (between**2 / (len(values) - 1) if between else 0.0))
    half = float(student.ppf(0.975, freedom)) * error
    p = 2 * float(student.sf(abs(within.mean) / error, freedom))
    return Effect(within.mean, within.mean - half, within.mean + half, p, len(seeds))
