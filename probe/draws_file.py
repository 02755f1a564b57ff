"""draws.csv: the draws of a report as a file, so that others can evaluate on the same images.

One row per image: task, draw, role, key. Roles `positive` and `negative` are the support set, in order: the first k of
each are the k-shot support set. Role `test` is the draw's balanced test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from probe.fewshot import Draws, NotMeasurable, Rows, stack_shortest, test_images, train_images
from shard.errors import InputError
from shard.tabular.sheet import from_cell, to_csv

COLUMNS = ("task", "draw", "role", "key")


def write_draws(drawn: Mapping[str, Draws], labels: pd.DataFrame) -> bytes:
    """Encode the draws of all tasks as the content of draws.csv."""
    keys, frames = labels["key"].to_numpy(), []
    for task, draws in drawn.items():
        for draw, balanced in enumerate(draws.balanced):
            roles = (("positive", draws.positive[draw]), ("negative", draws.negative[draw]),
                     ("test", draws.test[balanced]))  # fmt: skip
            frames += [pd.DataFrame({"task": task, "draw": draw, "role": role, "key": keys[rows]})
                       for role, rows in roles]  # fmt: skip
    return to_csv(pd.concat(frames))


def read_draws(path: Path, labels: pd.DataFrame) -> dict[str, Draws]:
    """Read draws written by `write_draws`, by task, and check them against these labels.

    labels: as for make_draws. Raises InputError if a key is missing or contradicts its label, or if a support set has a
    patient twice or outside split train.
    """
    try:
        table = pd.read_csv(path, dtype={**dict.fromkeys(COLUMNS, "str"), "draw": "int64"},
                            keep_default_na=False)  # a finding or a key may be called NA
    except FileNotFoundError:
        raise InputError(f"--draws-file={path}: no such file; every report writes one, draws.csv") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"--draws-file={path}: not a table of draws ({str(error).splitlines()[0]})") from None
    if tuple(table.columns) != COLUMNS or table.empty:
        raise InputError(f"--draws-file={path}: its columns are {', '.join(table.columns)}; needs "
                         f"{', '.join(COLUMNS)}, and at least one row")  # fmt: skip
    for name in ("task", "key"):
        table[name] = table[name].map(from_cell)
    row_of = pd.Series(np.arange(len(labels)), index=labels["key"].astype(str))
    unknown = table[~table["key"].isin(row_of.index)]
    if len(unknown):
        raise InputError(f"--draws-file={path}: key {unknown['key'].iloc[0]}, and {len(unknown) - 1} more, are not in "
                         "these shards; give the shards of that report")  # fmt: skip
    table["row"] = row_of[table["key"]].to_numpy()
    result = {}
    for task, rows in table.groupby("task", sort=False):
        if task not in labels.columns:
            raise InputError(f"--draws-file={path}: {task} is not a finding of these shards")
        try:
            result[str(task)] = _draws_of_task(rows, labels, str(task))
        except (NotMeasurable, ValueError) as reason:
            raise InputError(f"--draws-file={path}: {task}: {reason}") from None
    return result


def _draws_of_task(table: pd.DataFrame, labels: pd.DataFrame, task: str) -> Draws:
    test, test_labels, _ = test_images(labels, task)
    numbers = np.unique(table["draw"])
    by_role = {(draw, role): rows["row"].to_numpy() for (draw, role), rows in table.groupby(["draw", "role"])}
    chosen: dict[str, list[Rows]] = {"positive": [], "negative": []}
    balanced = np.zeros((len(numbers), len(test)), bool)
    patients, train = labels["patient"].to_numpy(), (labels["split"] == "train").to_numpy()
    for place, draw in enumerate(numbers):
        for role, label in (("positive", 1), ("negative", 0)):
            rows = by_role.get((draw, role), np.empty(0, np.int64))
            if not (labels[task].to_numpy()[rows] == label).all() or not train[rows].all():
                raise ValueError(f"draw {draw}: not all of its {role} examples are {role} training images")
            chosen[role].append(rows)
        support = patients[np.concatenate([rows[-1] for rows in chosen.values()])]
        if len(set(support)) < len(support):
            raise ValueError(f"draw {draw}: its support set contains a patient twice")
        tested = by_role.get((draw, "test"), np.empty(0, np.int64))
        if not np.isin(tested, test).all() or len(tested) == 0:
            raise ValueError(f"draw {draw}: its test set contains rows that are not labelled test images, or is empty")
        balanced[place] = np.isin(test, tested)
    positive, negative = (stack_shortest(tuple(chosen[role])) for role in ("positive", "negative"))
    return Draws(positive, negative, test, test_labels, balanced, *train_images(labels, task))
