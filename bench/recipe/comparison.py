"""Differences of AUROC between encoders over seeds, and the correction of their p values."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

from probe.statistics import Effect, Scores, holm, over_seeds

SeedScores = dict[str, list[Scores]]  # task → the scores of each seed
Name = TypeVar("Name", bound=Hashable)


def by_task(scores: Sequence[dict[str, Scores]]) -> SeedScores:
    """Regroup the scores of each seed, a dict by task, into lists over seeds."""
    return {task: [one[task] for one in scores] for task in scores[0]}


def mean_auroc(scores: SeedScores) -> dict[str, float]:
    """Average the AUROC of each task over seeds."""
    return {task: float(sum(one.both[0] for one in seeds) / len(seeds)) for task, seeds in scores.items()}


def difference(scores: Sequence[Scores], reference: Sequence[Scores], *, withheld: bool = False) -> Effect:
    """Return scores minus reference on one task, paired by seed.

    A reference with a single seed, such as the thumbnail, is compared with every seed. If one side has more seeds, the
    first ones are compared. withheld: omit the interval and the p value.
    """
    references = reference if len(reference) > 1 else [*reference] * len(scores)
    effect = over_seeds([one - other for one, other in zip(scores, references, strict=False)])
    return effect._replace(low=math.nan, high=math.nan, p=math.nan) if withheld else effect


def correct_p_values(effects: Mapping[Name, Effect]) -> dict[Name, Effect]:
    """Correct the p values for the number of effects (Holm)."""
    corrected = holm([effect.p for effect in effects.values()])
    return {name: effect._replace(p=p) for (name, effect), p in zip(effects.items(), corrected, strict=True)}


def compare_cells(
    pairs: dict[str, tuple[SeedScores, SeedScores]], withheld: Collection[str]
) -> dict[str, dict[str, Effect]]:
    """Return cell → task → difference, with p values corrected for all cells, separately for each task.

    pairs: cell → its scores and its reference's. withheld: the tasks without intervals and p values.
    """
    tasks = next(iter(pairs.values()))[0] if pairs else {}
    effects = {task: correct_p_values({name: difference(scores[task], reference[task], withheld=task in withheld)
                                       for name, (scores, reference) in pairs.items()}) for task in tasks}  # fmt: skip
    return {name: {task: effects[task][name] for task in tasks} for name in pairs}
