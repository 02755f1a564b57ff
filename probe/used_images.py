"""The images that a report computes features of: those of its draws, test images, and some to standardise by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from probe.fewshot import Draws, Rows, shuffle_training_images

# Training images that features are standardised by; all if there are no more. docs/science.md has the measurement.
REFERENCE = 4096


class UsedImages(NamedTuple):
    """Rows of the labels table [n], ascending, and which of these images features are standardised by, a mask [n]."""

    rows: Rows
    reference: npt.NDArray[np.bool_]


def choose_images(labels: pd.DataFrame, drawn: Collection[Draws], seed: int) -> UsedImages:
    """Choose the images of all draws, the images outside split train, and a random sample of the training images."""
    reference = shuffle_training_images(labels, seed)[:REFERENCE]
    held_out = np.flatnonzero(labels["split"] != "train")
    of_draws = [rows.ravel() for draws in drawn for rows in (
        draws.positive, draws.negative, draws.train, *(rows for rows, _ in draws.fractions.values()))]  # fmt: skip
    rows = np.unique(np.concatenate([reference, held_out, *of_draws]))
    return UsedImages(rows, np.isin(rows, reference))


def renumber(draws: Draws, rows: Rows) -> Draws:
    """Number the images of draws by their place in `rows`, which has them all."""
    places = {name: np.searchsorted(rows, getattr(draws, name)) for name in ("positive", "negative", "test", "train")}
    fractions = {share: (np.searchsorted(rows, part), classes) for share, (part, classes) in draws.fractions.items()}
    return replace(draws, **places, fractions=fractions)
