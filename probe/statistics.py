"""Decision values of many draws on many patients → metrics, their intervals over both, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from shard.caches import numba_can_cache
from shard.machine import cores

Floats = npt.NDArray[np.float64]
METRICS = ("accuracy", "balanced_accuracy", "auroc", "auprc", "ece")
BINS = 10  # of the calibration error, equally wide
REPLICATES = 2000
CHUNK = 50  # replicates that a thread does at a time


@dataclass(frozen=True)
class Resamples:
    """How often each draw [R, D] and each test patient [R, P] is taken; in the first replicate each once."""

    draws: npt.NDArray[np.int32]
    patients: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Scores:
    """One metric, or all in the last axis, of each replicate; differences and means of Scores are Scores again.

    both: [R], draws and patients taken with replacement; patients: [R], patients alone; draws: [D], each draw on all
    patients. The first of `both` and `patients` is the estimate itself: the mean of `draws`.
    """

    both: Floats
    patients: Floats
    draws: Floats

    def of(self, metric: str) -> Scores:
        """The one metric of METRICS."""
        number = METRICS.index(metric)
        return Scores(self.both[:, number], self.patients[:, number], self.draws[:, number])

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.both - other.both, self.patients - other.patients, self.draws - other.draws)


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of all draws from those of some of them each, in the order of the draws."""
    both, patients = (np.sum([getattr(one, name) for one in parts], axis=0) for name in ("both", "patients"))
    return Scores(both, patients, np.concatenate([one.draws for one in parts]))


def mean_of(scores: Sequence[Scores]) -> Scores:
    """The mean of several, replicate by replicate."""
    both, patients, draws = (np.mean([getattr(one, name) for one in scores], axis=0)
                             for name in ("both", "patients", "draws"))  # fmt: skip
    return Scores(both, patients, draws)


@dataclass(frozen=True)
class Estimate:
    """A mean over draws with its 95 % interval, and the standard error over replicates; all NaN where undefined."""

    mean: float
    low: float
    high: float
    error: float


def resample(draws: int, patients: int, *, replicates: int = REPLICATES, seed: int = 0) -> Resamples:
    """A two-level bootstrap: in each replicate draws, and independently of them patients, are taken with replacement.

    One set serves all encoders: their differences are paired.
    """
    rng = np.random.default_rng(seed)
    rows = [rng.multinomial(number, np.full(number, 1 / number), size=replicates) for number in (draws, patients)]
    once = [np.concatenate([np.ones((1, counts.shape[1]), int), counts]).astype(np.int32) for counts in rows]
    return Resamples(*once)


def score(
    decisions: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], patients: npt.NDArray[np.integer],
    resamples: Resamples, members: npt.NDArray[np.bool_] | None = None, first: int = 0,
) -> Scores:  # fmt: skip
    """METRICS of each replicate, each the mean over its draws; of some draws alone, their share of it (see `join`).

    decisions: [D, N], above 0 for positive, whose logistic is the probability; labels: [N] of 0 and 1; patients: [N],
    numbers from 0; members: [D, N], the images that each draw is tested on, all where None. A metric that its images
    leave undefined is NaN: AUROC, AUPRC and balanced accuracy where one class is missing. first: the number of the
    first draw, where these are not all that `resamples` is of.
    """
    draw_counts = np.ascontiguousarray(resamples.draws[:, first : first + len(decisions)])
    order = np.argsort(-decisions, axis=1, kind="stable").astype(np.int32)
    ranked = np.take_along_axis(decisions, order, axis=1)
    last = np.ones(order.shape, bool)  # of those with the same decision value
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    probability = 1 / (1 + np.exp(-np.clip(ranked, -500, 500).astype(np.float64)))
    held = np.ones(order.shape, bool) if members is None else np.take_along_axis(members, order, axis=1)
    both, of_patients = np.empty((2, len(resamples.draws), len(METRICS)))
    of_draws = np.empty((len(decisions), len(METRICS)))
    given = (order, last, ranked > 0, probability, held, labels.astype(np.int8), patients.astype(np.int32))

    def score_some(start: int) -> None:
        some = slice(start, start + CHUNK)
        kept = of_draws[: len(of_draws) if start == 0 else 0]  # the first replicate is of all patients
        _score(*given, resamples.draws.shape[1], draw_counts[some], resamples.patients[some], both[some],
               of_patients[some], kept)  # fmt: skip

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(score_some, range(0, len(both), CHUNK)))
    return Scores(both, of_patients, of_draws)


