"""Metrics against scikit-learn; coverage of the intervals and size of the tests in simulations."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from probe.linear import probe_draws
from probe.metrics import BINS
from probe.statistics import (
    REPLICATES,
    Scores,
    Supports,
    estimate,
    holm,
    join,
    mean_of,
    mean_over_folds,
    over_seeds,
    pool_variance,
    resample,
    score,
)

Floats = npt.NDArray[np.float64]


def by_scikit_learn(decision: Floats, labels: npt.NDArray[np.int64], weights: Floats) -> list[float]:
    """METRICS by scikit-learn, with each image taken by its weight."""
    decision, labels, weights = decision[weights > 0], labels[weights > 0], weights[weights > 0]
    probability = 1 / (1 + np.exp(-decision))
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    gaps = [abs((weights * (probability - labels))[bins == bin].sum()) for bin in np.unique(bins)]
    return [
        float(sklearn_metrics.accuracy_score(labels, decision > 0, sample_weight=weights)),
        float(sklearn_metrics.balanced_accuracy_score(labels, decision > 0, sample_weight=weights)),
        float(sklearn_metrics.roc_auc_score(labels, decision, sample_weight=weights)),
        float(sklearn_metrics.average_precision_score(labels, decision, sample_weight=weights)),
        float(np.sum(gaps) / weights.sum()),
    ]


def balance(weights: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Give both classes the same weight in all."""
    return weights / np.where(labels == 1, weights[labels == 1].sum(), weights[labels == 0].sum())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_metrics_of_each_replicate_equal_scikit_learn(ties: bool, balanced: bool) -> None:
    rng = np.random.default_rng(0)
    decisions = rng.normal(size=(3, 80)) * 2
    if ties:
        decisions = decisions.round()
    labels, patients = rng.integers(0, 2, 80), rng.integers(0, 30, 80)
    members = rng.random((3, 80)) < 0.6 if balanced else None
    resamples = resample(3, 30, replicates=20, seed=1)
    found = score(decisions, labels, patients, resamples, members)
    for replicate in range(21):
        weights = resamples.patients[replicate][patients].astype(float)
        by_draw = [by_scikit_learn(decisions[draw], labels, weights if members is None else
                                   balance(weights * members[draw], labels)) for draw in range(3)]  # fmt: skip
        expected = (resamples.draws[replicate][:, None] * by_draw).sum(axis=0) / 3
        assert found.both[replicate] == pytest.approx(expected, abs=1e-9)
        assert found.patients[replicate] == pytest.approx(np.mean(by_draw, axis=0), abs=1e-9)
        if replicate == 0:
            assert found.draws == pytest.approx(np.array(by_draw), abs=1e-9)


def test_undefined_metrics_are_nan() -> None:
    decisions, patients = np.random.default_rng(0).normal(size=(2, 10)), np.arange(10)
    for label in (0, 1):
        found = score(decisions, np.full(10, label), patients, resample(2, 10, replicates=5))
        for metric in ("balanced_accuracy", "auroc", "auprc"):
            undefined = found.of(metric)
            assert np.isnan(undefined.both).all(), metric
            assert np.isnan(estimate(undefined).mean) and np.isnan(estimate(undefined).p)
        assert np.isfinite(found.of("accuracy").both).all()


def test_replicates_without_one_class_are_excluded_from_the_interval() -> None:
    labels = np.array([1] * 2 + [0] * 8)
    resamples = resample(1, 10, replicates=200)
    found = score(np.random.default_rng(0).normal(size=(1, 10)), labels, np.arange(10), resamples).of("auroc")
    missing = (resamples.patients[:, :2].sum(axis=1) == 0).sum()
    assert np.isnan(found.both).sum() == missing > 10
    assert np.isfinite([estimate(found).low, estimate(found).high]).all()


def test_resamples_follow_the_seed() -> None:
    first, again, other = resample(5, 20, seed=0), resample(5, 20, seed=0), resample(5, 20, seed=1)
    assert np.array_equal(first.draws, again.draws) and np.array_equal(first.patients, again.patients)
    assert not np.array_equal(first.patients, other.patients)
    assert first.draws.shape == (REPLICATES + 1, 5) and (first.draws.sum(axis=1) == 5).all()
    assert (first.patients.sum(axis=1) == 20).all() and (first.patients[0] == 1).all() and (first.draws[0] == 1).all()


FEATURES, SHOTS, DRAWS, PATIENTS = 8, 10, 20, 150


