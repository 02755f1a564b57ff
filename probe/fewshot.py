"""Draws: which images a probe learns from and which it is tested on; made once, kept as a file, shared by all encoders.

draws.csv has a row an image: task, draw, role, key. Roles are positive and negative, the support set in the order in
which it is taken (so that its first k of each are the k-shot support set), and test, the draw's balanced test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from shard.errors import InputError

Rows = npt.NDArray[np.int64]
Uncertain = Literal["exclude", "positive", "negative"]
Blank = Literal["exclude", "negative"]
COLUMNS = ("task", "draw", "role", "key")


class NotMeasurable(Exception):
    """A task that has too few examples; its text says of what, and how many there are."""


@dataclass(frozen=True)
class Draws:
    """The draws of one task, by row numbers: what each of D probes learns from, and what all are tested on.

    positive, negative: [D, most], in the order in which they are taken; test: [N], every labelled test image;
    test_labels: theirs; balanced: [D, N], the images of each draw's balanced test set.
    """

    positive: Rows
    negative: Rows
    test: Rows
    test_labels: Rows
    balanced: npt.NDArray[np.bool_]

    def support(self, shots: int) -> tuple[Rows, Rows]:
        """The k-shot support sets, [D, 2·shots], positives first, and their labels. Raises NotMeasurable."""
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
    test, test_labels, classes = _test_images(labels, task)
    smaller = min(map(len, classes))
    balanced, chosen = np.zeros((draws, len(test)), bool), []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        chosen.append(_draw_support(labels, numbers[positive & train], numbers[negative & train], shots, rng))
        for rows in classes:
            balanced[draw, rng.choice(rows, smaller, replace=False)] = True
    positives, negatives = (_even(rows) for rows in zip(*chosen, strict=True))
    return Draws(positives, negatives, test, test_labels, balanced)


def _test_images(labels: pd.DataFrame, task: str) -> tuple[Rows, Rows, list[Rows]]:
    """Rows of the labelled test images, their labels, and where among them those of each class stand."""
    held_out = (labels["split"] != "train").to_numpy() & labels[task].isin([0, 1]).to_numpy()
    test = np.flatnonzero(held_out)
    test_labels = labels[task].to_numpy()[test].astype(np.int64)
    classes = [np.flatnonzero(test_labels == value) for value in (1, 0)]
    if min(map(len, classes)) < 2:
        raise NotMeasurable(f"{len(classes[0])} positive and {len(classes[1])} negative test images")
    return test, test_labels, classes


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


def _even(rows: tuple[Rows, ...]) -> Rows:
    """Of each draw as many as all have."""
    least = min(map(len, rows))
    return np.array([some[:least] for some in rows], np.int64)


def draw_tasks(
    labels: pd.DataFrame, tasks: Sequence[str], *, shots: int, draws: int, seed: int
) -> tuple[dict[str, Draws], list[str]]:
    """The draws of each task that can be measured, and why the others can't."""
    drawn, unmeasured = {}, []
    for task in tasks:
        try:
            one = make_draws(labels, task, shots=shots, draws=draws, seed=seed)
            one.support(shots)
            drawn[task] = one
        except NotMeasurable as reason:
            unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured


def write_draws(drawn: Mapping[str, Draws], labels: pd.DataFrame) -> bytes:
    """The draws of all tasks as the content of draws.csv."""
    keys, frames = labels["key"].to_numpy(), []
    for task, draws in drawn.items():
        for draw, balanced in enumerate(draws.balanced):
            roles = (("positive", draws.positive[draw]), ("negative", draws.negative[draw]),
                     ("test", draws.test[balanced]))  # fmt: skip
            frames += [pd.DataFrame({"task": task, "draw": draw, "role": role, "key": keys[rows]})
                       for role, rows in roles]  # fmt: skip
    content: str = pd.concat(frames).to_csv(index=False)
    return content.encode()


