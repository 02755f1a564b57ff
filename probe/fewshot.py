"""Few-shot draws: the support set and the balanced test set of each draw, sampled once and shared by all encoders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Shots = int | Literal["all"]  # labelled examples per class
Rows = npt.NDArray[np.int64]
Uncertain = Literal["exclude", "positive", "negative"]
Blank = Literal["exclude", "negative"]
FRACTION_DRAWS = 5  # random parts of the labels for each of --fractions
# Of the random order of training images, and of patients; the streams below are those of the draws.
SHUFFLE_STREAM, FRACTION_STREAM = 10**6, 10**6 + 1


class NotMeasurable(Exception):
    """Raised for a task with too few examples; the message says which examples are too few, and their number."""


@dataclass(frozen=True)
class Draws:
    """The D draws of one task, as row numbers of the labels table.

    positive, negative: [D, most shots]; the first k of each row are the k-shot support set. test, test_labels: [N], all
    labelled test images. balanced: [D, N], the members of each draw's balanced test set. train, train_labels: the
    labelled training images that "all" shots select, of `labelled` that there are. fractions: share of the labels →
    the rows of FRACTION_DRAWS random parts [FRACTION_DRAWS, m], and their labels.
    """

    positive: Rows
    negative: Rows
    test: Rows
    test_labels: Rows
    balanced: npt.NDArray[np.bool_]
    train: Rows
    train_labels: Rows
    labelled: int
    fractions: dict[float, tuple[Rows, Rows]] = field(default_factory=dict)

    def support(self, shots: Shots) -> tuple[Rows, Rows]:
        """Select the support sets [D, 2·shots], positives first, and their labels; "all" is one set [1, n].

        That set has the labelled training images `train`, whatever the share of positives. Raises NotMeasurable if
        there are too few.
        """
        if shots == "all":
            if min(self.train_labels.sum(), (1 - self.train_labels).sum()) < 1:
                limited = len(self.train) < self.labelled
                raise NotMeasurable(f"{self.train_labels.sum()} of {len(self.train)} labelled training images positive"
                                    + f", chosen at random from {self.labelled} (--all-limit)" * limited)  # fmt: skip
            return self.train[None], self.train_labels[None]
        for name, rows in (("positive", self.positive), ("negative", self.negative)):
            if rows.shape[1] < shots:
                raise NotMeasurable(f"{rows.shape[1]} patients with {name} training images, {shots} needed")
        rows = np.concatenate([self.positive[:, :shots], self.negative[:, :shots]], axis=1)
        return rows, np.tile(np.repeat([1, 0], shots), (len(rows), 1))

    def truncate(self, measured: Collection[Shots]) -> Draws:
        """Reduce the support sets to those of the largest measured number of shots."""
        most = max((shots for shots in measured if shots != "all"), default=0)
        return replace(self, positive=self.positive[:, :most], negative=self.negative[:, :most])


def resolve_labels(labels: pd.DataFrame, findings: Sequence[str], uncertain: Uncertain, blank: Blank) -> pd.DataFrame:
    """Map labels to 1, 0 or NaN (excluded): apply the policies for uncertain (-1) and blank (NaN) labels."""
    resolved: pd.DataFrame = labels.copy()
    for finding in findings:
        values = labels[finding].fillna(0.0) if blank == "negative" else labels[finding]
        resolved[finding] = values.replace(-1.0, {"exclude": np.nan, "positive": 1.0, "negative": 0.0}[uncertain])
    return resolved


def make_draws(
    labels: pd.DataFrame, task: str, *, shots: int, draws: int, seed: int, all_limit: int | None = None
) -> Draws:
    """Sample the draws of one task: support sets from split train, test sets from all other splits.

    labels: shard.read.read_labels of all splits, after resolve_labels; only 1 and 0 are used. A support set has up to
    2·shots images, each of a different patient. A balanced test set has all images of the rarer class and an equal
    random number of the other. all_limit: as in train_images. Splits share no patients. Raises NotMeasurable if there
    are too few test images.
    """
    numbers = np.arange(len(labels))
    patients = number_patients(labels)  # comparing integers is many times as fast
    train = (labels["split"] == "train").to_numpy()
    positive, negative = ((labels[task] == value).to_numpy() for value in (1, 0))
    test, test_labels, classes = test_images(labels, task)
    smaller = min(map(len, classes))
    balanced, chosen = np.zeros((draws, len(test)), bool), []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        chosen.append(_sample_support(patients, numbers[positive & train], numbers[negative & train], shots, rng))
        for rows in classes:
            balanced[draw, rng.choice(rows, smaller, replace=False)] = True
    positives, negatives = (stack_shortest(rows) for rows in zip(*chosen, strict=True))
    return Draws(positives, negatives, test, test_labels, balanced,
                 *train_images(labels, task, all_limit, seed))  # fmt: skip


def number_patients(labels: pd.DataFrame) -> Rows:
    """The number of each image's patient, [images], whatever its split."""
    numbers: Rows = pd.factorize(labels["patient"], sort=True)[0]
    return numbers


