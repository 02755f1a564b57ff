"""Slices of the test images by sex, age and view, and the number of patients that an interval requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from probe.fewshot import Rows
from shard.tabular.age import AGES

LEAST = 10  # patients with a positive image, and with a negative one; with fewer, no interval is given


class Slice(NamedTuple):
    """A slice of the images: a name such as "sex: women", and its members, a mask [images]."""

    name: str
    members: npt.NDArray[np.bool_]


def find_slices(labels: pd.DataFrame) -> list[Slice]:
    """List the slices of the images of shard.read.read_labels; a group with a single value has no slices."""
    sex, age, view = labels["sex"], labels["age"], labels["view"].fillna("")
    groups = {
        "sex": [(name, sex == letter) for letter, name in (("F", "women"), ("M", "men"))],
        "age": [(name, (age >= low) & (age < high)) for low, high, name in AGES],
        "view": [(name, view == name) for name in sorted(set(view) - {""})],
    }
    held_out = labels["split"] != "train"
    slices = []
    for group, parts in groups.items():
        found = [Slice(f"{group}: {name}", members.to_numpy()) for name, members in parts if (members & held_out).any()]
        slices += found if len(found) > 1 else []
    return slices


def count_patients(test: Rows, test_labels: Rows, patients: Rows) -> tuple[int, int]:
    """Count the test patients with a positive image, and those with a negative one."""
    return count_in_slice(Slice("all", np.ones(len(patients), bool)), test, test_labels, patients)


def too_few(counts: tuple[int, int]) -> str:
    """Explain why these counts of (positive, negative) patients allow no interval; "" if they allow one."""
    if is_large_enough(counts):
        return ""
    number, kind = min(zip(counts, ("positive", "negative"), strict=True))
    return f"{number} {kind} test patient{'' if number == 1 else 's'}"


def withhold(counts: Mapping[str, tuple[int, int]], mean: str) -> dict[str, str]:
    """Map each task with too few test patients, and then the column `mean` too, to the reason.

    Resampling few patients of a class underestimates how much other patients would change the result: intervals are
    much too narrow, and p values too small.
    """
    reasons = {task: reason for task, count in counts.items() if (reason := too_few(count))}
    if reasons and len(counts) > 1:
        reasons[mean] = "includes these"
    return reasons


def count_in_slice(part: Slice, test: Rows, test_labels: Rows, patients: Rows) -> tuple[int, int]:
    """Count the test patients of a slice with a positive image, and those with a negative one."""
    inside = part.members[test]
    positive, negative = (len(np.unique(patients[test][inside & (test_labels == label)])) for label in (1, 0))
    return positive, negative


def is_large_enough(counts: tuple[int, int]) -> bool:
    """Whether counts of (positive, negative) patients allow an interval."""
    return min(counts) >= LEAST
