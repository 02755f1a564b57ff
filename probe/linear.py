"""The linear probe: logistic regression on frozen, standardised features, and its scores over draws."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probe.features import Features
from probe.fewshot import Draw

INVERSE_L2 = 1.0  # scikit-learn's C, on features whose expected squared length is 1; fixed: ten shots can't choose it


@dataclass(frozen=True)
class Scores:
    """Accuracy and AUROC of one encoder on one task, one value a draw."""

    accuracy: npt.NDArray[np.float64]
    auroc: npt.NDArray[np.float64]


def standardise(features: Features, train: npt.NDArray[np.bool_]) -> Features:
    """Features standardised by the training images, whose labels are not looked at, and divided by √F.

    The division makes a vector's expected squared length 1, so that one strength of L2 means the same for encoders of
    any width F. Without it 20 examples in 512 dimensions are separated as if nothing held the weights back.
    """
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    standardised: Features = (features - mean) / np.maximum(std, 1e-6) / np.float32(np.sqrt(features.shape[1]))
    return standardised


def probe_draws(features: Features, draws: list[Draw]) -> Scores:
    """Fit a probe on each draw's support set and score it on that draw's test set; features are standardised."""
    accuracy, auroc = [], []
    for draw in draws:
        probe = LogisticRegression(C=INVERSE_L2, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            probe.fit(features[draw.support], draw.support_labels)
        decision = probe.decision_function(features[draw.test])
        accuracy.append(float(((decision > 0) == draw.test_labels).mean()))
        auroc.append(float(roc_auc_score(draw.test_labels, decision)))
    return Scores(np.array(accuracy), np.array(auroc))


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """(mean, low, high): the mean over draws and its 95 % interval (Student's t); NaN bounds for a single draw."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
