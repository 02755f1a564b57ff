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
class Draw:
    """Row numbers of a support set (shots positives, then shots negatives) and of a balanced test set."""

    support: Rows
    support_labels: Rows
    test: Rows
    test_labels: Rows


def make_draws(labels: pd.DataFrame, task: str, *, shots: int, draws: int, seed: int) -> list[Draw]:
    """Seeded draws for one task: support from split train, test from all other splits, so no patient is in both.

    labels: shard.read.read_labels of all splits. Uncertain (-1) and blank labels are left out. A support set has
    2·shots images of 2·shots different patients; the test set all images of the rarer class and as many of the
    other, drawn anew each time. Raises NotMeasurable.
    """
    numbers = np.arange(len(labels))
    train = (labels["split"] == "train").to_numpy()
    positive, negative = ((labels[task] == value).to_numpy() for value in (1, 0))
    test_positive, test_negative = numbers[positive & ~train], numbers[negative & ~train]
    smaller = min(len(test_positive), len(test_negative))
    if smaller < 2:
        raise NotMeasurable(f"{len(test_positive)} positive and {len(test_negative)} negative test images")
    result = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        support = _draw_support(labels, numbers[positive & train], numbers[negative & train], shots, rng)
        test = np.concatenate([rng.choice(rows, smaller, replace=False) for rows in (test_positive, test_negative)])
        result.append(Draw(support, np.repeat([1, 0], shots), test, np.repeat([1, 0], smaller)))
    return result


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
