"""Which recipe makes ten shots count? python -m bench.recipe SHARDS --out=DIR

A declared grid (bench/grid.py) of small trainings on labelled shards. The choice is made on the patients of split
valid; the claim, on those of split test, is made once and kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.grid import BASE, Cell, Trial, choose_cells, train_all
from bench.judge import MEAN, TASKS, Candidates, Exam, Seeds, by_task, correct, difference, set_exam, tasks_of
from bench.machine import describe_machine
from bench.recipe_page import Claim, Page, Row, write_page
from probe.statistics import Effect, Scores, over_seeds
from shard.cli import run
from shard.errors import InputError
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
    Effusion or Lung Opacity (NIH's have). --cells names some, by default all. --claim scores the chosen cell on the
    test patients, once: the figures are kept in --out and shown from there. --page writes it all in Markdown, with a
    figure beside it.
    """
    for name, value, low, high in (("seeds", seeds, 1, 100), ("draws", draws, 2, 10**4), ("workers", workers, 0, 4096)):
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: wants a number from {low} to {high}")
    manifest, chosen = read_manifest(shards), choose_cells(cells)
    _check(shards, manifest)
    trials = [Trial(cell, seed, shards, out) for seed in range(seeds) for cell in chosen]
    train_all(trials, workers)
    study = _Study(shards, out, chosen, seeds, Candidates(shards, out / "features", workers or cores()))
    exam = set_exam(shards, "valid", draws)
    sat = study.sit(exam)
    best = max(chosen, key=lambda cell: over_seeds(sat.cells[cell.name][MEAN]).mean)
    rows = study.rows(sat)
    made = study.claim(best, draws) if claim else study.kept_claim()
    if made and made.cell != best.name:
        print(f"the claim in {out / CLAIM} is of {made.cell!r}; by now {best.name!r} would be chosen")
    result = Page(str(shards), manifest.counts, seeds, draws, BASE, rows, best.name, made, describe_machine(), trials)
    print(result.text())
    if page is not None:
        write_page(page, result)


def _check(shards: Path, manifest: Manifest) -> None:
    missing = [split for split in ("train", "valid", "test") if not manifest.images(split)]
    if missing:
        raise InputError(f"{shards}: has no images in split {' and '.join(missing)}; NIH's shards have all three: "
                         "python -m shard build SRC OUT --dataset=nih --partners=3")  # fmt: skip
    if not tasks_of(manifest):
        raise InputError(f"{shards}: none of {', '.join(TASKS)} is a finding of it")


@dataclass(frozen=True)
class _Sat:
    """What the exam gave: each cell's seeds, the random weights' at each size, and the thumbnail's."""

    cells: dict[str, Seeds]
    scratch: dict[int, Seeds]
    thumbnail: Seeds


@dataclass(frozen=True)
class _Study:
    """The cells, trained, and who gives their features."""

    shards: Path
    out: Path
    cells: list[Cell]
    seeds: int
    candidates: Candidates

    def sit(self, exam: Exam) -> _Sat:
        """Have all of them sit an exam."""
        cells = {cell.name: by_task([self._score(exam, cell, seed) for seed in range(self.seeds)])
                 for cell in self.cells}  # fmt: skip
        scratch = {size: by_task([exam.sit(self.candidates.scratch(BASE["arch"], seed, size))
                                  for seed in range(self.seeds)])
                   for size in sorted({_size(cell) for cell in self.cells})}  # fmt: skip
        return _Sat(cells, scratch, by_task([exam.sit(self.candidates.thumbnail(BASE["size"]))]))

    def _score(self, exam: Exam, cell: Cell, seed: int) -> dict[str, Scores]:
        return exam.sit(self.candidates.trained(Trial(cell, seed, self.shards, self.out).run))

    def rows(self, sat: _Sat) -> list[Row]:
        """A row a cell, and those of the baselines before them."""
        to_published = _compare({cell.name: (sat.cells[cell.name], sat.cells[cell.rival])
                                 for cell in self.cells if cell.name != cell.rival})  # fmt: skip
        to_thumbnail = _compare({name: (seeds, sat.thumbnail) for name, seeds in sat.cells.items()})
        rows = [Row("Thumbnail", {}, _means(sat.thumbnail), {}, {}, 0.0)]
        rows += [Row(f"Scratch, {size} px", {}, _means(seeds), {}, {}, 0.0) for size, seeds in sat.scratch.items()]
        for cell in self.cells:
            seconds = sum(Trial(cell, seed, self.shards, self.out).seconds() for seed in range(self.seeds)) / self.seeds
            rows.append(Row(cell.name, cell.settings, _means(sat.cells[cell.name]), to_published.get(cell.name, {}),
                            to_thumbnail[cell.name], seconds))  # fmt: skip
        return rows

    def claim(self, best: Cell, draws: int) -> Claim:
        """The chosen cell on the test patients, against all three; made once, then read."""
        kept = self.kept_claim()
        if kept is not None:
            return kept
        only = _Study(self.shards, self.out, [cell for cell in self.cells if cell.name in (best.name, best.rival)],
                      self.seeds, self.candidates)  # fmt: skip
        sat = only.sit(set_exam(self.shards, "test", draws))
        mine = sat.cells[best.name]
        references = {"Scratch": sat.scratch[_size(best)], best.rival: sat.cells[best.rival],
                      "Thumbnail": sat.thumbnail}  # fmt: skip
        tasks = [task for task in mine if task != MEAN]
        # Each reference on each task is a comparison of its own, and all are corrected for.
        found = correct({(name, task): difference(mine[task], seeds[task])
                         for name, seeds in references.items() for task in tasks})  # fmt: skip
        made = Claim(best.name, draws, self.seeds, _means(mine),
                     {name: _means(seeds) for name, seeds in references.items()},
                     {name: {task: found[name, task] for task in tasks} for name in references})  # fmt: skip
        write_bytes(self.out / CLAIM, json.dumps(made.plain(), indent=1).encode())
        return made

    def kept_claim(self) -> Claim | None:
        """The claim as it was made; None where none was."""
        path = self.out / CLAIM
        return Claim.from_plain(json.loads(path.read_text())) if path.exists() else None


def _compare(pairs: dict[str, tuple[Seeds, Seeds]]) -> dict[str, dict[str, Effect]]:
    """Cell → task → the difference of its pair; p values corrected for all cells, task by task."""
    tasks = next(iter(pairs.values()))[0] if pairs else {}
    by_task = {task: correct({name: difference(mine[task], theirs[task]) for name, (mine, theirs) in pairs.items()})
               for task in tasks}  # fmt: skip
    return {name: {task: by_task[task][name] for task in tasks} for name in pairs}


def _size(cell: Cell) -> int:
    return int(cell.all_settings()["size"])


def _means(seeds: Seeds) -> dict[str, float]:
    """The mean AUROC of each task over seeds."""
    return {task: float(sum(one.both[0] for one in scores) / len(scores)) for task, scores in seeds.items()}


if __name__ == "__main__":
    run("python -m bench.recipe", bench_recipe)
