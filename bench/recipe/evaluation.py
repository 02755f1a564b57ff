"""Evaluate the runs of the recipe study: few-shot AUROC on the patients of one split."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from probe.baselines import scratch_encoder, thumbnail_encoder
from probe.encoder import Encoder
from probe.encoders import open_encoder
from probe.features import read_features
from probe.fewshot import Draws, NotMeasurable, Rows, make_draws, number_patients, resolve_labels
from probe.linear import probe_draws
from probe.slices import count_patients, withhold
from probe.statistics import Scores, Supports, mean_of, resample, score
from shard.errors import InputError
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels
from train.frozen_features import Features, standardise
from train.weights.preprocessing import Input

TASKS = ("Cardiomegaly", "Effusion", "Pleural Effusion", "Lung Opacity")  # a data set has some of them; NIH has three
SHOTS = 10
MEAN = "mean"


@dataclass(frozen=True)
class EvaluationSet:
    """The few-shot draws of each task, tested on the images of one split.

    labels: of all images. draws: by task. patients: the number of each image's patient, [N], -1 in other splits.
    """

    split: str
    labels: pd.DataFrame
    draws: dict[str, Draws]
    patients: np.ndarray[tuple[int], np.dtype[np.int64]]

    def score(self, features: Features) -> dict[str, Scores]:
        """Compute the AUROC of each task and their mean, in every replicate of the bootstrap."""
        train = (self.labels["split"] == "train").to_numpy()
        standardised, scores = standardise(features, train), {}
        for task, draws in self.draws.items():
            rows, classes = draws.support(SHOTS)
            decisions = probe_draws(standardised, rows, classes, draws.test)
            resamples = resample(len(decisions), int(self.patients.max()) + 1)
            scores[task] = score(decisions, draws.test_labels, self.patients[draws.test], resamples,
                                 supports=self._people[rows]).of("auroc")  # fmt: skip
        return {**scores, MEAN: mean_of(list(scores.values()))}

    @functools.cached_property
    def _people(self) -> Rows:
        """The number of each image's patient, [N], whatever its split."""
        return number_patients(self.labels)

    def complete(self, scores: dict[str, Scores]) -> dict[str, Scores]:
        """Add the numbers of test patients and the supports to scores on this set that were read from a file."""
        completed = {}
        for task, draws in self.draws.items():
            rarer = min(count_patients(draws.test, draws.test_labels, self.patients))
            supports = Supports(self._people[draws.support(SHOTS)[0]])
            completed[task] = replace(scores[task], rarer=rarer, supports=supports)
        mean = mean_of(list(completed.values()))
        return {**completed, MEAN: replace(scores[MEAN], rarer=mean.rarer, supports=mean.supports)}

    def withheld(self) -> dict[str, str]:
        """Return task → reason for tasks, or their mean, with too few patients for an interval or a p value."""
        return withhold({task: count_patients(draws.test, draws.test_labels, self.patients)
                         for task, draws in self.draws.items()}, MEAN)  # fmt: skip


def available_tasks(manifest: Manifest) -> list[str]:
    """Return the tasks in TASKS for which the shards have labels."""
    return [task for task in TASKS if task in manifest.findings]


def make_evaluation_set(shards: Path, split: str, draws: int) -> EvaluationSet:
    """Draw support sets from training patients, to be tested on the patients of `split`.

    Raises InputError if a task has too few examples.
    """
    manifest = read_manifest(shards)
    tasks = available_tasks(manifest)
    labels = resolve_labels(read_labels(shards, manifest, tuple(manifest.counts)), tasks, "exclude", "exclude")
    other_splits = ~labels["split"].isin(("train", split))
    labels.loc[other_splits, tasks] = np.nan  # neither learned from nor tested on
    patients = np.full(len(labels), -1)
    held_out = (labels["split"] == split).to_numpy()
    patients[held_out] = pd.factorize(labels["patient"][held_out])[0]
    draws_by_task = {}
    for task in tasks:
        try:
            draws_by_task[task] = make_draws(labels, task, shots=SHOTS, draws=draws, seed=0)
            draws_by_task[task].support(SHOTS)
        except NotMeasurable as reason:
            raise InputError(f"{shards}: {task} can't be measured with {SHOTS} shots on split {split!r} ({reason}); "
                             "build shards of more images") from None  # fmt: skip
    return EvaluationSet(split, labels, draws_by_task, patients)


def check_evaluation_sets(shards: Path, draws: int) -> None:
    """Raise InputError if an evaluation set can't be made, before hours of training."""
    for split in ("valid", "test"):
        make_evaluation_set(shards, split, draws)


class EncoderFeatures:
    """The features of the studied encoders and of their baselines, cached on disk."""

    def __init__(self, shards: Path, cache: Path, workers: int) -> None:
        self._shards, self._cache, self._workers = shards, cache, workers
        self._manifest = read_manifest(shards)

    def trained(self, run: Path) -> Features:
        """Return the features of a run's newest checkpoint."""
        return self._features(open_encoder(run, "run", self._input(0), 0)[1])

    def scratch(self, arch: str, seed: int, size: int) -> Features:
        """Return the features of random weights."""
        return self._features(scratch_encoder(arch, seed, self._input(size)))

    def thumbnail(self, size: int) -> Features:
        """Return the features of the raw-pixel baseline."""
        return self._features(thumbnail_encoder(self._input(size)))

    def _input(self, size: int) -> Input:
        return Input(size, self._manifest.pixel_mean, self._manifest.pixel_std)

    def _features(self, encoder: Encoder) -> Features:
        features = read_features([encoder], self._shards, self._manifest, tuple(self._manifest.counts),
                                 cache=self._cache, batch_size=128, device=torch.device("cpu"),
                                 workers=self._workers)  # fmt: skip
        return features[encoder.name]
