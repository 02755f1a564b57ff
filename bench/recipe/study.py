"""Run the recipe study: which pre-training recipe gives the best ten-shot probes?

python -m bench.recipe SHARDS --out=DIR. Trains a declared grid (bench/recipe/grid.py) of small models on labelled
shards. The recipe is chosen on the patients of split valid. The claim on the patients of split test is made once and
kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from bench.output import describe_machine
from bench.recipe.comparison import SeedScores, by_task, compare_cells, correct_p_values, difference, mean_auroc
from bench.recipe.evaluation import (
    MEAN,
    SHOTS,
    TASKS,
    EncoderFeatures,
    EvaluationSet,
    available_tasks,
    check_evaluation_sets,
    make_evaluation_set,
)
from bench.recipe.grid import BASE, Cell, TrainingRun, choose_cells, train_all
from bench.recipe.page import Claim, Page, Row, write_page
from bench.recipe.result import RunResult, collect_result, read_result, write_result
from probe.statistics import over_seeds
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.flags import SHARDS, Flag, validate_call
from shard.machine import cores
from shard.manifest import Manifest, read_manifest

CLAIM = "claim.json"


@validate_call
def bench_recipe(
    shards: Annotated[Place, replace(SHARDS, help="Folder of shards, built with --partners, with the splits train, "
                                     "valid and test, or its address.")], *,
    out: Annotated[Path, Flag("Folder for the runs and their results.", metavar="DIR")],
    cells: Annotated[tuple[str, ...], Flag("Cells of the grid to train; bench/recipe/grid.py lists them.",
                                           metavar="NAME,…", default="all")] = (),
    seeds: Annotated[int, Flag("Seeds of the cells that may be chosen; the others have one.", low=1, high=100)] = 3,
    draws: Annotated[int, Flag("Support sets, the same for all cells.", low=2, high=10**4)] = 100,
    claim: Annotated[bool, Flag("Score the chosen cell on the test patients. This happens once; later runs show the "
                                "figures kept in --out.")] = False,
    page: Annotated[Path | None, Flag("Write the results as Markdown to this file, with a figure next to it.",
                                      metavar="FILE")] = None,
    workers: Annotated[int, Flag("Loader threads; 0 starts one per core.", low=0, high=4096)] = 0,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Train a grid of recipes, one run per cell and seed, and compare their few-shot scores.

    The same command resumes a study that was stopped. Results are kept in --out/results, so a finished run's folder may
    be deleted. The shards need labels of Cardiomegaly, (Pleural) Effusion or Lung Opacity.

        python -m bench.recipe nih --out=runs/recipe --claim --page=docs/recipe.md
    """
    folder = open_shards(shards, cache)
    manifest, chosen = read_manifest(folder), choose_cells(cells)
    check_shards(folder, manifest, chosen)
    check_evaluation_sets(folder, draws)
    study = Study(folder, out, chosen, seeds, draws, workers, manifest)
    study.train()
    scores = study.score_validation()
    best = study.choose(scores)
    claimed = study.claim(best) if claim else study.read_claim()
    if claimed and claimed.cell != best.name:
        print(f"the claim in {out / CLAIM} was made for {claimed.cell!r}, but {best.name!r} is now selected")
    result = Page(str(shards), manifest.counts, draws, BASE, study.rows(scores), best.name, claimed, describe_machine(),
                  study.validation_set.withheld())
    print(result.text())
    if page is not None:
        write_page(page, result)


def check_shards(shards: Path, manifest: Manifest, cells: Sequence[Cell]) -> None:
    """Raise InputError if the shards lack a split, all tasks, or the grouping by patient that a cell needs."""
    missing = [split for split in ("train", "valid", "test") if not manifest.images(split)]
    if missing:
        raise InputError(f"{shards}: has no images in split {' and '.join(missing)}; NIH's shards have all three: "
                         "python -m shard build SRC OUT --dataset=nih --partners=3")  # fmt: skip
    if not available_tasks(manifest):
        raise InputError(f"{shards}: has no labels of {', '.join(TASKS)}; build shards of a data set with one of them")
    paired = [cell.name for cell in cells if cell.settings.get("patient_positive")]
    if paired and not manifest.settings.get("partners"):
        raise InputError(f"{shards}: does not keep a patient's images together, as cell {paired[0]!r} requires; build "
                         "shards with: python -m shard build SRC OUT --partners=3")  # fmt: skip


