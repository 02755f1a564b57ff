"""Labels needed for an AUROC: exact on curves that are power laws, with intervals, and honest beyond the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from probe.labels_needed import FURTHEST, fit_power_law, labels_needed
from probe.statistics import Scores

SHOTS = (1, 5, 10, 50)


def scores_of(aurocs: np.ndarray) -> Scores:
    """Scores with these replicates [R]."""
    return Scores(aurocs, aurocs, aurocs[:1], 50)


def curve_of(ceiling: float, scale: float, exponent: float, noise: float = 0.0) -> dict[int, Scores]:
    """The AUROC of a law, with noise in all replicates but the first, which is the estimate."""
    rng = np.random.default_rng(0)
    noises = {shots: noise * rng.standard_normal(1000) * (np.arange(1000) > 0) for shots in SHOTS}
    return {shots: scores_of(ceiling - scale * shots**-exponent + noises[shots]) for shots in SHOTS}


@pytest.mark.parametrize(("ceiling", "scale", "exponent"), [(0.9, 0.3, 0.5), (0.75, 0.2, 1.0), (1.0, 0.4, 0.2)])
def test_exact_laws_are_found(ceiling: float, scale: float, exponent: float) -> None:
    target = ceiling - scale * 20**-exponent  # what 20 shots give
    needed = labels_needed(curve_of(ceiling, scale, exponent), target)
    assert needed is not None and needed.labels == pytest.approx(20, rel=0.02)
    assert needed.low == needed.high == needed.labels


def test_fit_is_that_of_a_general_optimizer() -> None:
    rng = np.random.default_rng(1)
    aurocs = 0.85 - 0.25 * np.asarray(SHOTS, float) ** -0.6 + 0.01 * rng.standard_normal((20, 4))
    law = fit_power_law(SHOTS, aurocs)
    for row, *found in zip(aurocs, *law, strict=True):
        def model(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
            return a - b * x**-c

        best, _ = curve_fit(model, SHOTS, row, p0=(0.8, 0.2, 0.5), bounds=([0, 0, 0.05], [1, 10, 3]))
        errors = [float(((row - model(np.asarray(SHOTS, float), *one)) ** 2).sum()) for one in (found, best)]
        assert errors[0] <= errors[1] + 1e-6


def test_interval_covers_the_truth_of_noisy_curves() -> None:
    """Of 200 curves with noise that their replicates share, about 95 % of the intervals contain the true number."""
    rng = np.random.default_rng(2)
    truth, inside = 20, 0
    target = 0.9 - 0.3 * truth**-0.5
    for _ in range(200):
        measured = {shots: 0.9 - 0.3 * shots**-0.5 + 0.01 * rng.standard_normal() for shots in SHOTS}
        curve = {shots: scores_of(value + 0.01 * rng.standard_normal(400) * (np.arange(400) > 0))
                 for shots, value in measured.items()}  # fmt: skip
        needed = labels_needed(curve, target)
        assert needed is not None
        inside += needed.low <= truth <= needed.high
    assert 180 <= inside <= 199


@pytest.mark.parametrize(("target", "labels"), [(0.8, math.inf), (0.45, 1.0)])
def test_what_is_outside_the_curve_is_said(target: float, labels: float) -> None:
    """A curve that ends at 0.75 does not reach 0.8; one that begins at 0.55 has 0.45 with the fewest shots."""
    needed = labels_needed(curve_of(0.75, 0.2, 0.5, noise=0.002), target)
    assert needed is not None and needed.labels == labels and needed.high == labels


def test_law_is_not_trusted_far_beyond_the_largest_number_of_shots() -> None:
    curve = curve_of(0.9, 0.3, 0.5)
    for times, reached in ((FURTHEST - 1, True), (FURTHEST + 1, False)):
        needed = labels_needed(curve, 0.9 - 0.3 * (times * SHOTS[-1]) ** -0.5)
        assert needed is not None and math.isfinite(needed.labels) == reached


def test_flat_or_falling_curves_reach_only_what_they_have() -> None:
    curve = {shots: scores_of(np.full(10, 0.6 - 0.001 * place)) for place, shots in enumerate(SHOTS)}
    for target, labels in ((0.7, math.inf), (0.55, 1.0)):
        needed = labels_needed(curve, target)
        assert needed is not None and needed.labels == labels


def test_three_numbers_of_shots_are_too_few() -> None:
    curve = curve_of(0.9, 0.3, 0.5)
    del curve[5]
    assert labels_needed(curve, 0.7) is None
