"""A study: what a report compares, opened and checked from its settings: encoders, labels, and draws of each task."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.augmentation import Augmentation
from probe.baselines import baseline_names
from probe.draws_file import read_draws, write_draws
from probe.encoder import Encoder
from probe.encoders import open_encoders
from probe.fewshot import (
    Draws,
    NotMeasurable,
    Rows,
    Shots,
    fraction_parts,
    make_draws,
    number_patients,
    resolve_labels,
)
from probe.names import name_mean
from probe.settings import Settings
from probe.slices import Slice, count_patients, find_slices, withhold
from probe.used_images import choose_images, renumber
from shard.errors import InputError
from shard.formats import TASKS
from shard.manifest import Manifest, read_manifest
from shard.progress import Progress
from shard.read import read_labels
from train.weights.preprocessing import Input


@dataclass(frozen=True)
class Study:
    """Encoders and the data that they are measured on.

    labels: shard.read.read_labels, resolved to 1, 0 and NaN, of the images whose features are computed; everything
    else numbers the images by their place there. rows: their rows in the labels of all images, ascending. reference:
    mask of the training images that features are standardised by. tasks: the requested ones. drawn: the draws of each
    measurable task; measured: its numbers of shots. unmeasured: why the others are not measured, as sentences.
    """

    settings: Settings
    manifest: Manifest
    labels: pd.DataFrame
    rows: Rows
    reference: npt.NDArray[np.bool_]
    encoders: list[Encoder]
    tasks: list[str]
    drawn: dict[str, Draws]
    measured: dict[str, list[Shots]]
    unmeasured: list[str]

    @property
    def available(self) -> list[Encoder]:
        """The encoders whose weights are available."""
        return [encoder for encoder in self.encoders if encoder.module is not None]

    @property
    def given(self) -> list[Encoder]:
        """The encoders that the report is about: all but the baselines."""
        return [encoder for encoder in self.encoders if encoder.name not in baseline_names()]

    @functools.cached_property
    def mean(self) -> str:
        """The name of the mean over tasks, which no finding of the archive has."""
        return name_mean(self.manifest.findings)

    @property
    def draws(self) -> int:
        """The number of draws of each task."""
        return len(next(iter(self.drawn.values())).balanced)

    @property
    def headline(self) -> Shots:
        """The number of shots of most tables: the settings' headline, or the next smaller that was measured."""
        headline, found = self.settings.headline, {shots for task in self.measured.values() for shots in task}
        fewer = [shots for shots in self.settings.all_shots if shots in found and shots != "all"
                 and (headline == "all" or shots <= headline)]  # fmt: skip
        return headline if headline in found else max(fewer) if fewer else next(iter(found))

    @functools.cached_property
    def patients(self) -> Rows:
        """The number of each image's held-out patient, [images]; -1 for training images.

        All tasks share the numbers, so that each replicate of a mean over tasks resamples the same patients.
        """
        held_out = np.asarray(self.labels["split"] != "train")
        numbers = np.full(len(held_out), -1)
        numbers[held_out] = np.unique(self.labels["patient"].to_numpy()[held_out], return_inverse=True)[1]
        return numbers

    @functools.cached_property
    def people(self) -> Rows:
        """The number of each image's patient, [images], whatever its split."""
        return number_patients(self.labels)

    @functools.cached_property
    def slices(self) -> list[Slice]:
        """The slices of the test images."""
        return find_slices(self.labels)

    @functools.cached_property
    def withheld(self) -> dict[str, str]:
        """The tasks, and their mean, for which no interval, p value or verdict is given, with the reason."""
        return withhold({task: count_patients(draws.test, draws.test_labels, self.patients)
                         for task, draws in self.drawn.items()}, self.mean)  # fmt: skip

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash everything that the results depend on, except the versions of libraries."""
        inputs = [self.settings.decisive(), self.manifest.fingerprint(),
                  *((encoder.name, encoder.sha256()) for encoder in self.encoders),
                  hashlib.sha256(write_draws(self.drawn, self.labels)).hexdigest()]  # fmt: skip
        return hashlib.sha256(json.dumps(inputs, allow_nan=False).encode()).hexdigest()


def open_study(settings: Settings) -> Study:
    """Open and check everything that a report needs. Raises InputError before any work if something can't be used."""
    manifest = read_manifest(settings.folder)
    tasks = choose_tasks(settings, manifest)
    if not [split for split in manifest.counts if split != "train"]:
        raise InputError(f"{settings.shards}: has only a training split; probes need a valid or test split")
    default = Input(settings.size or Augmentation.size, manifest.pixel_mean, manifest.pixel_std)
    encoders = open_encoders(settings.encoders, settings.baselines, default=default, size=settings.size,
                             imagenet_weights=settings.imagenet_weights, seed=settings.seed,
                             inputs=settings.input)  # fmt: skip
    labels = resolve_labels(read_labels(settings.folder, manifest, tuple(manifest.counts)), manifest.findings,
                            settings.uncertain, settings.blank)  # fmt: skip
    drawn, unmeasured = _draws_of_tasks(settings, labels, tasks)
    if settings.draws_file is not None and not settings.tasks:
        tasks = [task for task in tasks if task in drawn]
    measured: dict[str, list[Shots]] = {}
    for task, draws in list(drawn.items()):
        measured[task] = []
        for shots in settings.all_shots:
            try:
                draws.support(shots)
                measured[task].append(shots)
            except NotMeasurable as reason:
                unmeasured.append(f"{task} is not measurable with {shots} shots: {reason}")
        if not measured[task]:
            del drawn[task], measured[task]
    if not drawn:
        raise InputError(f"--shots={','.join(settings.shots)}: no task can be measured ({'; '.join(unmeasured)}); give "
                         "fewer shots, other --tasks or draws, or shards with more labels")  # fmt: skip
    drawn = {task: draws.truncate(measured[task]) for task, draws in drawn.items()}
    for task, draws in drawn.items():
        for share in sorted(set(settings.fractions)):
            try:
                draws.fractions[share] = fraction_parts(labels, task, share, seed=settings.seed,
                                                        limit=settings.all_limit)  # fmt: skip
            except NotMeasurable as reason:
                unmeasured.append(f"{task} is not measurable with {share:g} of its labels: {reason}")
    rows, reference = choose_images(labels, drawn.values(), settings.seed)
    return Study(settings, manifest, labels.iloc[rows], rows, reference, encoders, tasks,
                 {task: renumber(draws, rows) for task, draws in drawn.items()}, measured, unmeasured)  # fmt: skip


