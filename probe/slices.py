"""Slices of the test images, by sex, age and view where the shards have them, and whether they are large enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from probe.fewshot import Rows
from shard.tabular.age import AGES

LEAST = 10  # patients with a positive image, and as many with a negative one: below it nothing is claimed


class Slice(NamedTuple):
    """One slice of the images, named such as "sex: women", and which it holds [images]."""

    name: str
    members: npt.NDArray[np.bool_]


def find_slices(labels: pd.DataFrame) -> list[Slice]:
    """The slices of the images of shard.read.read_labels; none by what all share or what is not known."""
    sex, age, view = labels["sex"], labels["age"], labels["view"].fillna("")
    groups = {
        "sex": [(name, sex == letter) for letter, name in (("F", "women"), ("M", "men"))],
        "age": [(name, (age >= low) & (age < high)) for low, high, name in AGES],
        "view": [(name, view == name) for name in sorted(set(view) - {""})],
    }
    held_out = labels["split"] != "train"
    slices = []
    for group, parts in groups.items():
        there = [Slice(f"{group}: {name}", members.to_numpy()) for name, members in parts if (members & held_out).any()]
        slices += there if len(there) > 1 else []
    return slices


def count_patients(test: Rows, test_labels: Rows, patients: Rows) -> tuple[int, int]:
    """How many test patients have a positive image, and how many a negative one."""
    return count(Slice("all", np.ones(len(patients), bool)), test, test_labels, patients)


def too_few(counts: tuple[int, int]) -> str:
    """Why nothing is claimed of so many patients with a positive and with a negative image; "" where it may be."""
    if is_large_enough(counts):
        return ""
    number, kind = min(zip(counts, ("positive", "negative"), strict=True))
    return f"{number} {kind} test patient{'' if number == 1 else 's'}"


def withhold(counts: Mapping[str, tuple[int, int]], mean: str) -> dict[str, str]:
    """The tasks with too few test patients, and what their mean is called, with the reasons.

    A bootstrap over few patients of a class can't show how much the figure would be another with others of them: its
    intervals are much too narrow, and its p values too small.
    """
    reasons = {task: reason for task, some in counts.items() if (reason := too_few(some))}
    if reasons and len(counts) > 1:
        reasons[mean] = "over these too"
    return reasons


def count(part: Slice, test: Rows, test_labels: Rows, patients: Rows) -> tuple[int, int]:
    """How many test patients of a slice have a positive image, and how many a negative one."""
    inside = part.members[test]
    positive, negative = (len(np.unique(patients[test][inside & (test_labels == label)])) for label in (1, 0))
    return positive, negative


def is_large_enough(counts: tuple[int, int]) -> bool:
    """Whether anything can be said of a slice of so many patients."""
    return min(counts) >= LEAST