def simulate(rng: np.random.Generator, effect: float) -> tuple[Scores, Floats]:
    """Probe simulated patients with two correlated images each: (AUROC of each replicate, weights of each draw)."""
    shift = np.zeros(FEATURES)
    shift[:2] = effect

    def images(number: int) -> tuple[npt.NDArray[np.int64], Floats]:
        labels = np.repeat(rng.integers(0, 2, number), 2)
        own = np.repeat(rng.normal(size=(number, FEATURES)), 2, axis=0)
        return labels, (own + rng.normal(size=own.shape)) / np.sqrt(2) + labels[:, None] * shift

    labels, test = images(PATIENTS)
    support = rng.normal(size=(DRAWS, 2 * SHOTS, FEATURES))
    support[:, :SHOTS] += shift
    features = np.concatenate([support.reshape(-1, FEATURES), test]).astype(np.float32)
    rows = np.arange(DRAWS * 2 * SHOTS).reshape(DRAWS, -1)
    classes = np.tile(np.repeat([1, 0], SHOTS), (DRAWS, 1))
    decisions = probe_draws(features, rows, classes, np.arange(rows.size, len(features)))
    # A weight is the decision value of its axis minus that of the origin.
    axes = np.concatenate([features[: rows.size], np.eye(FEATURES + 1, FEATURES, dtype=np.float32)])
    weights = probe_draws(axes, rows, classes, np.arange(rows.size, len(axes)))
    resamples = resample(DRAWS, PATIENTS, replicates=400, seed=int(rng.integers(2**31)))
    found = score(decisions, labels, np.repeat(np.arange(PATIENTS), 2), resamples).of("auroc")
    return found, weights[:, :-1] - weights[:, -1:]


@pytest.mark.long
def test_interval_covers_the_true_auroc_in_95_percent_of_simulations() -> None:
    """The true AUROC of a direction w between two normal classes is Φ(w·shift / √2 |w|), averaged over draws."""
    rng, effect = np.random.default_rng(0), 0.5
    shift = np.zeros(FEATURES)
    shift[:2] = effect
    intervals, aurocs = [], []
    for _ in range(400):
        found, weights = simulate(rng, effect)
        intervals.append(estimate(found))
        aurocs.append(stats.norm.cdf(weights @ shift / np.sqrt(2) / np.linalg.norm(weights, axis=1)).mean())
    truth = float(np.mean(aurocs))
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    print(f"\nthe 95 % interval covers {truth:.4f} in {covered:.1%} of 400")
    assert 0.93 <= covered <= 0.97


@pytest.mark.long
def test_paired_difference_on_noise_is_rejected_in_at_most_7_percent() -> None:
    rng = np.random.default_rng(1)
    labels, patients = np.repeat(rng.integers(0, 2, PATIENTS), 2), np.repeat(np.arange(PATIENTS), 2)
    rejected = 0
    for number in range(400):
        rows = np.arange(DRAWS * 2 * SHOTS).reshape(DRAWS, -1)
        classes = np.tile(np.repeat([1, 0], SHOTS), (DRAWS, 1))
        resamples = resample(DRAWS, PATIENTS, replicates=400, seed=number)
        first, second = (
            score(probe_draws(features, rows, classes, rows.size + np.arange(len(labels))), labels, patients, resamples)
            for features in rng.normal(size=(2, rows.size + 2 * PATIENTS, FEATURES)).astype(np.float32)
        )
        rejected += estimate((first - second).of("auroc")).p < 0.05
    print(f"\nrejected {rejected / 400:.1%} of 400")
    assert rejected / 400 <= 0.07


def test_true_difference_is_significant() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    signal, noise = (labels * effect + rng.normal(size=(20, 200)) for effect in (1.0, 0.0))
    resamples = resample(20, 200)
    difference = score(signal, labels, np.arange(200), resamples) - score(noise, labels, np.arange(200), resamples)
    assert estimate(difference.of("auroc")).low > 0.1
    assert estimate(difference.of("auroc")).p < 1e-6


