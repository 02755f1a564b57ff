"""The claim of the recipe study: the chosen encoders and their rivals on patients who chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.recipe.choice import RIVALS, Choice
from bench.recipe.comparison import MEAN, Seeds, Worth, claim_effects, curve_shots, difference, level, with_mean, worth
from bench.recipe.design import IMAGENET, THUMBNAIL, Study
from bench.recipe.evaluation import CURVE_POOLS, SHOTS, curve_name
from bench.recipe.folds import FOLDS
from bench.recipe.grid import CELLS, CONTINUED, FROM_IMAGENET, RANDOM_LR, Cell
from bench.recipe.job import Job
from bench.recipe.result import RunResult
from probe.statistics import Effect, mean_over_folds

SAME_FROM_RANDOM = "the same from random weights"
Curve = Mapping[int, npt.NDArray[np.float64]]  # shots → the mean AUROC in each replicate


@dataclass(frozen=True)
class Outcome:
    """An encoder on all tested patients: its scores by seed, and its curve over labels by pool.

    seconds: of training, over all its runs. processors: what trained and evaluated it.
    """

    scores: Seeds
    curves: Mapping[int, Curve]
    seconds: float
    processors: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """The tested encoders by name, ours first, and what is concluded from them.

    effects: (rival, task) → ours minus it, with corrected p values. others: (encoder, rival) → the difference of the
    mean, of encoders that the claim is not about, without a p value. worth: rival → labels, by pool.
    """

    ours: str
    tested: dict[str, Outcome]
    effects: dict[tuple[str, str], Effect]
    others: dict[tuple[str, str], Effect]
    worth: dict[int, dict[str, Worth]]

    def levels(self, task: str) -> dict[str, Effect]:
        """Return the AUROC of each encoder on a task."""
        return {name: level(tested.scores, task) for name, tested in self.tested.items()}


def claim_cells(choice: Choice) -> list[tuple[Cell, int]]:
    """Return the cells of the claim with the sizes of their images: the chosen one, and the same from random weights.

    Random weights have no statistics that BatchNorm could keep, and their learning rate is that of the other cells.
    """
    name, size = choice.cells[CONTINUED]
    chosen = next(cell for cell in CELLS if cell.name == name)
    same = {name: value for name, value in chosen.settings.items()
            if name not in FROM_IMAGENET and name != "freeze_batchnorm"}  # fmt: skip
    return [(chosen, size), (Cell(SAME_FROM_RANDOM, "", {**same, "lr": RANDOM_LR}), size)]


def claim_jobs(study: Study, choice: Choice, seeds: int) -> list[Job]:
    """List the jobs of the claim: seed by seed the chosen cell and the baselines, then one seed of the other cell."""
    (chosen, size), (other, _) = claim_cells(choice)
    jobs = []
    for seed in range(seeds):
        jobs += [study.run(chosen, seed, fold, (size,)) for fold in range(FOLDS)]
        jobs += [job for fold in range(FOLDS) for job in study.baselines(fold, (choice.imagenet_size,), seeds)
                 if job.seed == seed]  # fmt: skip
    return jobs + [study.run(other, 0, fold, (size,)) for fold in range(FOLDS)]


def make_claim(study: Study, choice: Choice, seeds: int) -> Claim | None:
    """Compare ours with its rivals on all tested patients; None if not every fold of a seed has a result."""
    tested = collect(study, claim_jobs(study, choice, seeds))
    ours = choice.cells[CONTINUED][0]
    if ours not in tested or not all(rival in tested for rival in RIVALS):
        return None
    rivals = {rival: tested[rival].scores for rival in RIVALS}
    effects = claim_effects(tested[ours].scores, rivals, study.tasks)
    others = {(name, rival): difference(one.scores, tested[rival].scores, MEAN)
              for name, one in tested.items() if name not in (ours, THUMBNAIL) for rival in (IMAGENET, THUMBNAIL)
              if name != rival}  # fmt: skip
    worths = {pool: {rival: worth(tested[ours].curves[pool][SHOTS], tested[rival].curves[pool]) for rival in RIVALS}
              for pool in CURVE_POOLS if study.curve[pool]}  # fmt: skip
    return Claim(ours, tested, effects, others, worths)


def collect(study: Study, jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Join the results of all folds, for each encoder and seed that has a result of every fold."""
    found: dict[str, dict[int, dict[int, RunResult]]] = {}  # encoder → seed → fold
    for job in jobs:
        result = study.read(job)
        if result is not None and job.fold is not None:
            found.setdefault(study.name(job), {}).setdefault(job.seed, {})[job.fold] = result
    sets = [study.evaluation_set(fold) for fold in range(FOLDS)]
    tested = {}
    for name, by_seed in found.items():
        complete = [[by_fold[fold] for fold in range(FOLDS)] for by_fold in by_seed.values() if len(by_fold) == FOLDS]
        if not complete:
            continue
        scores = []
        for results in complete:
            folds = [one.complete(next(iter(result.scores.values())))
                     for one, result in zip(sets, results, strict=True)]  # fmt: skip
            scores.append(with_mean({task: mean_over_folds([fold[task] for fold in folds]) for task in study.tasks}))
        every = [result for results in complete for result in results]
        curves = {pool: {shots: np.mean([result.curve[curve_name(pool, shots)] for result in every], axis=0)
                         for shots in curve_shots(pool)} for pool in CURVE_POOLS if study.curve[pool]}  # fmt: skip
        tested[name] = Outcome(scores, curves, sum(result.seconds for result in every),
                              tuple(sorted({result.machine["processor"] for result in every})))  # fmt: skip
    return tested


def is_same_machine(one: Outcome, other: Outcome) -> bool:
    """Whether two encoders were trained by one kind of processor, or one of them was not trained."""
    return not (one.seconds and other.seconds) or len({*one.processors, *other.processors}) == 1