@dataclass(frozen=True)
class StudyScores:
    """The scores of each cell, of random weights at each size, and of the thumbnail."""

    cells: dict[str, SeedScores]
    scratch: dict[int, SeedScores]
    thumbnail: SeedScores


@dataclass(frozen=True)
class Study:
    """The training and evaluation of the chosen cells."""

    shards: Path
    out: Path
    cells: list[Cell]
    seeds: int
    draws: int
    workers: int
    manifest: Manifest

    @cached_property
    def features(self) -> EncoderFeatures:
        """The features of all encoders."""
        return EncoderFeatures(self.shards, self.out / "features", self.workers or cores())

    @cached_property
    def validation_set(self) -> EvaluationSet:
        """The evaluation set by which cells are chosen."""
        return make_evaluation_set(self.shards, "valid", self.draws)

    def runs(self, cell: Cell) -> list[TrainingRun]:
        """Return the runs of a cell, one for each of its seeds."""
        return [TrainingRun(cell, seed, self.shards, self.out) for seed in range(self.seeds if cell.repeated else 1)]

    def train(self) -> None:
        """Train the runs without a result, seed by seed, and write the result of each on validation patients."""
        runs = [run for cell in self.cells for run in self.runs(cell) if self._read_result(run) is None]
        for run in runs:
            if run.result_path.exists():
                print(f"{run.result_path}: corrupt, or computed with other draws, settings or shards; computing it "
                      "again", file=sys.stderr)  # fmt: skip
        train_all(sorted(runs, key=lambda run: run.seed), self.workers, self._write_result)

    def _write_result(self, run: TrainingRun) -> None:
        scores = self.validation_set.score(self.features.trained(run.folder))
        write_result(run.result_path, self.identity(run), collect_result(run.folder, scores))

    def _read_result(self, run: TrainingRun) -> RunResult | None:
        result = read_result(run.result_path, self.identity(run))
        return result and replace(result, scores=self.validation_set.complete(result.scores))

    def identity(self, run: TrainingRun) -> dict[str, Any]:
        """Return everything that a run's result depends on."""
        return {"settings": run.cell.all_settings(), "seed": run.seed, "shards": self.manifest.fingerprint(),
                "split": "valid", "draws": self.draws, "shots": SHOTS}  # fmt: skip

    def results(self, cell: Cell) -> list[RunResult]:
        """Return the results of a trained cell, one for each seed."""
        return [result for run in self.runs(cell) if (result := self._read_result(run)) is not None]

    def score_validation(self) -> StudyScores:
        """Score all cells and baselines on validation patients."""
        cells = {cell.name: by_task([result.scores for result in self.results(cell)]) for cell in self.cells}
        return StudyScores(cells, self._score_scratch(self.validation_set, self.cells),
                           self._score_thumbnail(self.validation_set))  # fmt: skip

    def _score_scratch(self, evaluation_set: EvaluationSet, cells: Sequence[Cell]) -> dict[int, SeedScores]:
        return {size: by_task([evaluation_set.score(self.features.scratch(BASE["arch"], seed, size))
                               for seed in range(self.seeds)])
                for size in sorted({_size(cell) for cell in cells})}  # fmt: skip

    def _score_thumbnail(self, evaluation_set: EvaluationSet) -> SeedScores:
        return by_task([evaluation_set.score(self.features.thumbnail(BASE["size"]))])

    def choose(self, scores: StudyScores) -> Cell:
        """Return the cell with the best mean over tasks, among the cells with every seed, or all if there is none."""
        repeated = [cell for cell in self.cells if cell.repeated] or self.cells
        return max(repeated, key=lambda cell: over_seeds(scores.cells[cell.name][MEAN]).mean)

    def rows(self, scores: StudyScores) -> list[Row]:
        """Return a row for each baseline, then one for each cell."""
        withheld = self.validation_set.withheld()
        to_published = compare_cells({cell.name: (scores.cells[cell.name], scores.cells[cell.reference])
                                      for cell in self.cells if cell.name != cell.reference}, withheld)  # fmt: skip
        to_thumbnail = compare_cells({name: (cell_scores, scores.thumbnail)
                                      for name, cell_scores in scores.cells.items()}, withheld)  # fmt: skip
        rows = [Row("Thumbnail", {}, mean_auroc(scores.thumbnail), {}, {}, [])]
        rows += [Row(f"Scratch, {size} px", {}, mean_auroc(scratch), {}, {}, [])
                 for size, scratch in scores.scratch.items()]  # fmt: skip
        for cell in self.cells:
            rows.append(Row(cell.name, cell.settings, mean_auroc(scores.cells[cell.name]),
                            to_published.get(cell.name, {}), to_thumbnail[cell.name], self.results(cell)))  # fmt: skip
        return rows

    def claim(self, best: Cell) -> Claim:
        """Compare the chosen cell with its references on test patients. Made once; later calls read the saved claim.

        Raises InputError if the cell has a single seed.
        """
        existing = self.read_claim()
        if existing is not None:
            return existing
        if not best.repeated:
            raise InputError(f"--claim: {best.name!r} has one seed and was not chosen by the study; test patients are "
                             "evaluated once, so omit --cells, or name cells with every seed")  # fmt: skip
        cells = [cell for cell in self.cells if cell.name in (best.name, best.reference)]
        # Their checkpoints may have been deleted after the results were written.
        train_all([run for cell in cells for run in self.runs(cell) if not run.is_done()], self.workers)
        test_set = make_evaluation_set(self.shards, "test", self.draws)
        scores = {cell.name: by_task([test_set.score(self.features.trained(run.folder)) for run in self.runs(cell)])
                  for cell in cells}  # fmt: skip
        references = {"Scratch": self._score_scratch(test_set, [best])[_size(best)],
                      **{name: cell_scores for name, cell_scores in scores.items() if name != best.name},
                      "Thumbnail": self._score_thumbnail(test_set)}  # fmt: skip
        claim = self._make_claim(best, scores[best.name], references, test_set.withheld())
        write_bytes(self.out / CLAIM, json.dumps(claim.plain(), indent=1, allow_nan=False).encode())
        return claim

    def _make_claim(
        self, best: Cell, scores: SeedScores, references: dict[str, SeedScores], withheld: dict[str, str]
    ) -> Claim:
        """Compare with each reference on each task, with p values corrected for all comparisons."""
        tasks = [task for task in scores if task != MEAN]
        effects = correct_p_values({
            (name, task): difference(scores[task], reference[task], withheld=task in withheld)
            for name, reference in references.items() for task in tasks
        })  # fmt: skip
        return Claim(best.name, self.manifest.fingerprint(), self.draws, len(self.runs(best)), mean_auroc(scores),
                     {name: mean_auroc(reference) for name, reference in references.items()},
                     {name: {task: effects[name, task] for task in tasks} for name in references},
                     {task: reason for task, reason in withheld.items() if task != MEAN})  # fmt: skip

    def read_claim(self) -> Claim | None:
        """Read the saved claim, if there is one. Raises InputError if it is corrupt or was made with other shards."""
        path = self.out / CLAIM
        if not path.exists():
            return None
        try:
            claim = Claim.from_plain(json.loads(path.read_text()))
        except PARSE_ERRORS as error:
            raise InputError(f"{path}: not a claim ({type(error).__name__}: {error}); restore the original file: a new "
                             "claim would evaluate the test patients a second time") from None  # fmt: skip
        if claim.shards != self.manifest.fingerprint():
            raise InputError(f"{path}: was made with shards other than {self.shards}; choose another --out")
        return claim


def _size(cell: Cell) -> int:
    return int(cell.all_settings()["size"])