def test_holm_equals_values_by_hand() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert holm([0.01, 0.04, float("nan"), 0.03]) == pytest.approx([0.03, 0.06, float("nan"), 0.06], nan_ok=True)
        assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_interval_over_three_seeds_covers_the_truth() -> None:
    """Simulated trainings with a variance between seeds; three seeds, as in the recipe study."""
    rng, truth, inside, rejected, trials = np.random.default_rng(0), 0.03, 0, 0, 400
    draws, patients, seeds, replicates = 20, 60, 3, 200
    resamples = resample(draws, patients, replicates=replicates, seed=1)
    for _ in range(trials):
        shared = rng.normal(0, 0.05, draws)[:, None] + rng.normal(0, 0.15, patients)  # [D, P]
        found = []
        for _ in range(seeds):
            values = truth + shared + rng.normal(0, 0.03) + rng.normal(0, 0.2, (draws, patients))
            weights = resamples.patients / resamples.patients.sum(axis=1, keepdims=True)
            by_draw = weights @ values.T  # [R, D]
            counts = resamples.draws / draws
            found.append(Scores((by_draw * counts).sum(axis=1), by_draw.mean(axis=1), values.mean(axis=1), patients))
        effect = over_seeds(found)
        inside += effect.low <= truth <= effect.high
        null = over_seeds([replace(seed, both=seed.both - truth, patients=seed.patients - truth,
                                   draws=seed.draws - truth) for seed in found])  # fmt: skip
        rejected += null.p < 0.05
    assert 0.93 <= inside / trials <= 0.995 and rejected / trials <= 0.07, (inside, rejected)


def test_one_seed_has_an_interval_but_no_p_value() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(0, 0.02, 2001), rng.normal(0, 0.015, 2001), rng.normal(0, 0.05, 50), 30)
    effect, alone = over_seeds([scores]), estimate(scores)
    assert effect[:3] == (alone.mean, alone.low, alone.high) and np.isnan(effect.p) and effect.seeds == 1
    equal = over_seeds([scores, scores])  # no variance between seeds
    assert equal[:3] == pytest.approx(effect[:3]) and equal.p == pytest.approx(alone.p)


def test_interval_over_seeds_equals_satterthwaite_by_hand() -> None:
    rng = np.random.default_rng(0)
    sizes = ((0.02, 2001), (0.015, 2001), (0.05, 50))  # std and number of `both`, `patients` and `draws`
    seeds = [Scores(*(shift + rng.normal(0, *size) for size in sizes), 30) for shift in (0.0, 0.02, 0.07)]
    effect, within = over_seeds(seeds), estimate(mean_of(seeds))
    between = np.var([scores.both[0] for scores in seeds], ddof=1) / 3
    error = (within.error**2 + between) ** 0.5
    freedom = error**4 / (within.error**4 / within.freedom + between**2 / 2)
    assert effect.high - effect.low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * error)
    assert effect.p == pytest.approx(2 * stats.t.sf(abs(effect.mean) / error, freedom))


def test_estimate_equals_its_components_by_hand() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(0.6, 0.03, 2001), rng.normal(0.6, 0.025, 2001), rng.normal(0.6, 0.08, 40), 12)
    of_patients, of_draws = np.var(scores.patients[1:], ddof=1), np.var(scores.draws, ddof=1) / 40
    interaction = np.var(scores.both[1:], ddof=1) - of_patients - of_draws * 39 / 40
    of_patients *= 12 / 11
    variance = of_patients + of_draws - interaction
    freedom = variance**2 / (of_patients**2 / 11 + of_draws**2 / 39)
    found = estimate(scores)
    assert (found.error, found.freedom) == pytest.approx((variance**0.5, freedom))
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((scores.both[0], scores.both[0] - half,
                                                                 scores.both[0] + half))  # fmt: skip
    at_the_end = replace(scores, both=scores.both - found.low, patients=scores.patients - found.low,
                         draws=scores.draws - found.low)  # fmt: skip
    assert estimate(at_the_end).p == pytest.approx(0.05)  # the interval and the p value agree


def test_few_patients_of_a_class_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(0, 0.02, 2001), rng.normal(0, 0.02, 2001), rng.normal(0, 0.01, 50), 1000)
    widths = [found.high - found.low for found in (estimate(replace(scores, rarer=k)) for k in (1000, 20, 5))]
    assert widths[0] < widths[1] < widths[2] and np.isnan(estimate(replace(scores, rarer=1)).low)


def test_pool_variance_equals_a_regression_on_shared_patients() -> None:
    rng = np.random.default_rng(0)
    patients = np.array([rng.choice(25, 6, replace=False) for _ in range(15)])
    effects = rng.normal(0, 0.03, 25)
    draws = 0.6 + effects[patients].sum(axis=1) + rng.normal(0, 0.01, 15)
    scores = Scores(np.array([draws.mean()]), np.array([draws.mean()]), draws, 50, Supports(patients * 7))
    shared, apart = [], []
    for d in range(15):
        for e in range(d):
            shared.append(len(set(patients[d]) & set(patients[e])))
            apart.append((draws[d] - draws[e]) ** 2 / 2)
    slope = np.polyfit(shared, apart, 1)[0]
    assert slope < 0 and pool_variance(scores) == pytest.approx(-slope * np.mean(shared))
    assert pool_variance(replace(scores, supports=None)) == 0
    separate = Supports(np.arange(90).reshape(15, 6))  # no two draws share a patient
    assert pool_variance(replace(scores, supports=separate)) == 0
    halves = [replace(scores, draws=draws[part], supports=Supports(patients[part] * 7))
              for part in (slice(0, 8), slice(8, 15))]  # fmt: skip
    assert pool_variance(join(halves)) == pytest.approx(pool_variance(scores))
    assert pool_variance(mean_of([scores, scores])) == pytest.approx(pool_variance(scores))


