"""Scores over draws and patients: 95 % intervals from a two-level bootstrap, p values, and effects over seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
class Supports:
    """The support sets that the draws of a score were trained on.

    patients: [D, n], numbered. folds: [D], the fold of each draw in a cross-validation; None for a single pool.
    share: of the pool that each draw has; 0 if draws have a number of patients, not a share.
    """

    patients: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64] | None = None
    share: float = 0.0

    @functools.cached_property
    def shared(self) -> Floats:
        """How many patients each pair of draws shares, one value per pair [D · (D - 1) / 2]."""
        numbers = np.unique(self.patients, return_inverse=True)[1].reshape(self.patients.shape)
        members = np.zeros((len(numbers), int(numbers.max(initial=-1)) + 1), np.float32)
        np.put_along_axis(members, numbers, 1, axis=1)
        counts: Floats = (members @ members.T)[np.triu_indices(len(numbers), 1)].astype(np.float64)
        return counts


@dataclass(frozen=True)
class Scores:
    """One metric, or all METRICS in the last axis, in each replicate. Differences and means of Scores are Scores.

    both: [R], draws and patients resampled; patients: [R], patients alone resampled; draws: [D], each draw on all
    patients. The first entry of `both` and of `patients` is the estimate: the mean of `draws`. rarer: the number of
    test patients of the rarer class, in a mean over tasks the smallest. supports: None if there is no draw of them, or
    they are unknown; then intervals are of this pool of support patients.
    """

    both: Floats
    patients: Floats
    draws: Floats
    rarer: int
    supports: Supports | None = None

    def of(self, metric: str) -> Scores:
        """Select one metric of METRICS."""
        number = list(METRICS).index(metric)
        return replace(self, both=self.both[:, number], patients=self.patients[:, number], draws=self.draws[:, number])

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.both - other.both, self.patients - other.patients, self.draws - other.draws,
                      min(self.rarer, other.rarer), self.supports)  # fmt: skip


def join(parts: Sequence[Scores]) -> Scores:
    """Combine the scores of consecutive blocks of draws into the scores of all draws."""
    both, patients = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("both", "patients"))
    supports = [part.supports.patients for part in parts if part.supports is not None]
    return Scores(both, patients, np.concatenate([part.draws for part in parts]), parts[0].rarer,
                  replace(parts[0].supports, patients=np.concatenate(supports))
                  if parts[0].supports is not None else None)  # fmt: skip


def mean_of(scores: Sequence[Scores]) -> Scores:
    """Average several Scores, replicate by replicate. Their support sets count as of different patients."""
    both, patients, draws = (np.mean([getattr(score, name) for score in scores], axis=0)
                             for name in ("both", "patients", "draws"))  # fmt: skip
    supports, first = list[Supports](), 0
    for score in scores:
        if score.supports is not None:
            supports.append(replace(score.supports, patients=score.supports.patients + first))
            first += int(score.supports.patients.max(initial=-1)) + 1
    joint = np.concatenate([one.patients for one in supports], axis=1) if supports else None
    return Scores(both, patients, draws, min(score.rarer for score in scores),
                  replace(supports[0], patients=joint) if joint is not None and len(supports) == len(scores) else None)


def mean_over_folds(folds: Sequence[Scores]) -> Scores:
    """Average the Scores of a task over the folds of a cross-validation, in which each patient is tested once.

    The patients of each fold must have been resampled independently of the others'. The draws of all folds are kept
    side by side, each fold's moved to the mean over folds: a fold's own mean is no matter of its draws.
    """
    both, patients = (np.mean([getattr(fold, name) for fold in folds], axis=0) for name in ("both", "patients"))
    mean = np.mean([fold.draws.mean() for fold in folds])
    draws = np.concatenate([fold.draws - fold.draws.mean() + mean for fold in folds])
    supports = [fold.supports.patients for fold in folds if fold.supports is not None]
    numbers = np.repeat(np.arange(len(folds)), [len(fold.draws) for fold in folds])
    return Scores(both, patients, draws, sum(fold.rarer for fold in folds),
                  Supports(np.concatenate(supports), numbers) if len(supports) == len(folds) else None)


@dataclass(frozen=True)
class Estimate:
    """A mean over draws with its 95 % interval, its standard error and that error's degrees of freedom.

    All but the mean are NaN if undefined.
    """

    mean: float
    low: float
    high: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """The two-sided p value of a mean of 0; NaN if undefined."""
        return float(2 * student.sf(abs(self.mean) / self.error, self.freedom)) if self.error > 0 else float("nan")


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
    supports: npt.NDArray[np.int64] | None = None,
) -> Scores:  # fmt: skip
    """Compute METRICS in each replicate, as the mean over its draws; for a block of draws, their share of it (`join`).

    decisions: [D, N], positive above 0; their logistic is the probability. labels: [N], 0 or 1. patients: [N], numbered
    from 0. members: [D, N], the balanced test set of each draw; None for all images. The classes of a balanced set have
    equal weights in every replicate, as the set itself has equal numbers. first: the number of the first draw, for a
    block. supports: [D, n], the patients of each support set. A metric is NaN if its images leave it undefined: AUROC,
    AUPRC and balanced accuracy need both classes.
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
        count_ranking(*ranking, stack_lanes(resamples.patients[chunk]), members is not None, counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.stack([metric(Counts(*counts)) for metric in METRICS.values()], axis=-1)  # [chunk, D, metrics]
        for draw in range(len(decisions)):
            both[chunk] += draw_counts[chunk, draw, None] * found[:, draw] / resamples.draws.shape[1]
            of_patients[chunk] += found[:, draw] / resamples.draws.shape[1]
        if start == 0:  # the first replicate takes each patient once
            of_draws[:] = found[0]

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(score_chunk, range(0, len(both), CHUNK)))
    rarer = min(len(np.unique(patients[labels == label])) for label in (0, 1))
    return Scores(both, of_patients, of_draws, rarer, None if supports is None else Supports(supports))


