"""The linear probe: logistic regression on frozen, standardised features, all draws of a task at once."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.fewshot import Rows
from train.frozen_features import Features

INVERSE_L2 = 1.0  # scikit-learn's C, on features whose expected squared length is 1; fixed: ten shots can't choose it
STEPS, CLOSE = 100, 1e-10  # Newton's, and where it stops: the largest change of a decision value
Floats = npt.NDArray[np.float64]


def probe_draws(
    features: Features, support: Rows, labels: Rows, test: Rows, *, inverse_l2: float = INVERSE_L2
) -> Floats:
    """Decision values [D, N] on the test rows of one logistic regression a draw, as scikit-learn's to convergence.

    features: [images, F], standardised; support, labels: [D, n], rows and their 0 or 1; test: [N] rows. The weights lie
    in the span of the n examples, so Newton's method (iteratively reweighted least squares) solves for n numbers and
    the intercept, whatever F. Raises ArithmeticError where it does not converge.
    """
    examples = features[support].astype(np.float64)  # [D, n, F]
    kernel = examples @ examples.transpose(0, 2, 1)
    draws, shots = support.shape
    system = np.zeros((draws, shots + 1, shots + 1))
    system[:, :-1, -1] = system[:, -1, :-1] = 1  # the intercept is not penalised: the coefficients sum to 0
    wanted, diagonal = np.zeros((draws, shots + 1)), np.arange(shots)
    decision = np.zeros((draws, shots))
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-decision))
        curvature = np.maximum(probability * (1 - probability), 1e-12)
        system[:, :-1, :-1] = kernel
        system[:, diagonal, diagonal] += 1 / (inverse_l2 * curvature)
        wanted[:, :-1] = decision + (labels - probability) / curvature
        solved = np.linalg.solve(system, wanted[..., None])[..., 0]
        coefficients, intercept = solved[:, :-1], solved[:, -1:]
        before, decision = decision, (kernel @ coefficients[..., None])[..., 0] + intercept
        if np.abs(decision - before).max() < CLOSE:
            weights = (coefficients[:, None] @ examples)[:, 0]  # [D, F]
            result: Floats = weights @ features[test].T.astype(np.float64) + intercept
            return result
    raise ArithmeticError(f"logistic regression did not converge in {STEPS} steps of Newton's at C = {inverse_l2:g}")


def fit_all(features: Features, rows: Rows, labels: Rows, test: Rows) -> Floats:
    """Decision values [1, N] on the test rows of one logistic regression on many examples [n], by scikit-learn.

    Raises ArithmeticError where it does not converge.
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