def simulate_pool(rng: np.random.Generator, positive: int, tested: int) -> Scores:
    """Scores whose draws come from one pool of few positive patients, and are tested on few patients; their truth is 0.

    A draw's score is the sum of its patients' effects, its own, those of the test patients, and their interaction.
    """
    draws, shots = 100, 10
    support = np.array([rng.choice(positive, shots, replace=False) for _ in range(draws)])
    of_draw = rng.normal(0, 0.015, positive)[support].sum(axis=1) + rng.normal(0, 0.03, draws)
    values = of_draw[:, None] + rng.normal(0, 0.15, tested) + rng.normal(0, 0.2, (draws, tested))
    resamples = resample(draws, tested, replicates=300, seed=int(rng.integers(2**31)))
    by_draw = (resamples.patients / tested) @ values.T  # [R, D]
    return Scores((by_draw * resamples.draws / draws).sum(axis=1), by_draw.mean(axis=1), values.mean(axis=1), tested,
                  Supports(support))  # fmt: skip


@pytest.mark.parametrize(("positive", "tested"), [(45, 100), (20, 60), (200, 12)])
def test_interval_covers_the_truth_of_other_pools_and_of_other_patients(positive: int, tested: int) -> None:
    rng, trials = np.random.default_rng(0), 300
    covered = of_this_pool = rejected = 0
    for _ in range(trials):
        scores = simulate_pool(rng, positive, tested)
        found, without = estimate(scores), estimate(replace(scores, supports=None))
        covered += found.low <= 0 <= found.high
        of_this_pool += without.low <= 0 <= without.high
        rejected += found.p < 0.05
    print(f"{positive} positive patients in the pool, {tested} tested: {covered / trials:.1%} covered, "
          f"{of_this_pool / trials:.1%} without the pool")  # fmt: skip
    assert 0.92 <= covered / trials <= 0.985 and rejected == trials - covered
    assert positive > 45 or of_this_pool / trials < 0.9


def test_mean_over_folds_keeps_the_draws_of_each_fold_apart() -> None:
    rng = np.random.default_rng(0)
    folds = [Scores(rng.normal(mean, 0.02, 61), rng.normal(mean, 0.02, 61), rng.normal(mean, 0.03, 20), 12,
                    Supports(rng.integers(0, 40, (20, 6)))) for mean in (0.5, 0.6, 0.7)]  # fmt: skip
    joint = mean_over_folds(folds)
    assert joint.both == pytest.approx(np.mean([fold.both for fold in folds], axis=0)) and joint.rarer == 36
    assert joint.draws.mean() == pytest.approx(np.mean([fold.draws.mean() for fold in folds]))
    assert joint.draws.var() == pytest.approx(np.mean([fold.draws.var() for fold in folds]))  # none between folds
    assert joint.supports is not None and joint.supports.folds is not None
    assert joint.supports.folds.tolist() == [*[0] * 20, *[1] * 20, *[2] * 20]
    twice = mean_of([joint, joint])
    assert twice.supports is not None and np.array_equal(twice.supports.folds, joint.supports.folds)  # type: ignore[arg-type]
    assert pool_variance(twice) == pytest.approx(pool_variance(joint))