def test_images(labels: pd.DataFrame, task: str) -> tuple[Rows, Rows, list[Rows]]:
    """Rows of the labelled test images, their labels, and the positions of positives and of negatives among them."""
    held_out = (labels["split"] != "train").to_numpy() & labels[task].isin([0, 1]).to_numpy()
    test = np.flatnonzero(held_out)
    test_labels = labels[task].to_numpy()[test].astype(np.int64)
    classes = [np.flatnonzero(test_labels == value) for value in (1, 0)]
    if min(map(len, classes)) < 2:
        raise NotMeasurable(f"{len(classes[0])} positive and {len(classes[1])} negative test images")
    return test, test_labels, classes


def train_images(labels: pd.DataFrame, task: str, limit: int | None, seed: int) -> tuple[Rows, Rows, int]:
    """Rows of at most `limit` labelled training images, chosen at random, their labels, and how many there are in all.

    limit: None for all. Tasks share their images as far as possible (see shuffle_training_images).
    """
    labelled = (labels["split"] == "train").to_numpy() & labels[task].isin([0, 1]).to_numpy()
    order = shuffle_training_images(labels, seed)
    rows = np.sort(order[labelled[order]][:limit])
    return rows, labels[task].to_numpy()[rows].astype(np.int64), int(labelled.sum())


def fraction_parts(labels: pd.DataFrame, task: str, share: float, *, seed: int, limit: int) -> tuple[Rows, Rows]:
    """Sample FRACTION_DRAWS parts of a share of the labelled training images: [FRACTION_DRAWS, m] rows and labels.

    A part has the images of patients in random order, the last patient's only as far as they are needed, so that all
    parts have m images. Tasks share the order of patients. Raises NotMeasurable if m exceeds `limit`, or a part lacks
    a class.
    """
    labelled = np.flatnonzero((labels["split"] == "train").to_numpy() & labels[task].isin([0, 1]).to_numpy())
    images = round(share * len(labelled))
    if images > limit:
        raise NotMeasurable(f"{share:g} of {len(labelled)} labelled training images are more than --all-limit={limit}")
    patients, parts = number_patients(labels), []
    for draw in range(FRACTION_DRAWS):
        order = np.random.default_rng([seed, FRACTION_STREAM, draw]).permutation(int(patients.max()) + 1)
        parts.append(labelled[np.argsort(order[patients[labelled]], kind="stable")][:images])
    rows = np.stack(parts)
    classes: Rows = labels[task].to_numpy()[rows].astype(np.int64)
    positive = int(classes.sum(axis=1).min(initial=images)), int(classes.sum(axis=1).max(initial=0))
    if positive[0] < 1 or positive[1] > images - 1:
        raise NotMeasurable(f"{images} of {len(labelled)} labelled training images, and a random part of so many lacks "
                            "positive or negative ones")  # fmt: skip
    return rows, classes


def shuffle_training_images(labels: pd.DataFrame, seed: int) -> Rows:
    """Rows of all training images in a random order, of which each random choice of images takes the first."""
    return np.random.default_rng([seed, SHUFFLE_STREAM]).permutation(np.flatnonzero(labels["split"] == "train"))


def _sample_support(
    patients: Rows, positive: Rows, negative: Rows, shots: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Sample up to `shots` positives and as many negatives: patients without replacement, one random image of each."""
    chosen: list[Rows] = []
    first = np.empty(int(patients.max()) + 1, np.int64)  # the place of each patient's first image, or -1
    for rows in (positive, negative):
        others = rng.permutation(rows[~np.isin(patients[rows], patients[np.concatenate([*chosen, rows[:0]])])])
        first[:] = -1
        first[patients[others][::-1]] = np.arange(len(others))[::-1]  # of repeated indices, the last one counts
        chosen.append(others[rng.permutation(first[first >= 0])[:shots]])
    return chosen[0], chosen[1]


def stack_shortest(rows: tuple[Rows, ...]) -> Rows:
    """Stack the rows of all draws [D, n], truncated to the shortest."""
    shortest = min(map(len, rows))
    return np.array([draw[:shortest] for draw in rows], np.int64)