# Untyped: numba takes the types from what it is called with.
@numba.njit(cache=numba_can_cache(), nogil=True, error_model="numpy")  # 0 / 0 is NaN
def _score(order, last, said, probability, held, labels, patients, all_draws,  # type: ignore[no-untyped-def]
           draw_counts, patient_counts, both, of_patients, of_draws):  # fmt: skip
    draws, images = order.shape
    sums = np.empty(BINS)
    found = np.empty(5)
    for replicate in range(len(both)):
        both[replicate], of_patients[replicate] = 0.0, 0.0
        for draw in range(draws):
            sums[:] = 0.0
            # Down the ranking: true and false positives so far, and at the last threshold.
            true, false, true_before, false_before, area, precision = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            true_said, false_said = 0.0, 0.0
            for place in range(images):
                row = order[draw, place]
                weight = patient_counts[replicate, patients[row]] if held[draw, place] else 0
                if weight > 0:
                    label = labels[row]
                    if label == 1:
                        true += weight
                        true_said += weight * said[draw, place]
                    else:
                        false += weight
                        false_said += weight * said[draw, place]
                    bin = min(int(probability[draw, place] * BINS), BINS - 1)
                    sums[bin] += weight * (probability[draw, place] - label)
                if last[draw, place] and true + false > true_before + false_before:
                    area += (false - false_before) * (true + true_before) / 2
                    precision += (true - true_before) * true / (true + false)
                    true_before, false_before = true, false
            error = 0.0
            for bin in range(BINS):
                error += abs(sums[bin])
            right = true_said + false - false_said
            found[0] = right / (true + false)
            found[1] = (true_said / true + (false - false_said) / false) / 2
            found[2] = area / (true * false)
            found[3] = precision / true if false > 0 else np.nan
            found[4] = error / (true + false)
            both[replicate] += draw_counts[replicate, draw] * found / all_draws
            of_patients[replicate] += found / all_draws
            if replicate == 0 and len(of_draws) > 0:
                of_draws[draw] = found


def estimate(scores: Scores) -> Estimate:
    """The mean over draws with its percentile interval; replicates in which it is undefined are left out."""
    value, drawn = float(scores.both[0]), _replicates(scores)
    if not np.isfinite(value) or len(drawn) < 2:
        return Estimate(value, *(float("nan"),) * 3)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), float(drawn.std(ddof=1)))


def p_value(difference: Scores) -> float:
    """The two-sided p value of a paired difference by its bootstrap replicates; NaN where it is undefined."""
    drawn = _replicates(difference)
    if not np.isfinite(difference.both[0]) or len(drawn) < 2:
        return float("nan")
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def _replicates(scores: Scores) -> Floats:
    """Replicates of one metric around the estimate, as far from it as its variance is large.

    With draws and patients crossed, the mean's variance is D/n_d + P/n_p + I: of the draws, the patients, and what is
    of neither alone. Resampling draws gives D/n_d + I, patients P/n_p + I, both D/n_d + P/n_p + 3 I (Owen 2007, "The
    pigeonhole bootstrap"): three times too much of I, which is most of it where probes agree on little. So I is taken
    from the three, and the replicates of both are drawn closer. They are centred on the estimate: a calibration error,
    which is never below zero, grows with every resampling, and its interval would lie above it.
    """
    both, patients = (values[1:][np.isfinite(values[1:])] for values in (scores.both, scores.patients))
    number = len(scores.draws)
    if len(both) < 2 or not both.var():
        return both
    variance = of_both = both.var(ddof=1)
    if number > 1:  # of one draw alone there is nothing to be said but how it does on other patients
        of_patients, of_draws = patients.var(ddof=1), scores.draws.var(ddof=1) / number
        of_neither = of_both - of_patients - of_draws * (number - 1) / number
        variance = max(of_patients + of_draws - of_neither, of_patients, of_draws)
    drawn: Floats = scores.both[0] + (both - both.mean()) * np.sqrt(min(variance / of_both, 1.0))
    return drawn


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given; NaN stays, and is not counted."""
    given = np.asarray(p_values, float)
    result, largest = np.full(len(given), np.nan), 0.0
    tested = [index for index in np.argsort(given) if np.isfinite(given[index])]
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * given[index]))
        result[index] = largest
    return [float(value) for value in result]


class Effect(NamedTuple):
    """A mean over seeds of trainings with its 95 % interval over draws, patients and seeds, and a two-sided p value.

    seeds: how many; of one, the interval is over draws and patients alone.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def over_seeds(seeds: Sequence[Scores]) -> Effect:
    """The mean of what each seed's training gave, mostly a paired difference, and how sure it is.

    The variance is that of the seeds' mean over draws and patients, which all share, and that between seeds over their
    number; Student's t with Satterthwaite's degrees of freedom, since seeds are few, and draws may be. What a seed's
    score owes to draws and patients of its own is in both: the interval is rather too wide.
    """
    within = estimate(mean_of(seeds))
    values = np.array([float(one.both[0]) for one in seeds])
    between = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    error = math.sqrt(within.error**2 + between)
    if not error > 0:
        return Effect(within.mean, *(float("nan"),) * 3, len(seeds))
    least = max(1, len(seeds[0].draws) - 1)  # of the first: what is of draws is known to so many
    freedom = error**4 / (within.error**4 / least + (between**2 / (len(values) - 1) if between else 0.0))
    half = float(student.ppf(0.975, freedom)) * error
    p = 2 * float(student.sf(abs(within.mean) / error, freedom))
    return Effect(within.mean, within.mean - half, within.mean + half, p, len(seeds))
