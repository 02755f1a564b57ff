"""draws.csv: the draws of a report as a file, so that others can evaluate on the same images.

First a row per test image, with role `image`. Then, for each task and draw, a row per image of the support set, with
role `positive` or `negative`, in order: the first k of each are the k-shot support set. One more row has role `test`
and, in the column `members`, the draw's balanced test set: a bit per test image in the order of the first rows, the
first image in the highest bit of the first byte, as hexadecimal digits. docs/formats.md reads it in a few lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from probe.fewshot import Draws, NotMeasurable, Rows, stack_shortest, test_images, train_images
from shard.errors import InputError
from shard.tabular.sheet import from_cell, to_csv

COLUMNS = ("task", "draw", "role", "key", "members")
OLDER = COLUMNS[:-1]  # the older format has a row per image of a balanced test set, with role `test`


def write_draws(drawn: Mapping[str, Draws], labels: pd.DataFrame) -> bytes:
    """Encode the draws of all tasks as the content of draws.csv."""
    keys = labels["key"].to_numpy()
    tested = np.unique(np.concatenate([draws.test for draws in drawn.values()]))
    frames = [pd.DataFrame({"task": "", "draw": "", "role": "image", "key": keys[tested], "members": ""})]
    for task, draws in drawn.items():
        numbers = np.arange(len(draws.balanced)).astype(str)
        members = np.zeros((len(numbers), len(tested)), bool)
        members[:, np.searchsorted(tested, draws.test)] = draws.balanced
        support = [pd.DataFrame({"draw": np.repeat(numbers, rows.shape[1]), "role": role, "key": keys[rows.ravel()],
                                 "members": ""})
                   for role, rows in (("positive", draws.positive), ("negative", draws.negative))]  # fmt: skip
        sets = pd.DataFrame({"draw": numbers, "role": "test", "key": "",
                             "members": [bits.tobytes().hex() for bits in np.packbits(members, axis=1)]})  # fmt: skip
        frames.append(pd.concat([*support, sets]).assign(task=task)[list(COLUMNS)])
    return to_csv(pd.concat(frames))


def read_draws(
    path: Path, labels: pd.DataFrame, *, all_limit: int | None = None, seed: int = 0
) -> dict[str, Draws]:
    """Read draws written by `write_draws`, by task, and check them against these labels.

    labels, all_limit, seed: as for make_draws. Raises InputError if a key is missing or contradicts its label, or if a
    support set has a patient twice or outside split train.
    """
    table = _read_table(path)
    row_of = pd.Series(np.arange(len(labels)), index=labels["key"].astype(str))
    has_key = (table["role"] != "test") | ("members" not in table.columns)
    unknown = table[has_key & ~table["key"].isin(row_of.index)]
    if len(unknown):
        raise InputError(f"--draws-file={path}: key {unknown['key'].iloc[0]}, and {len(unknown) - 1} more, are not in "
                         "these shards; give the shards of that report")  # fmt: skip
    table["row"] = row_of.reindex(table["key"]).fillna(-1).to_numpy().astype(np.int64)
    tested = table.loc[table["role"] == "image", "row"].to_numpy()
    result = {}
    for task, rows in table[table["role"] != "image"].groupby("task", sort=False):
        if task not in labels.columns:
            raise InputError(f"--draws-file={path}: {task} is not a finding of these shards")
        try:
            every = train_images(labels, str(task), all_limit, seed)
            result[str(task)] = _draws_of_task(rows, tested, labels, str(task), every)
        except (NotMeasurable, ValueError) as reason:
            raise InputError(f"--draws-file={path}: {task}: {reason}") from None
    return result


def _read_table(path: Path) -> pd.DataFrame:
    """Read the cells of the file, in its format or the older one, with numbers of draws as integers."""
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype="str", keep_default_na=False)  # a finding or a key may be NA
        table["draw"] = table["draw"].replace("", "-1").astype("int64")
    except FileNotFoundError:
        raise InputError(f"--draws-file={path}: no such file; every report writes one, draws.csv") from None
    except KeyError:
        pass  # there is no column "draw": reported below, with the columns that are there
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"--draws-file={path}: not a table of draws ({str(error).splitlines()[0]})") from None
    if tuple(table.columns) not in (COLUMNS, OLDER) or table.empty:
        raise InputError(f"--draws-file={path}: its columns are {', '.join(table.columns)}; needs "
                         f"{', '.join(COLUMNS)}, and at least one row")  # fmt: skip
    for name in ("task", "key"):
        table[name] = table[name].map(from_cell)
    return table


def _draws_of_task(
    table: pd.DataFrame, images: Rows, labels: pd.DataFrame, task: str, every: tuple[Rows, Rows, int]
) -> Draws:  # fmt: skip
    """Check the rows of a task. images: the rows of the labels that the bits of balanced test sets stand for."""
    test, test_labels, _ = test_images(labels, task)
    numbers = np.unique(table["draw"])
    by_role = {(draw, role): rows for (draw, role), rows in table.groupby(["draw", "role"])}
    chosen: dict[str, list[Rows]] = {"positive": [], "negative": []}
    balanced = np.zeros((len(numbers), len(test)), bool)
    patients, train = labels["patient"].to_numpy(), (labels["split"] == "train").to_numpy()
    for place, draw in enumerate(numbers):
        for role, label in (("positive", 1), ("negative", 0)):
            rows = by_role.get((draw, role), table[:0])["row"].to_numpy()
            if not (labels[task].to_numpy()[rows] == label).all() or not train[rows].all():
                raise ValueError(f"draw {draw}: not all of its {role} examples are {role} training images")
            chosen[role].append(rows)
        support = patients[np.concatenate([rows[-1] for rows in chosen.values()])]
        if len(set(support)) < len(support):
            raise ValueError(f"draw {draw}: its support set contains a patient twice")
        tested = _members(by_role.get((draw, "test"), table[:0]), images, int(draw))
        if not np.isin(tested, test).all() or len(tested) == 0:
            raise ValueError(f"draw {draw}: its test set contains rows that are not labelled test images, or is empty")
        balanced[place] = np.isin(test, tested)
    positive, negative = (stack_shortest(tuple(chosen[role])) for role in ("positive", "negative"))
    return Draws(positive, negative, test, test_labels, balanced, *every)


def _members(rows: pd.DataFrame, images: Rows, draw: int) -> Rows:
    """Return the images of a draw's balanced test set from its rows with role `test`."""
    if "members" not in rows.columns:
        listed: Rows = rows["row"].to_numpy()
        return listed
    if len(rows) != 1:
        raise ValueError(f"draw {draw}: {len(rows)} rows with its test set, 1 needed")
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(rows["members"].iloc[0]), np.uint8))
    except ValueError:
        bits = np.empty(0, np.uint8)
    if len(bits) != -(-len(images) // 8) * 8 or bits[len(images) :].any():
        raise ValueError(f"draw {draw}: the members of its test set are not {len(images)} bits, one for each row with "
                         "role image, as hexadecimal digits")  # fmt: skip
    members: Rows = images[bits[: len(images)] == 1]
    return members
