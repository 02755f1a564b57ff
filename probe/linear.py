"""The linear probe: logistic regression on frozen, standardised features, for all draws of a task at once."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.fewshot import Rows
from train.frozen_features import Features

INVERSE_L2 = 1.0  # scikit-learn's C, for features of expected squared length 1; fixed: ten shots can't tune it
STEPS, TOLERANCE = 100, 1e-10  # Newton iterations at most; largest change of any decision value at convergence
Floats = npt.NDArray[np.float64]


def probe_draws(
    features: Features, support: Rows, labels: Rows, test: Rows, *, inverse_l2: float = INVERSE_L2
) -> Floats:
    """Fit one logistic regression per draw and return its decision values [D, N], equal to scikit-learn's.

    features: [images, F], standardised. support, labels: [D, n], rows and their labels 0 or 1. test: [N] rows. The
    weights lie in the span of the n examples, so Newton's method (iteratively reweighted least squares) solves for n
    coefficients and the intercept, whatever F. Raises ArithmeticError if it does not converge.
    """
    examples = features[support].astype(np.float64)  # [D, n, F]
    kernel = examples @ examples.transpose(0, 2, 1)
    draws, shots = support.shape
    system = np.zeros((draws, shots + 1, shots + 1))
    system[:, :-1, -1] = system[:, -1, :-1] = 1  # the intercept is not penalised, so coefficients sum to 0
    target, diagonal = np.zeros((draws, shots + 1)), np.arange(shots)
    decision = np.zeros((draws, shots))
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-decision))
        curvature = np.maximum(probability * (1 - probability), 1e-12)
        system[:, :-1, :-1] = kernel
        system[:, diagonal, diagonal] += 1 / (inverse_l2 * curvature)
        target[:, :-1] = decision + (labels - probability) / curvature
        solved = np.linalg.solve(system, target[..., None])[..., 0]
        coefficients, intercept = solved[:, :-1], solved[:, -1:]
        previous, decision = decision, (kernel @ coefficients[..., None])[..., 0] + intercept
        if np.abs(decision - previous).max() < TOLERANCE:
            weights = (coefficients[:, None] @ examples)[:, 0]  # [D, F]
            result: Floats = weights @ features[test].T.astype(np.float64) + intercept
            return result
    raise ArithmeticError(f"logistic regression did not converge in {STEPS} Newton steps at C = {inverse_l2:g}")


def fit_all(features: Features, rows: Rows, labels: Rows, test: Rows) -> Floats:
    """Fit scikit-learn's logistic regression on many examples [n] and return its decision values [1, N].

    Raises ArithmeticError if it does not converge.
    """
    probe = LogisticRegression(C=INVERSE_L2, tol=1e-6, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            probe.fit(features[rows].astype(np.float64), labels)
        except ConvergenceWarning as reason:
            raise ArithmeticError(f"logistic regression on {len(rows)} examples: {reason}") from None
    decisions: Floats = probe.decision_function(features[test].astype(np.float64))[None]
    return decisions
