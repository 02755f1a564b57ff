"""What the runs of the recipe study are worth: few-shot AUROC on the patients of one split, over draws, patients and
seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from probe.baselines import scratch_encoder, thumbnail_encoder
from probe.encoder import Encoder
from probe.encoders import open_encoder
from probe.features import read_features
from probe.fewshot import Draws, NotMeasurable, make_draws, resolve_labels
from probe.linear import probe_draws
from probe.preprocessing import Input
from probe.slices import count_patients, withhold
from probe.statistics import Effect, Scores, holm, mean_of, over_seeds, resample, score
from shard.errors import InputError
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels
from train.frozen_features import Features, standardise

TASKS = ("Cardiomegaly", "Effusion", "Pleural Effusion", "Lung Opacity")  # of which a set has some; NIH's has three
SHOTS = 10
MEAN = "mean"
Seeds = dict[str, list[Scores]]  # task → the scores of each seed
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Exam:
    """The draws of each task whose test images are of one split alone, and those images' patients by number."""

    split: str
    labels: pd.DataFrame
    drawn: dict[str, Draws]
    patients: np.ndarray[tuple[int], np.dtype[np.int64]]

    def score(self, features: Features) -> dict[str, Scores]:
        """The AUROC of each task, and the mean over them, in every replicate."""
        train = (self.labels["split"] == "train").to_numpy()
        standard, found = standardise(features, train), {}
        for task, draws in self.drawn.items():
            decisions = probe_draws(standard, *draws.support(SHOTS), draws.test)
            resamples = resample(len(decisions), int(self.patients.max()) + 1)
            found[task] = score(decisions, draws.test_labels, self.patients[draws.test], resamples).of("auroc")
        return {**found, MEAN: mean_of(list(found.values()))}

    def withheld(self) -> dict[str, str]:
        """The tasks, and the mean over them, with too few patients for an interval or a p value, and why."""
        return withhold({task: count_patients(draws.test, draws.test_labels, self.patients)
                         for task, draws in self.drawn.items()}, MEAN)  # fmt: skip


def tasks_of(manifest: Manifest) -> list[str]:
    """Which of TASKS the shards have labels of."""
    return [task for task in TASKS if task in manifest.findings]


def set_exam(shards: Path, split: str, draws: int) -> Exam:
    """The exam on the patients of a split; what supports it is of training patients, as ever.

    Raises InputError where a task has too few examples.
    """
    manifest = read_manifest(shards)
    tasks = tasks_of(manifest)
    labels = resolve_labels(read_labels(shards, manifest, tuple(manifest.counts)), tasks, "exclude", "exclude")
    others = ~labels["split"].isin(("train", split))
    labels.loc[others, tasks] = np.nan  # neither learned from nor tested on
    patients = np.full(len(labels), -1)
    held_out = (labels["split"] == split).to_numpy()
    patients[held_out] = pd.factorize(labels["patient"][held_out])[0]
    drawn = {}
    for task in tasks:
        try:
            drawn[task] = make_draws(labels, task, shots=SHOTS, draws=draws, seed=0)
            drawn[task].support(SHOTS)
        except NotMeasurable as reason:
            raise InputError(f"{shards}: {task} is not measurable with {SHOTS} shots on split {split!r} ({reason}); "
                             "build shards of more images") from None  # fmt: skip
    return Exam(split, labels, drawn, patients)


def check_exams(shards: Path, draws: int) -> None:
    """Raise InputError where an exam of the study could not be set, which would show after hours of training."""
    for split in ("valid", "test"):
        set_exam(shards, split, draws)


class Candidates:
    """The encoders under study and what they are measured against, with their features, which are kept in a cache."""

    def __init__(self, shards: Path, cache: Path, workers: int) -> None:
        self._shards, self._cache, self._workers = shards, cache, workers
        self._manifest = read_manifest(shards)

    def trained(self, run: Path) -> Features:
        """Features of a run's newest checkpoint."""
        return self._features(open_encoder(run, "run", self._input(0), 0)[1])

    def scratch(self, arch: str, seed: int, size: int) -> Features:
        """Of random weights."""
        return self._features(scratch_encoder(arch, seed, self._input(size)))

    def thumbnail(self, size: int) -> Features:
        """Of the raw-pixel baseline."""
        return self._features(thumbnail_encoder(self._input(size)))

    def _input(self, size: int) -> Input:
        return Input(size, self._manifest.pixel_mean, self._manifest.pixel_std)

    def _features(self, encoder: Encoder) -> Features:
        found = read_features([encoder], self._shards, self._manifest, tuple(self._manifest.counts), cache=self._cache,
                              batch_size=128, device=torch.device("cpu"), workers=self._workers)  # fmt: skip
        return found[encoder.name]


def by_task(scored: Sequence[dict[str, Scores]]) -> Seeds:
    """What each seed's exam gave, task by task."""
    return {task: [one[task] for one in scored] for task in scored[0]}


def difference(mine: Sequence[Scores], theirs: Sequence[Scores], *, withheld: bool = False) -> Effect:
    """Mine less theirs on one task, seed against seed; what has one, such as the thumbnail, is against every seed.

    Where one side has more seeds, the first ones are compared. withheld: without an interval and a p value.
    """
    against = theirs if len(theirs) > 1 else [*theirs] * len(mine)
    effect = over_seeds([one - other for one, other in zip(mine, against, strict=False)])
    return effect._replace(low=math.nan, high=math.nan, p=math.nan) if withheld else effect


def correct(effects: Mapping[Name, Effect]) -> dict[Name, Effect]:
    """The same with their p values corrected for how many they are (Holm)."""
    corrected = holm([effect.p for effect in effects.values()])
    return {name: effect._replace(p=p) for (name, effect), p in zip(effects.items(), corrected, strict=True)}
