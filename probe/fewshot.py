"""Draws: which images a probe learns from and which it is tested on; made once, shared by all encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Shots = int | Literal["all"]  # labelled examples a class: so many, or all that there are
Rows = npt.NDArray[np.int64]
Uncertain = Literal["exclude", "positive", "negative"]
Blank = Literal["exclude", "negative"]


class NotMeasurable(Exception):
    """A task that has too few examples; its text says of what, and how many there are."""


@dataclass(frozen=True)
class Draws:
    """The draws of one task, by row numbers: what each of D probes learns from, and what all are tested on.

    positive, negative: [D, most], in the order in which they are taken; test: [N], every labelled test image;
    test_labels: theirs; balanced: [D, N], the images of each draw's balanced test set; train: every labelled training
    image; train_labels: theirs.
    """

    positive: Rows
    negative: Rows
    test: Rows
    test_labels: Rows
    balanced: npt.NDArray[np.bool_]
    train: Rows
    train_labels: Rows

    def support(self, shots: Shots) -> tuple[Rows, Rows]:
        """The k-shot support sets, [D, 2·shots], positives first, and their labels [D, 2·shots]. Raises NotMeasurable.

        Of "all" there is one set, [1, n]: every labelled training image, however many are positive.
        """
        if shots == "all":
            if min(self.train_labels.sum(), (1 - self.train_labels).sum()) < 1:
                raise NotMeasurable(f"{self.train_labels.sum()} of {len(self.train)} labelled training images positive")
            return self.train[None], self.train_labels[None]
        for name, rows in (("positive", self.positive), ("negative", self.negative)):
            if rows.shape[1] < shots:
                raise NotMeasurable(f"{rows.shape[1]} patients with {name} training images, {shots} wanted")
        rows = np.concatenate([self.positive[:, :shots], self.negative[:, :shots]], axis=1)
        return rows, np.tile(np.repeat([1, 0], shots), (len(rows), 1))


def resolve_labels(labels: pd.DataFrame, findings: Sequence[str], uncertain: Uncertain, blank: Blank) -> pd.DataFrame:
    """The findings as 1, 0 or NaN (left out): what becomes of the uncertain (-1) and of those not mentioned (NaN)."""
    resolved: pd.DataFrame = labels.copy()
    for finding in findings:
        values = labels[finding].fillna(0.0) if blank == "negative" else labels[finding]
        resolved[finding] = values.replace(-1.0, {"exclude": np.nan, "positive": 1.0, "negative": 0.0}[uncertain])
    return resolved


def make_draws(labels: pd.DataFrame, task: str, *, shots: int, draws: int, seed: int) -> Draws:
    """Seeded draws for one task: support from split train, test from all other splits, so no patient is in both.

    labels: shard.read.read_labels of all splits, resolved. Only 1 and 0 count. A support set has up to 2·shots images,
    each of another patient; a balanced test set all images of the rarer class and as many of the other, drawn anew
    each time. Raises NotMeasurable where it can't be tested.
    """
    numbers = np.arange(len(labels))
    train = (labels["split"] == "train").to_numpy()
    positive, negative = ((labels[task] == value).to_numpy() for value in (1, 0))
    test, test_labels, classes = test_images(labels, task)
    smaller = min(map(len, classes))
    balanced, chosen = np.zeros((draws, len(test)), bool), []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        chosen.append(_draw_support(labels, numbers[positive & train], numbers[negative & train], shots, rng))
        for rows in classes:
            balanced[draw, rng.choice(rows, smaller, replace=False)] = True
    positives, negatives = (even(rows) for rows in zip(*chosen, strict=True))
    return Draws(positives, negatives, test, test_labels, balanced, *train_images(labels, task))


def test_images(labels: pd.DataFrame, task: str) -> tuple[Rows, Rows, list[Rows]]:
    """Rows of the labelled test images, their labels, and where among them those of each class stand."""
    held_out = (labels["split"] != "train").to_numpy() & labels[task].isin([0, 1]).to_numpy()
    test = np.flatnonzero(held_out)
    test_labels = labels[task].to_numpy()[test].astype(np.int64)
    classes = [np.flatnonzero(test_labels == value) for value in (1, 0)]
    if min(map(len, classes)) < 2:
        raise NotMeasurable(f"{len(classes[0])} positive and {len(classes[1])} negative test images")
    return test, test_labels, classes


def train_images(labels: pd.DataFrame, task: str) -> tuple[Rows, Rows]:
    """Rows of the labelled training images, and their labels."""
    rows = np.flatnonzero((labels["split"] == "train").to_numpy() & labels[task].isin([0, 1]).to_numpy())
    return rows, labels[task].to_numpy()[rows].astype(np.int64)


def _draw_support(
    labels: pd.DataFrame, positive: Rows, negative: Rows, shots: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Up to `shots` positives and negatives, no patient twice: one random image of each drawn patient."""
    patients = labels["patient"].to_numpy()
    chosen: list[Rows] = []
    for rows in (positive, negative):
        fresh = rng.permutation(rows[~np.isin(patients[rows], patients[np.concatenate([*chosen, rows[:0]])])])
        _, first = np.unique(patients[fresh], return_index=True)
        chosen.append(fresh[rng.permutation(first)[:shots]])
    return chosen[0], chosen[1]


def even(rows: tuple[Rows, ...]) -> Rows:
    """Of each draw as many as all have."""
    least = min(map(len, rows))
    return np.array([some[:least] for some in rows], np.int64)
