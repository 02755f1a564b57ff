"""Which recipe makes ten shots count? python -m bench.recipe SHARDS --out=DIR

A declared grid (bench/recipe/grid.py) of small trainings on labelled shards. The choice is made on the patients
of split valid; the claim, on those of split test, is made once and kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.figures import describe_machine
from bench.recipe.evaluation import (
    MEAN,
    SHOTS,
    TASKS,
    Candidates,
    Exam,
    Seeds,
    by_task,
    check_exams,
    correct,
    difference,
    set_exam,
    tasks_of,
)
from bench.recipe.grid import BASE, Cell, Trial, choose_cells, train_all
from bench.recipe.page import Claim, Page, Row, write_page
from bench.recipe.result import Result, read_result, result_of, write_result
from probe.statistics import Effect, over_seeds
from shard.cli import check_numbers
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.machine import cores
from shard.manifest import Manifest, read_manifest

CLAIM = "claim.json"


def bench_recipe(
    shards: Path, *, out: Path, cells: tuple[str, ...] = (), seeds: int = 3, draws: int = 100, claim: bool = False,
    page: Path | None = None, workers: int = 0,
) -> None:  # fmt: skip
    """Train the grid's cells on SHARDS, a run a cell and seed, and compare them; run again, it goes on.

    SHARDS are built with --partners, have the splits train, valid and test, and labels of Cardiomegaly, (Pleural)
    Effusion or Lung Opacity (NIH's have). --cells names some, by default all (bench/recipe/grid.py lists them); those
    that may be chosen have --seeds seeds, the others one. --draws: of support sets, the same for all. What a run came
    to is kept in --out/results, and its folder may be deleted. --claim scores the chosen cell on the test patients,
    once: the figures are kept in --out and shown from there. --page writes it all in Markdown, with a figure beside it.
    """
    check_numbers(seeds=(seeds, 1, 100), draws=(draws, 2, 10**4), workers=(workers, 0, 4096))
    manifest, chosen = read_manifest(shards), choose_cells(cells)
    _check(shards, manifest, chosen)
    check_exams(shards, draws)
    study = _Study(shards, out, chosen, seeds, draws, workers, manifest)
    study.train()
    scored = study.validate()
    best = study.choose(scored)
    made = study.claim(best) if claim else study.kept_claim()
    if made and made.cell != best.name:
        print(f"the claim in {out / CLAIM} is of {made.cell!r}; by now {best.name!r} would be chosen")
    result = Page(str(shards), manifest.counts, draws, BASE, study.rows(scored), best.name, made, describe_machine(),
                  study.valid.withheld())
    print(result.text())
    if page is not None:
        write_page(page, result)


def _check(shards: Path, manifest: Manifest, cells: Sequence[Cell]) -> None:
    missing = [split for split in ("train", "valid", "test") if not manifest.images(split)]
    if missing:
        raise InputError(f"{shards}: has no images in split {' and '.join(missing)}; NIH's shards have all three: "
                         "python -m shard build SRC OUT --dataset=nih --partners=3")  # fmt: skip
    if not tasks_of(manifest):
        raise InputError(f"{shards}: none of {', '.join(TASKS)} is a finding of it")
    paired = [cell.name for cell in cells if cell.settings.get("patient_positive")]
    if paired and not manifest.settings.get("partners"):
        raise InputError(f"{shards}: does not keep a patient's images together, as cell {paired[0]!r} wants; build "
                         "others with: python -m shard build SRC OUT --partners=3")  # fmt: skip


@dataclass(frozen=True)
class _Scored:
    """What the exam gave: each cell's seeds, the random weights' at each size, and the thumbnail's."""

    cells: dict[str, Seeds]
    scratch: dict[int, Seeds]
    thumbnail: Seeds


@dataclass(frozen=True)
class _Study:
    """The cells, trained, and what they come to on whose patients."""

    shards: Path
    out: Path
    cells: list[Cell]
    seeds: int
    draws: int
    workers: int
    manifest: Manifest

    @cached_property
    def candidates(self) -> Candidates:
        """Who gives the features."""
        return Candidates(self.shards, self.out / "features", self.workers or cores())

    @cached_property
    def valid(self) -> Exam:
        """The exam by which cells are chosen."""
        return set_exam(self.shards, "valid", self.draws)

    def trials(self, cell: Cell) -> list[Trial]:
        """The runs of a cell."""
        return [Trial(cell, seed, self.shards, self.out) for seed in range(self.seeds if cell.repeated else 1)]

    def train(self) -> None:
        """Train what has no result yet, seed by seed, and keep what each run comes to on validation patients."""
        trials = [trial for cell in self.cells for trial in self.trials(cell) if self._result(trial) is None]
        for trial in trials:
            if trial.kept.exists():
                print(f"{trial.kept}: is of other draws, settings or shards, or cut short; made anew", file=sys.stderr)
        train_all(sorted(trials, key=lambda trial: trial.seed), self.workers, self._keep)

    def _keep(self, trial: Trial) -> None:
        scores = self.valid.score(self.candidates.trained(trial.run))
        write_result(trial.kept, self._identity(trial), result_of(trial.run, scores))

    def _result(self, trial: Trial) -> Result | None:
        return read_result(trial.kept, self._identity(trial))

    def _identity(self, trial: Trial) -> dict[str, Any]:
        """What decides a run's result."""
        return {"settings": trial.cell.all_settings(), "seed": trial.seed, "shards": self.manifest.fingerprint(),
                "split": "valid", "draws": self.draws, "shots": SHOTS}  # fmt: skip

    def results(self, cell: Cell) -> list[Result]:
        """Of every seed of a trained cell."""
        return [result for trial in self.trials(cell) if (result := self._result(trial)) is not None]

    def validate(self) -> _Scored:
        """All of them on validation patients."""
        cells = {cell.name: by_task([result.scores for result in self.results(cell)]) for cell in self.cells}
        return _Scored(cells, self._scratch(self.valid, self.cells), self._thumbnail(self.valid))

    def _scratch(self, exam: Exam, cells: Sequence[Cell]) -> dict[int, Seeds]:
        return {size: by_task([exam.score(self.candidates.scratch(BASE["arch"], seed, size))
                               for seed in range(self.seeds)])
                for size in sorted({_size(cell) for cell in cells})}  # fmt: skip

    def _thumbnail(self, exam: Exam) -> Seeds:
        return by_task([exam.score(self.candidates.thumbnail(BASE["size"]))])

    def choose(self, scored: _Scored) -> Cell:
        """The best of those with every seed, by the mean over tasks; of all, where none has."""
        repeated = [cell for cell in self.cells if cell.repeated] or self.cells
        return max(repeated, key=lambda cell: over_seeds(scored.cells[cell.name][MEAN]).mean)

    def rows(self, scored: _Scored) -> list[Row]:
        """A row a cell, and those of the baselines before them."""
        to_published = _compare({cell.name: (scored.cells[cell.name], scored.cells[cell.rival])
                                 for cell in self.cells if cell.name != cell.rival}, self.valid.withheld())  # fmt: skip
        to_thumbnail = _compare({name: (seeds, scored.thumbnail) for name, seeds in scored.cells.items()},
                                self.valid.withheld())  # fmt: skip
        rows = [Row("Thumbnail", {}, _means(scored.thumbnail), {}, {}, [])]
        rows += [Row(f"Scratch, {size} px", {}, _means(seeds), {}, {}, []) for size, seeds in scored.scratch.items()]
        for cell in self.cells:
            rows.append(Row(cell.name, cell.settings, _means(scored.cells[cell.name]), to_published.get(cell.name, {}),
                            to_thumbnail[cell.name], self.results(cell)))  # fmt: skip
        return rows

    def claim(self, best: Cell) -> Claim:
        """The chosen cell on the test patients, against all three; made once, then read."""
        kept = self.kept_claim()
        if kept is not None:
            return kept
        if not best.repeated:
            raise InputError(f"--claim: {best.name!r} has one seed and was no choice of the study; test patients are "
                             "looked at once, so leave --cells out, or name cells with every seed")  # fmt: skip
        cells = [cell for cell in self.cells if cell.name in (best.name, best.rival)]
        # Their weights, which may be gone where the results alone were kept.
        train_all([trial for cell in cells for trial in self.trials(cell) if not trial.is_done()], self.workers)
        exam = set_exam(self.shards, "test", self.draws)
        scored = {cell.name: by_task([exam.score(self.candidates.trained(trial.run)) for trial in self.trials(cell)])
               for cell in cells}  # fmt: skip
        mine = scored[best.name]
        references = {"Scratch": self._scratch(exam, [best])[_size(best)],
                      **{name: seeds for name, seeds in scored.items() if name != best.name},
                      "Thumbnail": self._thumbnail(exam)}  # fmt: skip
        tasks = [task for task in mine if task != MEAN]
        # Each reference on each task is a comparison of its own, and all are corrected for.
        withheld = exam.withheld()
        found = correct({(name, task): difference(mine[task], seeds[task], withheld=task in withheld)
                         for name, seeds in references.items() for task in tasks})  # fmt: skip
        made = Claim(best.name, self.manifest.fingerprint(), self.draws, len(self.trials(best)), _means(mine),
                     {name: _means(seeds) for name, seeds in references.items()},
                     {name: {task: found[name, task] for task in tasks} for name in references},
                     {task: reason for task, reason in withheld.items() if task != MEAN})  # fmt: skip
        write_bytes(self.out / CLAIM, json.dumps(made.plain(), indent=1, allow_nan=False).encode())
        return made

    def kept_claim(self) -> Claim | None:
        """The claim as it was made; None where none was. Raises InputError where it was made on other shards."""
        path = self.out / CLAIM
        if not path.exists():
            return None
        try:
            kept = Claim.from_plain(json.loads(path.read_text()))
        except PARSE_ERRORS as error:
            raise InputError(f"{path}: is no claim ({type(error).__name__}: {error}); put back the one that was made: "
                             "another would look at the test patients a second time") from None  # fmt: skip
        if kept.shards != self.manifest.fingerprint():
            raise InputError(f"{path}: was made on other shards than {self.shards}; choose another --out")
        return kept


def _compare(pairs: dict[str, tuple[Seeds, Seeds]], withheld: Collection[str]) -> dict[str, dict[str, Effect]]:
    """Cell → task → the difference of its pair; p values corrected for all cells, task by task.

    withheld: the tasks without intervals and p values.
    """
    tasks = next(iter(pairs.values()))[0] if pairs else {}
    by_task = {task: correct({name: difference(mine[task], theirs[task], withheld=task in withheld)
                             for name, (mine, theirs) in pairs.items()}) for task in tasks}  # fmt: skip
    return {name: {task: by_task[task][name] for task in tasks} for name in pairs}


def _size(cell: Cell) -> int:
    return int(cell.all_settings()["size"])


def _means(seeds: Seeds) -> dict[str, float]:
    """The mean AUROC of each task over seeds."""
    return {task: float(sum(one.both[0] for one in scores) / len(scores)) for task, scores in seeds.items()}
