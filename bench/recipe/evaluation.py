"""Evaluate encoders for the recipe study: few-shot AUROC on the patients of one fold, or of split valid."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.recipe.folds import CHOOSING, FOLDS, fold_splits
from probe.fewshot import Draws, NotMeasurable, Rows, make_draws, number_patients, resolve_labels
from probe.linear import probe_draws
from probe.slices import count_patients
from probe.statistics import Scores, Supports, mean_of, resample, score
from shard.errors import InputError
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels
from train.frozen_features import Features, standardise

SHOTS = 10
LEAST_PATIENTS = 20  # positive ones among those tested, for a finding to be a task
REPLICATES = 400  # of the bootstrap; the standard error of a variance is then 7 % of it
CHOICE_REPLICATES = 200
# Numbers of labels a class, for the curve of AUROC over labels, and the draws of each: their mean needs fewer there.
CURVE, CURVE_DRAWS = (1, 2, 5, 10, 20, 50, 100, 200), 25
CURVE_POOLS = (100, 200)  # the curve's tasks have this many positive patients in every pool, for up to as many shots
CurveTasks = Mapping[int, Sequence[str]]  # pool → tasks


@dataclass(frozen=True)
class EvaluationSet:
    """The few-shot draws of each task, tested on the patients of one fold, or of split valid (fold None).

    labels: of all images, with split train for the patients that supports come from. draws: by task. patients: the
    number of each tested image's patient, [N], -1 for others. curve: the tasks of the curve over labels.
    """

    fold: int | None
    labels: pd.DataFrame
    draws: dict[str, Draws]
    patients: npt.NDArray[np.int64]
    curve: CurveTasks

    def score(self, features: Features) -> dict[str, Scores]:
        """Compute the AUROC of each task with SHOTS labels a class, in each replicate."""
        standardised = self._standardise(features)
        return {task: self._score(standardised, draws, SHOTS, len(draws.positive))
                for task, draws in self.draws.items()}  # fmt: skip

    def score_curve(self, features: Features) -> dict[str, npt.NDArray[np.float64]]:
        """Compute the mean AUROC of the curve's tasks in each replicate, by the names of the curve's points."""
        standardised, curve = self._standardise(features), {}
        for pool, shots in curve_points(self.curve):
            scores = [self._score(standardised, self.draws[task], shots, CURVE_DRAWS) for task in self.curve[pool]]
            curve[curve_name(pool, shots)] = mean_of(scores).both
        return curve

    def _standardise(self, features: Features) -> Features:
        return standardise(features, (self.labels["split"] == "train").to_numpy())

    def _score(self, standardised: Features, draws: Draws, shots: int, number: int) -> Scores:
        rows, classes = (part[:number] for part in draws.support(shots))
        decisions = probe_draws(standardised, rows, classes, draws.test)
        # Patients of different folds are resampled independently, those of one fold alike for all encoders.
        seed, replicates = (0, CHOICE_REPLICATES) if self.fold is None else (self.fold, REPLICATES)
        resamples = resample(len(decisions), int(self.patients.max()) + 1, replicates=replicates, seed=seed)
        return score(decisions, draws.test_labels, self.patients[draws.test], resamples,
                     supports=self._people[rows]).of("auroc")  # fmt: skip

    @functools.cached_property
    def _people(self) -> Rows:
        """The number of each image's patient, [N], the same in all folds."""
        return number_patients(self.labels)

    def complete(self, scores: Mapping[str, Scores]) -> dict[str, Scores]:
        """Add the numbers of test patients and the supports to scores on this set that were read from a file."""
        completed = {}
        for task, draws in self.draws.items():
            rarer = min(count_patients(draws.test, draws.test_labels, self.patients))
            supports = Supports(self._people[draws.support(SHOTS)[0]])
            completed[task] = replace(scores[task], rarer=rarer, supports=supports)
        return completed


def curve_points(curve: CurveTasks) -> list[tuple[int, int]]:
    """List the points of the curve over labels: pool and shots."""
    return [(pool, shots) for pool, tasks in curve.items() if tasks for shots in CURVE if shots <= pool]


def curve_name(pool: int, shots: int) -> str:
    """Name the mean over the curve's tasks of a pool."""
    return f"{shots} labels, pool {pool}"


def choose_tasks(labels: pd.DataFrame, findings: Sequence[str]) -> tuple[str, ...]:
    """Return the findings with at least LEAST_PATIENTS positive patients among those that are tested once."""
    tested = labels[labels["split"] != CHOOSING]
    return tuple(name for name in findings
                 if min(tested.loc[tested[name] == value, "patient"].nunique() for value in (1, 0)) >= LEAST_PATIENTS)


def choose_curve_tasks(labels: pd.DataFrame, folds: Rows, tasks: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the tasks with enough patients of each class in the pool of every fold, by CURVE_POOLS."""
    fewest = {task: min(labels.loc[(folds != fold) & (labels[task] == value).to_numpy(), "patient"].nunique()
                        for fold in range(FOLDS) for value in (1, 0)) for task in tasks}  # fmt: skip
    return {pool: tuple(task for task in tasks if fewest[task] >= pool) for pool in CURVE_POOLS}


def make_evaluation_set(
    shards: Path, fold: int | None, folds: Rows, tasks: Sequence[str], curve: CurveTasks, draws: int
) -> EvaluationSet:
    """Draw support sets for each task, from the patients outside the fold, or from split train (fold None).

    folds: from assign_folds. Raises InputError if a task has too few examples.
    """
    labels = resolve_labels(read_all_labels(shards, read_manifest(shards)), tasks, "exclude", "exclude")
    if fold is not None:
        labels, held_out = fold_splits(labels, folds, fold), "test"
    else:
        held_out = CHOOSING
        labels.loc[~labels["split"].isin(("train", held_out)), [*tasks]] = np.nan  # neither learned from nor tested on
    tested = (labels["split"] == held_out).to_numpy()
    patients = np.full(len(labels), -1)
    patients[tested] = pd.factorize(labels["patient"][tested])[0]
    most = {task: max([SHOTS, *(pool for pool, own in curve.items() if task in own)]) for task in tasks}
    drawn = {}
    for task in tasks:
        try:
            drawn[task] = make_draws(labels, task, shots=most[task], draws=draws, seed=0)
            drawn[task].support(SHOTS)
        except NotMeasurable as reason:
            where = "on the patients of split valid" if fold is None else f"in fold {fold}"
            raise InputError(f"{shards}: {task} can't be measured with {SHOTS} shots {where} ({reason}); build shards "
                             "of more images") from None  # fmt: skip
    return EvaluationSet(fold, labels, drawn, patients, curve)


def read_all_labels(shards: Path, manifest: Manifest) -> pd.DataFrame:
    """Read the labels of all splits."""
    return read_labels(shards, manifest, tuple(manifest.counts))