def read_draws(path: Path, labels: pd.DataFrame) -> dict[str, Draws]:
    """The draws that `write_draws` wrote, for the same images. Raises InputError where they are not draws of these.

    labels: as make_draws takes them; a key whose label they contradict, or a support set that shares a patient with
    the test images or has one twice, is an error.
    """
    try:
        table = pd.read_csv(path, dtype={**dict.fromkeys(COLUMNS, "str"), "draw": "int64"})
    except FileNotFoundError:
        raise InputError(f"--draws-file={path}: no such file; a report writes one, draws.csv") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"--draws-file={path}: not a table of draws ({str(error).splitlines()[0]})") from None
    if tuple(table.columns) != COLUMNS or table.empty:
        raise InputError(f"--draws-file={path}: its columns are {', '.join(table.columns)}; wanted are "
                         f"{', '.join(COLUMNS)}, and rows")  # fmt: skip
    row_of = pd.Series(np.arange(len(labels)), index=labels["key"].astype(str))
    unknown = table[~table["key"].isin(row_of.index)]
    if len(unknown):
        raise InputError(f"--draws-file={path}: key {unknown['key'].iloc[0]}, and {len(unknown) - 1} more, are not in "
                         "these shards; give the shards that the draws were made of")  # fmt: skip
    table["row"] = row_of[table["key"]].to_numpy()
    result = {}
    for task, rows in table.groupby("task", sort=False):
        if task not in labels.columns:
            raise InputError(f"--draws-file={path}: {task} is not a finding of these shards")
        try:
            result[str(task)] = _one_task(rows, labels, str(task))
        except (NotMeasurable, ValueError) as reason:
            raise InputError(f"--draws-file={path}: {task}: {reason}") from None
    return result


def read_tasks(
    path: Path, labels: pd.DataFrame, tasks: Sequence[str], *, shots: int
) -> tuple[dict[str, Draws], list[str]]:
    """The same of draws that were made before: draws.csv at `path`."""
    given, drawn, unmeasured = read_draws(path, labels), {}, []
    if len({len(draws.positive) for draws in given.values()}) > 1:
        raise InputError(f"--draws-file={path}: not as many draws for one task as for another")
    for task in tasks:
        if task not in given:
            unmeasured.append(f"{task} is not in {path}")
            continue
        try:
            given[task].support(shots)
            drawn[task] = given[task]
        except NotMeasurable as reason:
            unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured


def _one_task(table: pd.DataFrame, labels: pd.DataFrame, task: str) -> Draws:
    test, test_labels, _ = _test_images(labels, task)
    numbers = np.unique(table["draw"])
    by_role = {(draw, role): rows["row"].to_numpy() for (draw, role), rows in table.groupby(["draw", "role"])}
    wanted = {"positive": 1, "negative": 0}
    chosen: dict[str, list[Rows]] = {"positive": [], "negative": []}
    balanced = np.zeros((len(numbers), len(test)), bool)
    patients, train = labels["patient"].to_numpy(), (labels["split"] == "train").to_numpy()
    for place, draw in enumerate(numbers):
        for role, label in wanted.items():
            rows = by_role.get((draw, role), np.empty(0, np.int64))
            if not (labels[task].to_numpy()[rows] == label).all() or not train[rows].all():
                raise ValueError(f"draw {draw}: not all of its {role} examples are {role} training images here")
            chosen[role].append(rows)
        support = patients[np.concatenate([rows[-1] for rows in chosen.values()])]
        if len(set(support)) < len(support):
            raise ValueError(f"draw {draw}: its support set has a patient twice")
        tested = by_role.get((draw, "test"), np.empty(0, np.int64))
        if not np.isin(tested, test).all() or len(tested) == 0:
            raise ValueError(f"draw {draw}: its test examples are not all labelled test images here, or there are none")
        balanced[place] = np.isin(test, tested)
    return Draws(_even(tuple(chosen["positive"])), _even(tuple(chosen["negative"])), test, test_labels, balanced)
