"""The design of the recipe study: its patients, tasks and jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.recipe.evaluation import (
    EvaluationSet,
    choose_curve_tasks,
    choose_tasks,
    make_evaluation_set,
    read_all_labels,
)
from bench.recipe.folds import CHOOSING, assign_folds, build_fold_shards
from bench.recipe.grid import LITE0, RESNET18, Cell, file_name
from bench.recipe.job import Job, Kind
from bench.recipe.result import RunResult, read_result
from probe.fewshot import Rows
from shard.errors import InputError
from shard.manifest import Manifest

THUMBNAIL, IMAGENET = "thumbnail", "frozen ImageNet"
SCRATCH = {RESNET18: "random ResNet-18", LITE0: "random EfficientNet-Lite0"}
BASELINE_SIZES = (96, 128, 160, 224)  # for ImageNet's weights, whose best size is chosen too
SMALL = 96  # for the other baselines


def check_shards(shards: Path, manifest: Manifest) -> None:
    """Raise InputError if the shards lack a split, or the grouping by patient that the recipe needs."""
    missing = [split for split in ("train", CHOOSING, "test") if not manifest.images(split)]
    if missing:
        raise InputError(f"{shards}: has no images in split {' and '.join(missing)}; NIH's shards have all three: "
                         "python -m shard build SRC OUT --dataset=nih --partners=3")  # fmt: skip
    if not manifest.settings.get("partners"):
        raise InputError(f"{shards}: does not keep a patient's images together, as the recipe requires; build shards "
                         "with: python -m shard build SRC OUT --partners=3")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The training and evaluation of the chosen cells."""

    shards: Path
    manifest: Manifest
    imagenet: Path
    out: Path
    results: Path
    cells: list[Cell]
    seeds: int
    draws: int
    workers: int

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The labels of all images."""
        return read_all_labels(self.shards, self.manifest)

    @cached_property
    def folds(self) -> Rows:
        """The fold of each image."""
        return assign_folds(self.labels, self.manifest.findings)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks. Raises InputError if no finding qualifies."""
        tasks = choose_tasks(self.labels, self.manifest.findings)
        if not tasks:
            raise InputError(f"{self.shards}: no finding has enough positive patients; build shards of more images")
        return tasks

    @cached_property
    def curve(self) -> dict[int, tuple[str, ...]]:
        """The tasks of the curve over labels."""
        return choose_curve_tasks(self.labels, self.folds, self.tasks)

    def evaluation_set(self, fold: int | None) -> EvaluationSet:
        """The evaluation set of a fold, or of validation patients."""
        curve = {} if fold is None else self.curve
        return make_evaluation_set(self.shards, fold, self.folds, self.tasks, curve, self.draws)

    def choice_jobs(self) -> list[Job]:
        """List the jobs of the choice: baselines, then each cell, seed by seed."""
        runs = [self.run(cell, seed, None, cell.sizes()) for seed in range(self.seeds) for cell in self.cells]
        poolings = dict.fromkeys(cell.pooling for cell in self.cells if cell.pooling)
        pooled = [self._imagenet(None, BASELINE_SIZES, pooling) for pooling in poolings]
        return [*self.baselines(None, BASELINE_SIZES, self.seeds), *pooled, *runs]

    def run(self, cell: Cell, seed: int, fold: int | None, sizes: tuple[int, ...]) -> Job:
        """Return the job of a run; fold None for the choice."""
        settings = cell.all_settings()
        if "init" in settings:
            settings["init"] = str(self.imagenet.absolute())
        shards = self.shards if fold is None else self.out / f"shards-{fold}"
        return self._job("run", cell.name, settings, seed, sizes, fold, str(shards), cell.trained, cell.pooling)

    def baselines(self, fold: int | None, imagenet_sizes: tuple[int, ...], seeds: int) -> list[Job]:
        """Return the jobs of the baselines. Random weights have several seeds."""
        return [
            self._job("thumbnail", "thumbnail", {}, 0, (SMALL,), fold),
            self._imagenet(fold, imagenet_sizes),
            *(self._job("scratch", f"scratch-{arch.rpartition('/')[2]}", {"arch": arch}, seed, (SMALL,), fold)
              for arch in SCRATCH for seed in range(seeds)),
        ]  # fmt: skip

    def _imagenet(self, fold: int | None, sizes: tuple[int, ...], pooling: str = "") -> Job:
        weights = {"arch": LITE0, "weights": str(self.imagenet.absolute())}
        name = f"imagenet, {pooling}" if pooling else "imagenet"
        return self._job("imagenet", name, weights, 0, sizes, fold, pooling=pooling)

    def _job(
        self, kind: Kind, name: str, settings: dict[str, Any], seed: int, sizes: tuple[int, ...], fold: int | None,
        train_shards: str = "", trained: str = "", pooling: str = "",
    ) -> Job:  # fmt: skip
        stage = "choice" if fold is None else "claim"
        part = f"seed-{seed}" + (f".fold-{fold}" if fold is not None else "")
        run, result = self.out / stage / f"{file_name(trained or name)}.{part}", f"{file_name(name)}.{part}.npz"
        features = run / "features" if kind == "run" else self.out / "features"
        return Job(kind, name, settings, seed, sizes, fold, str(self.shards), train_shards, str(run), str(features),
                   str(self.results / stage / result), self.tasks, {} if fold is None else self.curve, self.draws,
                   self.workers, pooling)  # fmt: skip

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs without a result."""
        pending = [job for job in jobs if self.read(job) is None]
        for job in pending:
            if job.result_path.exists():
                print(f"{job.result_path}: corrupt, or computed with other draws, settings or shards; computing it "
                      "again", file=sys.stderr)  # fmt: skip
        if any(job.fold is not None and job.kind == "run" for job in pending):
            build_fold_shards(self.shards, self.manifest, self.folds, self.out)
        return pending

    def read(self, job: Job) -> RunResult | None:
        """Read the result of a job, if there is one."""
        return read_result(job.result_path, job.identity())

    def name(self, job: Job) -> str:
        """Name the encoder of a job, as tables do."""
        if job.kind == "imagenet":
            return f"{IMAGENET}, {job.pooling}" if job.pooling else IMAGENET
        return {"thumbnail": THUMBNAIL, "run": job.cell}.get(job.kind) or SCRATCH[job.settings["arch"]]

    def patients(self, choosing: bool) -> int:
        """Count the patients who choose the recipe, or those who are tested."""
        return int(self.labels.loc[(self.labels["split"] == CHOOSING) == choosing, "patient"].nunique())

    def positive_patients(self, task: str) -> int:
        """Count the tested patients with a positive image."""
        tested = self.labels[self.labels["split"] != CHOOSING]
        return int(tested.loc[tested[task] == 1, "patient"].nunique())
