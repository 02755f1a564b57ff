"""A study: settings → everything a report measures with: the encoders, the labels, and the draws of each task."""

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
from probe.draws_file import read_draws, write_draws
from probe.encoders import Encoder, open_encoders
from probe.fewshot import Draws, NotMeasurable, Rows, Shots, make_draws, resolve_labels
from probe.names import name_mean
from probe.preprocessing import Input
from probe.settings import Settings
from probe.slices import count_patients, withhold
from shard.errors import InputError
from shard.formats import TASKS
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels


@dataclass(frozen=True)
class Study:
    """What is measured, and on what.

    labels: shard.read.read_labels, resolved to 1, 0 and NaN; tasks: those asked for; drawn: the draws of those that can
    be measured; measured: with how many shots each; unmeasured: why not the others, in words.
    """

    settings: Settings
    manifest: Manifest
    labels: pd.DataFrame
    encoders: list[Encoder]
    tasks: list[str]
    drawn: dict[str, Draws]
    measured: dict[str, list[Shots]]
    unmeasured: list[str]

    @property
    def present(self) -> list[Encoder]:
        """The encoders that can be had."""
        return [one for one in self.encoders if one.module is not None]

    @functools.cached_property
    def mean(self) -> str:
        """What the mean over tasks is called: as no finding of the archive is."""
        return name_mean(self.manifest.findings)

    @functools.cached_property
    def train(self) -> npt.NDArray[np.bool_]:
        """[images] whether an image is of the training split."""
        return np.asarray(self.labels["split"] == "train")

    @property
    def draws(self) -> int:
        """How many draws there are of each task."""
        return len(next(iter(self.drawn.values())).balanced)

    @property
    def headline(self) -> Shots:
        """The number of shots that most tables are of: what was wished for, or the nearest fewer that was measured."""
        wanted, found = self.settings.headline, {shots for some in self.measured.values() for shots in some}
        fewer = [shots for shots in self.settings.all_shots if shots in found and shots != "all"
                 and (wanted == "all" or shots <= wanted)]  # fmt: skip
        return wanted if wanted in found else max(fewer) if fewer else next(iter(found))

    @functools.cached_property
    def patients(self) -> Rows:
        """[images] a number for each held-out patient whatever the task, -1 for training images.

        The same for all tasks, so that a mean over tasks is of the same patients in each replicate.
        """
        numbers = np.full(len(self.train), -1)
        numbers[~self.train] = np.unique(self.labels["patient"].to_numpy()[~self.train], return_inverse=True)[1]
        return numbers

    @functools.cached_property
    def withheld(self) -> dict[str, str]:
        """The tasks, and their mean, of which no interval, p value or verdict is given, and why."""
        return withhold({task: count_patients(draws.test, draws.test_labels, self.patients)
                         for task, draws in self.drawn.items()}, self.mean)  # fmt: skip

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that the figures depend on, but the versions of libraries."""
        decides = [self.settings.decisive(), self.manifest.fingerprint(),
                   *((one.name, one.sha256()) for one in self.encoders),
                   hashlib.sha256(write_draws(self.drawn, self.labels)).hexdigest()]  # fmt: skip
        return hashlib.sha256(json.dumps(decides, allow_nan=False).encode()).hexdigest()


def open_study(settings: Settings) -> Study:
    """Read and check all of it. Raises InputError, before any work, where something can't be used."""
    manifest = read_manifest(settings.shards)
    tasks = choose_tasks(settings, manifest)
    if not [split for split in manifest.counts if split != "train"]:
        raise InputError(f"{settings.shards}: has a training split alone; a probe is tested on patients of another")
    otherwise = Input(settings.size or Augmentation.size, manifest.pixel_mean, manifest.pixel_std)
    encoders = open_encoders(settings.encoders, settings.baselines, otherwise=otherwise, size=settings.size,
                             imagenet_weights=settings.imagenet_weights, seed=settings.seed,
                             inputs=settings.input)  # fmt: skip
    labels = resolve_labels(read_labels(settings.shards, manifest, tuple(manifest.counts)), manifest.findings,
                            settings.uncertain, settings.blank)  # fmt: skip
    drawn, unmeasured = _draw(settings, labels, tasks)
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
        raise InputError(f"--shots={','.join(settings.shots)}: no task can be measured ({'; '.join(unmeasured)}); ask "
                         "for fewer shots, other --tasks or draws, or give shards with more labels")  # fmt: skip
    return Study(settings, manifest, labels, encoders, tasks, drawn, measured, unmeasured)


def choose_tasks(settings: Settings, manifest: Manifest) -> list[str]:
    """The findings to probe: those asked for, else those of the published study that the archive has.

    Says so, and what else there is, where it lacks one. Raises InputError where there is nothing to probe.
    """
    for task in settings.tasks:
        if task not in manifest.findings:
            raise InputError(f"--tasks={task}: not a finding of {settings.shards}; "
                             f"it has: {', '.join(manifest.findings)}")  # fmt: skip
    if settings.tasks:
        return list(dict.fromkeys(settings.tasks))
    chosen = [task for task in TASKS if task in manifest.findings]
    if not chosen:
        raise InputError(f"{settings.shards}: none of {', '.join(TASKS)} is a finding of it; "
                         "name some with --tasks=A,B")  # fmt: skip
    if len(chosen) < len(TASKS):  # another archive, which may call the same thing by another name
        print(f"tasks: {', '.join(chosen)}, as in the published study; --tasks=A,B takes others of: "
              f"{', '.join(name for name in manifest.findings if name not in chosen)}", file=sys.stderr)  # fmt: skip
    return chosen


def _draw(settings: Settings, labels: pd.DataFrame, tasks: list[str]) -> tuple[dict[str, Draws], list[str]]:
    """The draws of each task that has test images, made or read, and why the others have none."""
    drawn, unmeasured = {}, []
    given = read_draws(settings.draws_file, labels) if settings.draws_file is not None else {}
    if len({len(draws.balanced) for draws in given.values()}) > 1:
        raise InputError(f"--draws-file={settings.draws_file}: not as many draws for one task as for another")
    for task in tasks:
        try:
            if settings.draws_file is None:
                drawn[task] = make_draws(labels, task, shots=settings.most_shots, draws=settings.draws,
                                         seed=settings.seed)  # fmt: skip
            elif task in given:
                drawn[task] = given[task]
            else:
                unmeasured.append(f"{task} is not in {settings.draws_file}")
        except NotMeasurable as reason:
            unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured
