"""The nearest-neighbour probe: no training, so nothing in it can be tuned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probe.fewshot import Rows
from train.frozen_features import NEIGHBOURS, TEMPERATURE, Features

BLOCK = 4096  # test images at a time


def knn_draws(features: Features, support: Rows, labels: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """Decision values [D, N] on the test rows: the log of how much the positives among the nearest outweigh the others.

    features: [images, F]; support, labels: [D, n], rows and their 0 or 1; test: [N] rows. Each of the NEIGHBOURS
    nearest examples by cosine votes with weight exp(cosine / TEMPERATURE); with fewer examples all do.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    decisions = np.empty((len(support), len(test)))
    for draw, (rows, classes) in enumerate(zip(support, labels, strict=True)):
        examples, positive = unit[rows].astype(np.float64), classes == 1
        for first in range(0, len(test), BLOCK):
            cosine = unit[test[first : first + BLOCK]].astype(np.float64) @ examples.T  # [block, n]
            if cosine.shape[1] > NEIGHBOURS:
                least = np.partition(cosine, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]
            else:
                least = np.full((len(cosine), 1), -2.0)
            # One vote of the faintest weight for either class: where all neighbours agree, the nearest still rank.
            votes = np.where(cosine >= least, np.exp((cosine - 1) / TEMPERATURE), 0.0)
            pro, con = (votes[:, chosen].sum(axis=1) + np.exp(-2 / TEMPERATURE) for chosen in (positive, ~positive))
            decisions[draw, first : first + BLOCK] = np.log(pro) - np.log(con)
    return decisions