def choose_tasks(settings: Settings, manifest: Manifest) -> list[str]:
    """Choose the findings to probe: the requested ones, else those of the published study that the archive has.

    If it lacks some of these, prints the chosen and the other findings to stderr. Raises InputError if none is left.
    """
    for task in settings.tasks:
        if task not in manifest.findings:
            raise InputError(f"--tasks={task}: not a finding of {settings.shards}; "
                             f"available: {', '.join(manifest.findings)}")  # fmt: skip
    if settings.tasks:
        return list(dict.fromkeys(settings.tasks))
    chosen = [task for task in TASKS if task in manifest.findings]
    if not chosen:
        raise InputError(f"{settings.shards}: none of {', '.join(TASKS)} is one of its findings; "
                         "choose some with --tasks=A,B")  # fmt: skip
    if len(chosen) < len(TASKS):  # another archive may name the same finding differently
        others = ", ".join(name for name in manifest.findings if name not in chosen)
        print(f"tasks: {', '.join(chosen)}, as in the published study"
              + (f"; --tasks=A,B chooses others of: {others}" if others else ""), file=sys.stderr)  # fmt: skip
    return chosen


def _draws_of_tasks(settings: Settings, labels: pd.DataFrame, tasks: list[str]) -> tuple[dict[str, Draws], list[str]]:
    """Sample the draws of each task, or read them from --draws-file; also return why some tasks have none."""
    drawn, unmeasured = {}, []
    all_limit = settings.all_limit if "all" in settings.shots else 0
    given = (read_draws(settings.draws_file, labels, all_limit=all_limit, seed=settings.seed)
             if settings.draws_file is not None else {})  # fmt: skip
    if len({len(draws.balanced) for draws in given.values()}) > 1:
        raise InputError(f"--draws-file={settings.draws_file}: the number of draws differs between tasks; give a "
                         "draws.csv that a report wrote")  # fmt: skip
    with Progress("sampling draws", len(tasks), "tasks") as progress:
        for task in progress.counted(tasks):
            try:
                if settings.draws_file is None:
                    drawn[task] = make_draws(labels, task, shots=settings.most_shots, draws=settings.draws,
                                             seed=settings.seed, all_limit=all_limit)  # fmt: skip
                elif task in given:
                    drawn[task] = given[task]
                else:
                    unmeasured.append(f"{task} is not in {settings.draws_file}")
            except NotMeasurable as reason:
                unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured
