"""Score images by frozen features, during training and after: standardised features and the nearest-neighbour vote."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Features = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # [images, F]
Labels = npt.NDArray[np.integer] | npt.NDArray[np.floating]  # 0 and 1
LEAST_STD = 1e-3  # of the median over features
NEIGHBOURS, TEMPERATURE = 20, 0.07  # as in Wu et al., 2018; fixed, never tuned
BLOCK = 4096  # queries scored at a time, which bounds the memory of the cosines


def standardise(features: Features, train: npt.NDArray[np.bool_]) -> Features:
    """Standardise features [N, F] by the mean and std of the rows `train` [N] (no labels used), and divide by √F.

    The division makes a vector's expected squared length 1, so that one L2 strength means the same for encoders of any
    width F. Without it, 20 examples in 512 dimensions are separable almost without penalty. A feature that is almost
    constant over the rows `train` (its std is below LEAST_STD of the median), such as that of a rarely active channel,
    becomes 0 in all rows: its scale is unknown, and where it is active it would outweigh all others.
    """
    known = features[train]
    mean, std = known.mean(axis=0), known.std(axis=0)
    active = np.ptp(known, axis=0) > 0
    enough = active & (std >= LEAST_STD * np.median(std[active])) if active.any() else active
    scale = np.where(enough, np.maximum(std, 1e-30), np.inf) * np.sqrt(features.shape[1])
    standardised: Features = (features - mean) / scale.astype(np.float32)
    return standardised


def knn_vote(
    examples: Features, labels: Labels, queries: Features, *, log_odds: bool = False
) -> npt.NDArray[np.floating]:
    """Score queries [m, F] by the labels [n] of their NEIGHBOURS nearest examples [n, F]; with fewer examples, of all.

    A neighbour votes with weight exp(cosine / TEMPERATURE). The score [m] is the share of positive votes, in float32;
    with log_odds the log of positive over negative votes, in float64, which ranks unanimous neighbourhoods too.
    Source: Wu et al., 2018.
    """
    vote = _log_odds if log_odds else _positive_share
    blocks = range(0, len(queries), BLOCK)
    return np.concatenate([vote(examples, labels == 1, queries[first : first + BLOCK]) for first in blocks])


def _positive_share(examples: Features, positive: npt.NDArray[np.bool_], queries: Features) -> npt.NDArray[np.floating]:
    cosine = F.normalize(torch.from_numpy(queries), dim=1) @ F.normalize(torch.from_numpy(examples), dim=1).T
    nearest, which = cosine.topk(min(NEIGHBOURS, len(examples)), dim=1)
    weight = torch.softmax(nearest / TEMPERATURE, dim=1)
    share: npt.NDArray[np.float32] = (weight * torch.from_numpy(positive.astype(np.float32))[which]).sum(1).numpy()
    return share


def _log_odds(examples: Features, positive: npt.NDArray[np.bool_], queries: Features) -> npt.NDArray[np.floating]:
    cosine = _unit(queries) @ _unit(examples).T
    if len(examples) > NEIGHBOURS:
        least = np.partition(cosine, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]
    else:
        least = np.full((len(cosine), 1), -2.0)
    weight = np.where(cosine >= least, np.exp((cosine - 1) / TEMPERATURE), 0.0)
    # Each class gets one extra vote of the smallest possible weight, that of cosine -1. It keeps the logarithm finite
    # and ranks neighbourhoods that agree.
    least_vote = np.exp(-2 / TEMPERATURE)
    for_positive, for_negative = (weight[:, chosen].sum(axis=1) + least_vote for chosen in (positive, ~positive))
    odds: npt.NDArray[np.float64] = np.log(for_positive) - np.log(for_negative)
    return odds


def _unit(features: Features) -> npt.NDArray[np.float64]:
    """The features at length 1: divided in float32, returned in float64."""
    unit: npt.NDArray[np.float64] = (
        features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)).astype(np.float64)  # fmt: skip
    return unit
