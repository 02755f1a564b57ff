"""Draws: which images a probe learns from and which it is tested on; made once, shared by every encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Rows = npt.NDArray[np.int64]


class NotMeasurable(Exception):
    """A task that has too few examples; its text says of what, and how many there are."""


@dataclass(frozen=True)
class Draws:
    """The draws of one task, by row numbers: what each of D probes learns from, and what all are tested on.

    support: [D, 2·shots], positives first; labels: theirs. test: [N], every labelled test image; test_labels: theirs;
    balanced: [D, N], the images of each draw's balanced test set.
    """

    support: Rows
    labels: Rows
    test: Rows
    test_labels: Rows
    balanced: npt.NDArray[np.bool_]


def make_draws(labels: pd.DataFrame, task: str, *, shots: int, draws: int, seed: int) -> Draws:
    """Seeded draws for one task: support from split train, test from all other splits, so no patient is in both.

    labels: shard.read.read_labels of all splits. Uncertain (-1) and blank labels are left out. A support set has
    2·shots images of 2·shots different patients; a balanced test set all images of the rarer class and as many of the
    other, drawn anew each time. Raises NotMeasurable.
    """
    numbers = np.arange(len(labels))
    train = (labels["split"] == "train").to_numpy()
    positive, negative = ((labels[task] == value).to_numpy() for value in (1, 0))
    test = numbers[(positive | negative) & ~train]
    test_labels = positive[test].astype(np.int64)
    classes = [np.flatnonzero(test_labels == value) for value in (1, 0)]
    smaller = min(map(len, classes))
    if smaller < 2:
        raise NotMeasurable(f"{len(classes[0])} positive and {len(classes[1])} negative test images")
    support, balanced = np.empty((draws, 2 * shots), np.int64), np.zeros((draws, len(test)), bool)
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        support[draw] = _draw_support(labels, numbers[positive & train], numbers[negative & train], shots, rng)
        for rows in classes:
            balanced[draw, rng.choice(rows, smaller, replace=False)] = True
    return Draws(support, np.tile(np.repeat([1, 0], shots), (draws, 1)), test, test_labels, balanced)


def _draw_support(labels: pd.DataFrame, positive: Rows, negative: Rows, shots: int, rng: np.random.Generator) -> Rows:
    """shots positives, then shots negatives, no patient twice: one random image of each drawn patient."""
    patients = labels["patient"].to_numpy()
    chosen: list[int] = []
    for name, rows in (("positive", positive), ("negative", negative)):
        fresh = rng.permutation(rows[~np.isin(patients[rows], patients[chosen])])
        _, first = np.unique(patients[fresh], return_index=True)
        if len(first) < shots:
            raise NotMeasurable(f"{len(first)} patients with {name} training images, {shots} wanted")
        chosen += fresh[rng.choice(first, shots, replace=False)].tolist()
    return np.array(chosen)
