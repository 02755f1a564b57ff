"""Run the recipe study: what do ten shots give, from ImageNet's weights, from random ones, and after pre-training?

python -m bench.recipe SHARDS --imagenet=FILE --out=DIR. The recipe is chosen on the patients of split valid, from the
cells of bench/recipe/grid.py. All other patients are tested once, by cross-fitting: encoders are pre-trained on the
patients outside a fold, and tested on the fold.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from scipy.stats import norm

from bench.recipe.comparison import MEAN, Seeds, paired
from bench.recipe.evaluation import (
    EvaluationSet,
    choose_curve_tasks,
    choose_tasks,
    make_evaluation_set,
    read_all_labels,
)
from bench.recipe.folds import CHOOSING, FOLDS, assign_folds, build_fold_shards
from bench.recipe.grid import (
    CELLS,
    CONTINUED,
    FROM_IMAGENET,
    LITE0,
    RANDOM,
    RANDOM_LR,
    RESNET18,
    Arm,
    Cell,
    choose_cells,
)
from bench.recipe.job import Job
from bench.recipe.jobs import job_workers
from bench.recipe.result import RunResult, read_result
from probe.fewshot import Rows
from probe.statistics import estimate, mean_of, over_seeds
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.flags import SHARDS, Flag, validate_call
from shard.machine import cores
from shard.manifest import Manifest, read_manifest

CHOICE = "choice.json"
SAME_FROM_RANDOM, PUBLISHED = "the same from random weights", "published"
THUMBNAIL, IMAGENET = "thumbnail", "ImageNet, frozen"
SCRATCH = {RESNET18: "ResNet-18, random", LITE0: "EfficientNet-Lite0, random"}
BASELINE_SIZES = (96, 128, 160, 224)  # for ImageNet's weights, whose best size is chosen too
SMALL = 96  # for the other baselines


@validate_call
def bench_recipe(
    shards: Annotated[Place, replace(SHARDS, help="Folder of JPEG shards, or its address. They are built with "
                                     "--partners and have the splits train, valid and test.")], *,
    imagenet: Annotated[Path, Flag("File of ImageNet's weights of EfficientNet-Lite0, with timm's names.",
                                   metavar="FILE")],
    out: Annotated[Path, Flag("Folder for the runs.", metavar="DIR")],
    results: Annotated[Path | None, Flag("Folder for the results, small files. A run with a result is not trained "
                                         "again.", metavar="DIR", default="OUT/results")] = None,
    cells: Annotated[tuple[str, ...], Flag("Cells of the grid to train; bench/recipe/grid.py lists them.",
                                           metavar="NAME,…", default="all")] = (),
    seeds: Annotated[int, Flag("Seeds of each cell.", low=1, high=100)] = 3,
    claim: Annotated[int, Flag("Seeds of the claim, which is made with the chosen cells on all patients who chose "
                               "nothing; 0 makes none.", low=0, high=100)] = 0,
    draws: Annotated[int, Flag("Support sets of a task, the same for all encoders.", low=2, high=10**4)] = 100,
    jobs: Annotated[int, Flag("Runs trained at the same time. A GPU has room for several small ones.",
                              low=1, high=256)] = 1,
    minutes: Annotated[float, Flag("Start no run after this time; 0 sets no limit.", low=0, high=10**5)] = 0.0,
    workers: Annotated[int, Flag("Loader threads of a run; 0 divides the cores among the runs.",
                                 low=0, high=4096)] = 0,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Choose a recipe on validation patients, and test it, with its rivals, on all other patients.

    The same command resumes a study that was stopped. The first command chooses; --claim then tests the choice, which
    is kept in --results and not made again.

        python -m bench.recipe nih --imagenet=lite0.safetensors --out=runs/recipe
        python -m bench.recipe nih --imagenet=lite0.safetensors --out=runs/recipe --claim=5
    """
    folder = open_shards(shards, cache)
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    if not imagenet.is_file():
        raise InputError(f"--imagenet={imagenet}: no such file; give ImageNet's weights of EfficientNet-Lite0")
    study = Study(folder, manifest, imagenet, out, results or out / "results", choose_cells(cells), seeds, draws,
                  workers or max(1, cores() // jobs))
    with job_workers(jobs, out / "workers.log", minutes) as pool:
        pool.run(study.pending(study.choice_jobs()))
        print(study.describe_candidates())
        if claim:
            choice = study.choose(claim)
            print(choice.describe(), flush=True)
            pool.run(study.pending(study.claim_jobs(choice, claim)))


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
class Choice:
    """What validation patients chose: the cell of each arm with the size of its images, and ImageNet's size.

    power: rival → the difference that the claim finds in 80 % of studies, stated before its runs were trained.
    """

    cells: dict[Arm, tuple[str, int]]
    imagenet_size: int
    power: dict[str, float]

    def describe(self) -> str:
        """Describe the choice for people."""
        cells = "; ".join(f"{arm}: {name!r}, tested at {size} px" for arm, (name, size) in self.cells.items())
        power = ", ".join(f"{rival} {difference:.3f}" for rival, difference in self.power.items())
        return (f"chosen on validation patients: {cells}; ImageNet's weights at {self.imagenet_size} px\n"
                f"the difference of the mean that the claim finds in 80 % of studies, less {power}")  # fmt: skip


def claim_cells(choice: Choice) -> list[tuple[Cell, int]]:
    """Return the cells of the claim with the sizes of their images: the chosen ones, and what they are compared with.

    These are the continued cell from random weights instead of ImageNet's, and the published recipe with the views'
    size, epochs and network of the cell from random weights.
    """
    known = {cell.name: cell for cell in CELLS}
    (continued, continued_size), (own, own_size) = (choice.cells[arm] for arm in (CONTINUED, RANDOM))
    same = {name: value for name, value in known[continued].settings.items()
            if name not in FROM_IMAGENET and name != "freeze_batchnorm"}  # fmt: skip
    network = {name: known[own].all_settings()[name] for name in ("arch", "size", "epochs")}
    return [(known[continued], continued_size), (known[own], own_size),
            (Cell(SAME_FROM_RANDOM, "", {**same, "lr": RANDOM_LR}), continued_size),
            (Cell(PUBLISHED, "", {**network, "lr": RANDOM_LR}), own_size)]  # fmt: skip


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
        """The tasks. Raises InputError if there is none."""
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
        runs = [self._run(cell, seed, None, cell.sizes()) for seed in range(self.seeds) for cell in self.cells]
        return [*self._baselines(None, BASELINE_SIZES, self.seeds), *runs]

    def claim_jobs(self, choice: Choice, seeds: int) -> list[Job]:
        """List the jobs of the claim: the chosen cells and their rivals, cell by cell, then baselines."""
        baselines = [job for fold in range(FOLDS)
                     for job in self._baselines(fold, (choice.imagenet_size,), seeds)]  # fmt: skip
        runs = [self._run(cell, seed, fold, (size,)) for cell, size in claim_cells(choice)
                for seed in range(seeds) for fold in range(FOLDS)]  # fmt: skip
        return [*runs, *baselines]

    def _run(self, cell: Cell, seed: int, fold: int | None, sizes: tuple[int, ...]) -> Job:
        settings = cell.all_settings()
        if "init" in settings:
            settings["init"] = str(self.imagenet.absolute())
        shards = self.shards if fold is None else self.out / f"shards-{fold}"
        return self._job("run", cell.folder, settings, seed, sizes, fold, str(shards))

    def _baselines(self, fold: int | None, imagenet_sizes: tuple[int, ...], seeds: int) -> list[Job]:
        weights = {"arch": LITE0, "weights": str(self.imagenet.absolute())}
        return [
            self._job("thumbnail", "thumbnail", {}, 0, (SMALL,), fold),
            self._job("imagenet", "imagenet", weights, 0, imagenet_sizes, fold),
            *(self._job("scratch", f"scratch-{arch.rpartition('/')[2]}", {"arch": arch}, seed, (SMALL,), fold)
              for arch in SCRATCH for seed in range(seeds)),
        ]  # fmt: skip

    def _job(
        self, kind: Any, name: str, settings: dict[str, Any], seed: int, sizes: tuple[int, ...], fold: int | None,
        train_shards: str = "",
    ) -> Job:  # fmt: skip
        stage = "choice" if fold is None else "claim"
        run = f"{name}.seed-{seed}" + (f".fold-{fold}" if fold is not None else "")
        features = self.out / stage / run / "features" if kind == "run" else self.out / "features"
        return Job(kind, settings, seed, sizes, fold, str(self.shards), train_shards, str(self.out / stage / run),
                   str(features), str(self.results / stage / f"{run}.npz"), self.tasks,
                   {} if fold is None else self.curve, self.draws, self.workers)  # fmt: skip

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

    def candidates(self) -> dict[tuple[str, int], Seeds]:
        """Return the scores of each cell and baseline on validation patients, by its name and the size of its images.

        Seeds without a result are left out.
        """
        found: dict[tuple[str, int], Seeds] = {}
        evaluation_set = self.evaluation_set(None)
        for name, job in [(self._name(job), job) for job in self.choice_jobs()]:
            result = self.read(job)
            for size, scores in (result.scores if result else {}).items():
                complete = evaluation_set.complete(scores)
                found.setdefault((name, size), []).append({**complete, MEAN: mean_of([*complete.values()])})
        return found

    def _name(self, job: Job) -> str:
        if job.kind == "run":
            return next(cell.name for cell in self.cells if job.name.startswith(f"{cell.folder}.seed-"))
        return {"thumbnail": THUMBNAIL, "imagenet": IMAGENET}.get(job.kind) or SCRATCH[job.settings["arch"]]

    def describe_candidates(self) -> str:
        """Render a table of all candidates on validation patients: the mean over tasks and seeds, the best first."""
        rows = []
        for (name, size), seeds in self.candidates().items():
            values = [float(scores[MEAN].both[0]) for scores in seeds]
            spread = f"{pd.Series(values).std():.4f}" if len(values) > 1 else ""
            rows.append((sum(values) / len(values), f"{name} | {size} | {len(values)} | {spread}"))
        lines = [f"{mean:.4f} | {row}" for mean, row in sorted(rows, reverse=True)]
        return "\n".join(["mean | cell | px | seeds | SD of seeds", *lines])

    def choose(self, claim_seeds: int) -> Choice:
        """Return the choice: in each arm the best mean over tasks and seeds, of the cells with every seed.

        It is made once and kept. Raises InputError if an arm has no such cell, or the kept choice is corrupt.
        """
        path = self.results / CHOICE
        if path.exists():
            try:
                plain = json.loads(path.read_text())
                return Choice({arm: (str(name), int(size)) for arm, (name, size) in plain["cells"].items()},
                              int(plain["imagenet_size"]), plain["power"])  # fmt: skip
            except PARSE_ERRORS as error:
                raise InputError(f"{path}: not a choice ({type(error).__name__}: {error}); restore the original file: "
                                 "another choice would test the patients a second time") from None  # fmt: skip
        candidates = self.candidates()
        means = {key: over_seeds([scores[MEAN] for scores in seeds]).mean for key, seeds in candidates.items()
                 if key[0] in (IMAGENET, THUMBNAIL) or len(seeds) == self.seeds}  # fmt: skip
        cells = {}
        for arm in (CONTINUED, RANDOM):
            own = {(cell.name, size): means[cell.name, size] for cell in self.cells if cell.arm == arm
                   for size in cell.sizes() if (cell.name, size) in means}  # fmt: skip
            if not own:
                raise InputError(f"--claim: no cell {arm!r} has a result of each of {self.seeds} seeds; run the study "
                                 "without --claim first, or with fewer --seeds")  # fmt: skip
            cells[arm] = max(own, key=lambda key: own[key])
        size = max(BASELINE_SIZES, key=lambda size: means[IMAGENET, size])
        rivals = {IMAGENET: (IMAGENET, size), THUMBNAIL: (THUMBNAIL, SMALL), SCRATCH[LITE0]: (SCRATCH[LITE0], SMALL)}
        chosen = candidates[cells[CONTINUED]]
        power = {name: self._detectable(chosen, candidates[rival], claim_seeds) for name, rival in rivals.items()}
        choice = Choice(cells, size, power)
        self.results.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(asdict(choice), indent=1).encode())
        return choice

    def _detectable(self, scores: Seeds, reference: Seeds, seeds: int) -> float:
        """Estimate which difference of the mean over tasks a claim of some seeds finds with a power of 80 %.

        The variance of patients and draws is that on validation patients, times their share of the patients that the
        claim tests; that between seeds is divided by the number of seeds.
        """
        differences = paired(scores, reference, MEAN)
        tested, chosen = (self.labels.loc[(self.folds >= 0) == tests, "patient"].nunique() for tests in (True, False))
        within = estimate(mean_of(differences)).error ** 2 * chosen / tested
        between = float(pd.Series([one.both[0] for one in differences]).var()) if len(differences) > 1 else 0.0
        return float((norm.ppf(0.975) + norm.ppf(0.8)) * math.sqrt(within + between / seeds))
