"""The nearest-neighbour probe of every draw; it trains nothing, so nothing in it can be tuned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probe.fewshot import Rows
from train.frozen_features import Features, knn_vote


def knn_draws(features: Features, support: Rows, labels: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """Decision values [D, N] on the test rows: the log odds of the nearest neighbours' vote (see `knn_vote`).

    features: [images, F]; support, labels: [D, n], rows and their labels 0 or 1; test: [N] rows.
    """
    tested = features[test]
    votes = [knn_vote(features[rows], classes, tested, log_odds=True)
             for rows, classes in zip(support, labels, strict=True)]  # fmt: skip
    return np.array(votes, np.float64)
