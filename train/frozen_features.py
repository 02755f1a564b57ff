"""What is done with frozen features wherever they are probed, while training and after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # [images, F]
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the nearest neighbours' weighted vote: Wu et al., 2018, and fixed


def standardise(features: Features, train: npt.NDArray[np.bool_]) -> Features:
    """Features [N, F] standardised by the rows `train` [N], whose labels are not looked at, and divided by √F.

    The division makes a vector's expected squared length 1, so that one strength of L2 means the same for encoders of
    any width F. Without it 20 examples in 512 dimensions are separated as if nothing held the weights back.
    """
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    standardised: Features = (features - mean) / np.maximum(std, 1e-6) / np.float32(np.sqrt(features.shape[1]))
    return standardised