def test_pool_variance_of_folds_is_regressed_within_folds() -> None:
    """Every patient has an effect; each fold has another constant, which is no effect of patients."""
    rng = np.random.default_rng(0)
    effects, folds = rng.normal(0, 0.03, 60), []
    for fold in range(4):
        pool = np.flatnonzero(np.arange(60) % 4 != fold)
        patients = np.array([rng.choice(pool, 10, replace=False) for _ in range(50)])
        draws = 0.6 + 0.1 * fold + effects[patients].sum(axis=1) + rng.normal(0, 0.02, 50)
        folds.append(Scores(np.full(3, draws.mean()), np.full(3, draws.mean()), draws, 15, Supports(patients)))
    counts = np.concatenate([np.eye(60)[fold.supports.patients].sum(axis=1) for fold in folds])  # type: ignore[union-attr]
    expected = effects.var() * (counts.mean(axis=0) ** 2).sum()
    found = pool_variance(mean_over_folds(folds))
    assert found == pytest.approx(expected, rel=0.3)
    product = spread = 0.0
    for fold in folds:
        pairs = np.triu_indices(50, 1)
        shared = fold.supports.shared - fold.supports.shared.mean()  # type: ignore[union-attr]
        apart = ((fold.draws[:, None] - fold.draws) ** 2 / 2)[pairs]
        product, spread = product + shared @ (apart - apart.mean()), spread + shared @ shared
    products = (counts @ counts.T)[np.triu_indices(200, 1)]
    assert found == pytest.approx(-product / spread * products.mean())


def simulate_cross_fitting(rng: np.random.Generator) -> tuple[Scores, Scores]:
    """Two encoders on 200 patients, 45 of them positive, in five folds with 30 draws of 10 labels a class."""
    labels = rng.permutation(np.arange(200) < 45).astype(int)
    folds = np.empty(200, int)
    folds[np.argsort(labels, kind="stable")] = np.arange(200) % 5
    common, signal = rng.normal(size=(200, 12)), np.r_[np.ones(4), np.zeros(8)]
    features = [np.sqrt(0.5) * (common + rng.normal(size=(200, 12))) + labels[:, None] * effect * signal
                for effect in SIGNALS]  # fmt: skip
    scores: list[list[Scores]] = [[], []]
    for fold in range(5):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        classes = [train[labels[train] == label] for label in (1, 0)]
        supports = np.array([np.concatenate([rng.choice(rows, 10, replace=False) for rows in classes])
                             for _ in range(30)])  # fmt: skip
        resamples = resample(30, len(test), replicates=300, seed=int(rng.integers(2**31)))
        for encoder, own in zip(features, scores, strict=True):
            weights = encoder[supports[:, :10]].mean(axis=1) - encoder[supports[:, 10:]].mean(axis=1)
            own.append(score(weights @ encoder[test].T, labels[test], np.arange(len(test)), resamples,
                             supports=supports).of("auroc"))  # fmt: skip
    return mean_over_folds(scores[0]), mean_over_folds(scores[1])


SIGNALS = (0.35, 0.45)


def expected_auroc(rng: np.random.Generator, effect: float) -> float:
    """The AUROC of such an encoder, averaged over support sets of other patients."""
    weights = rng.normal(size=(200_000, 12)) * np.sqrt(2 / 10)
    weights[:, :4] += effect
    margins = weights[:, :4].sum(axis=1) * effect / np.linalg.norm(weights, axis=1)
    return float(stats.norm.cdf(margins / np.sqrt(2)).mean())


def test_interval_of_cross_fitting_covers_the_truth_of_other_patients() -> None:
    rng, trials = np.random.default_rng(0), 100
    truth = [expected_auroc(rng, effect) for effect in SIGNALS]
    covered, without = np.zeros(3), 0
    for _ in range(trials):
        one, other = simulate_cross_fitting(rng)
        pairs = [(one, truth[0]), (other, truth[1]), (other - one, truth[1] - truth[0])]
        covered += [found.low <= value <= found.high for scores, value in pairs for found in (estimate(scores),)]
        alone = estimate(replace(one, supports=None))
        without += alone.low <= truth[0] <= alone.high
    print(f"cross-fitting: {covered / trials} covered, {without / trials:.0%} without the pools")
    assert (covered / trials >= 0.9).all() and without / trials < 0.87


def test_draws_of_a_share_of_the_pool_have_the_variance_of_other_pools() -> None:
    """Means of a quarter of 200 patients, five times: their mean varies over pools as estimated, within a tenth."""
    rng, share, number = np.random.default_rng(0), 0.25, 5
    means, estimated = [], []
    for _ in range(3000):
        pool = rng.standard_normal(200)
        draws = np.array([rng.choice(pool, 50, replace=False).mean() for _ in range(number)])
        scores = Scores(np.zeros(3), np.zeros(3), draws, 50, Supports(np.arange(250).reshape(5, 50), share=share))
        means.append(draws.mean())
        estimated.append(draws.var(ddof=1) / number + pool_variance(scores))
    assert np.mean(estimated) == pytest.approx(np.var(means), rel=0.1)
    joint = mean_of([scores, scores])
    assert joint.supports is not None and joint.supports.share == share
