"""The cells of the recipe study, declared before any is trained, and their training, which resumes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shard.errors import InputError
from shard.flags import flag_name
from shard.manifest import read_manifest
from shard.record import first_difference
from train.checkpoint import load_newest_intact

# Shared by all cells unless a cell changes it. Small enough for two cores. All cells have the same optimiser schedule,
# so that none has an advantage; the published schedule is a separate cell.
BASE: dict[str, Any] = {
    "arch": "resnet18", "size": 64, "epochs": 10, "batch_size": 128, "lr": 1e-3, "schedule": "cosine",
    "warmup_epochs": 1.0, "online_every": 5, "log_every": 10,
}  # fmt: skip
PARTNERS: dict[str, Any] = {"patient_positive": 0.5, "same_patient": "masked"}
LEAD: dict[str, Any] = {**PARTNERS, "temperature": 0.2, "crop_min": 0.3}
NO_FLIP: dict[str, Any] = {**LEAD, "flip": 0.0}
LONGER: dict[str, Any] = {"size": 96, "epochs": 30}


@dataclass(frozen=True)
class Cell:
    """A recipe of the grid.

    settings: the changes to BASE. reference: the cell of the published recipe with the same size and epochs. repeated:
    whether it is trained with every seed, and so may be chosen, or only with the first.
    """

    name: str
    settings: dict[str, Any]
    reference: str = "published"
    repeated: bool = False

    @property
    def folder(self) -> str:
        """The name without spaces and commas: of its folder, and as a value of --cells."""
        return self.name.replace(",", "").replace(" ", "-")

    def all_settings(self) -> dict[str, Any]:
        """Return the settings of BASE, updated with the cell's own."""
        return {**BASE, **self.settings}


PUBLISHED = "published"
# The first cells are short and have one seed. They show which recipe is worth the hours that the last ones take.
CELLS = (
    Cell(PUBLISHED, {}),
    Cell("published, lr 3e-4 constant", {"lr": 3e-4, "schedule": "constant", "warmup_epochs": 0.0}),
    Cell("temperature 0.2", {"temperature": 0.2}),
    Cell("crop 0.3", {"crop_min": 0.3}),
    Cell("partners", PARTNERS),
    Cell("lead", LEAD),
    Cell("lead, partners always", {**LEAD, "patient_positive": 1.0}),
    Cell("lead, no partners", {**LEAD, "patient_positive": 0.0}),
    Cell("lead, temperature 0.1", {**LEAD, "temperature": 0.1}),
    Cell("lead, crop 0.2", {**LEAD, "crop_min": 0.2}),
    Cell("lead, crop 0.5", {**LEAD, "crop_min": 0.5}),
    Cell("lead, no flip", NO_FLIP),
    Cell("lead, no blur", {**LEAD, "blur": 0.0}),
    Cell("lead, no flip, no blur", {**NO_FLIP, "blur": 0.0}),
    Cell("lead, not masked", {**LEAD, "same_patient": "negatives"}),
    Cell("lead, same patient positive", {**LEAD, "same_patient": "positives"}),
    Cell("published, 96 px, 30 epochs", LONGER, "published, 96 px, 30 epochs", repeated=True),
    Cell("lead, no flip, 96 px, 30 epochs", {**NO_FLIP, **LONGER}, "published, 96 px, 30 epochs", repeated=True),
)


@dataclass(frozen=True)
class TrainingRun:
    """A run of one cell with one seed. out: the folder of the study."""

    cell: Cell
    seed: int
    shards: Path
    out: Path

    @property
    def folder(self) -> Path:
        """The folder of checkpoints and journals."""
        return self.out / self.cell.folder / f"seed-{self.seed}"

    def is_done(self) -> bool:
        """Return whether all epochs are trained. Raises InputError if the checkpoint has other settings or shards."""
        newest = load_newest_intact(self.folder)
        if newest is None:
            return False
        path, state, _ = newest
        expected = {**self.cell.all_settings(), "seed": self.seed, "shards": read_manifest(self.shards).fingerprint()}
        found = {**state["config"], "shards": state["shards"]}
        if differing := first_difference({name: found.get(name) for name in expected}, expected):
            raise InputError(f"{path}: belongs to another run ({differing}); choose another --out or remove "
                             f"{self.folder}")  # fmt: skip
        return bool(state["epoch"] >= self.cell.all_settings()["epochs"])

    @property
    def result_path(self) -> Path:
        """The file of its result."""
        return self.out / "results" / f"{self.cell.folder}.seed-{self.seed}.npz"

    def command(self, workers: int) -> list[str]:
        """Return the command that starts or resumes the run."""
        flags = {**self.cell.all_settings(), "shards": self.shards, "out": self.folder, "seed": self.seed,
                 "workers": workers}  # fmt: skip
        given = [f"{flag_name(name)}={value}" for name, value in flags.items()]
        return [sys.executable, "-m", "train", "--dali", *given]

    def cost(self) -> float:
        """Return the relative duration: epochs × pixels of a view."""
        settings = self.cell.all_settings()
        return float(settings["epochs"] * settings["size"] ** 2)


def choose_cells(names: Sequence[str]) -> list[Cell]:
    """Return the named cells with their references and the published cell, or all cells if no name is given."""
    known = {cell.name: cell for cell in CELLS} | {cell.folder: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise InputError(f"--cells={name}: no such cell; available: {'; '.join(cell.folder for cell in CELLS)}")
    chosen = {PUBLISHED, *(cell for name in names for cell in (known[name].name, known[name].reference))}
    chosen = chosen if names else {cell.name for cell in CELLS}
    return [cell for cell in CELLS if cell.name in chosen]


def train_all(
    runs: Sequence[TrainingRun], workers: int, on_finish: Callable[[TrainingRun], None] = lambda run: None
) -> None:
    """Train the unfinished runs one after another, and call `on_finish` with each finished run.

    Raises InputError, with the path of the log, if a run fails.
    """
    total = sum(run.cost() for run in runs)
    with tqdm(total=round(total), desc="training", unit=" px", unit_scale=True, disable=None) as bar:
        for number, run in enumerate(runs, 1):
            began = time.monotonic()
            if not run.is_done():
                _train(run, workers)
            on_finish(run)
            bar.update(round(run.cost()))
            print(f"{number} of {len(runs)}: {run.cell.name}, seed {run.seed}, {time.monotonic() - began:.0f} s",
                  flush=True)


def _train(run: TrainingRun, workers: int) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / "log.txt"
    with log.open("a") as file:
        status = subprocess.run(run.command(workers), stdout=file, stderr=file).returncode
    if status or not run.is_done():
        how = f"with status {status}" if status else "before its last epoch"
        raise InputError(f"{run.folder}: the run ended {how}, see {log}; run the same command again to resume")