def estimate(scores: Scores) -> Estimate:
    """Estimate the mean over draws, with an interval by Student's t, from the replicates in which it is defined.

    Draws and patients are crossed, so the mean has the variance D/n_d + P/n_p + I: of draws, of patients, and of their
    interaction. Resampling draws gives D/n_d + I, patients P/n_p + I, and both D/n_d + P/n_p + 3 I (Owen 2007, "The
    pigeonhole bootstrap"). The last counts I three times, and I dominates if probes rarely agree, so I is solved from
    the three variances. To it comes the variance between pools of support patients (`pool_variance`). Resampling k
    patients of a class underestimates their variance by (k - 1)/k, and a variance from few patients or draws is itself
    uncertain: hence Student's t, with Satterthwaite's degrees of freedom.
    """
    value = float(scores.both[0])
    both, patients = (values[1:][np.isfinite(values[1:])] for values in (scores.both, scores.patients))
    undefined = Estimate(value, *(float("nan"),) * 4)
    if not np.isfinite(value) or min(len(both), len(patients)) < 2 or scores.rarer < 2 or not both.var():
        return undefined
    number, k = len(scores.draws), scores.rarer
    of_patients = float(patients.var(ddof=1)) * k / (k - 1)
    of_draws = interaction = 0.0
    if number > 1:  # a single draw does not show how draws vary; its interval is over patients alone
        of_draws = float(scores.draws.var(ddof=1)) / number
        interaction = both.var(ddof=1) - patients.var(ddof=1) - of_draws * (number - 1) / number
    variance = max(of_patients + of_draws - interaction, of_patients, of_draws)
    of_pool = pool_variance(scores)
    uncertain = of_patients**2 / (k - 1) + ((of_draws + of_pool) ** 2 / (number - 1) if number > 1 else 0.0)
    error, freedom = math.sqrt(variance + of_pool), (variance + of_pool) ** 2 / uncertain
    half = float(student.ppf(0.975, freedom)) * error
    return Estimate(value, value - half, value + half, error, freedom)


def pool_variance(scores: Scores) -> float:
    """Estimate how much the mean over draws varies between pools of support patients; 0 if the supports are unknown.

    All draws are from one pool, so their own variance does not show it. But two draws differ the less, the more
    patients they share: half their squared difference is the variance of a draw less v for each patient shared. Its
    slope over all pairs estimates v, and the mean over draws of other pools varies by v times the mean number shared.
    In a cross-validation the slope is that of pairs of the same fold, and the mean that of all pairs, since pools of
    different folds have patients in common. Draws of a share of the pool overlap by nearly the same number, so there is
    no slope: but they vary by (1 - share) of what draws of separate pools would, and their mean by `share` of it.
    """
    if scores.supports is None or len(scores.draws) < 3:
        return 0.0
    if share := scores.supports.share:
        return share / (1 - share) * float(scores.draws.var(ddof=1))
    shared = scores.supports.shared
    first, second = np.triu_indices(len(scores.draws), 1)
    apart = (scores.draws[first] - scores.draws[second]) ** 2 / 2
    folds = np.zeros(len(scores.draws), np.int64) if scores.supports.folds is None else scores.supports.folds
    product = spread = 0.0
    for fold in np.unique(folds):
        pairs = (folds[first] == fold) & (folds[second] == fold)
        centred = shared[pairs] - shared[pairs].mean()
        product += float(centred @ (apart[pairs] - apart[pairs].mean()))
        spread += float(centred @ centred)
    if not spread or not np.isfinite(apart).all():
        return 0.0
    return max(0.0, -product / spread) * float(shared.mean())


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

    seeds: their number. With one seed the interval is over draws and patients alone, and there is no p value (NaN):
    another training could give another result.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def over_seeds(seeds: Sequence[Scores]) -> Effect:
    """Average the scores of several training seeds, mostly paired differences, with an interval and a p value.

    The variance is that of the seeds' mean over the draws and patients that they share, plus the variance between seeds
    over their number. Both are uncertain, so the interval uses Student's t with Satterthwaite's degrees of freedom. A
    seed's own dependence on draws and patients enters both terms: the interval is conservative.
    """
    within = estimate(mean_of(seeds))
    if len(seeds) == 1:
        return Effect(within.mean, within.low, within.high, float("nan"), 1)
    between = float(np.var([float(scores.both[0]) for scores in seeds], ddof=1)) / len(seeds)
    error = math.sqrt(within.error**2 + between)
    if not error > 0:
        return Effect(within.mean, *(float("nan"),) * 3, len(seeds))
    freedom = error**4 / (within.error**4 / within.freedom + between**2 / (len(seeds) - 1))
    half = float(student.ppf(0.975, freedom)) * error
    p = 2 * float(student.sf(abs(within.mean) / error, freedom))
    return Effect(within.mean, within.mean - half, within.mean + half, p, len(seeds))
