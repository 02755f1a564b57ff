"""The cells of the recipe study, declared before they are run; and running them, each where it stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shard.cli import flag_of
from shard.errors import InputError
from shard.manifest import read_manifest
from shard.record import first_difference
from train.checkpoint import load_newest_good

# What all cells share and a cell may change: small enough for two cores, and the optimiser's schedule is no cell's
# advantage. The published recipe's own schedule is a cell.
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
    """A recipe under study: what it changes of the base and the published recipe; the cell of the published recipe that
    is trained as long and as large; whether it is trained with every seed, and so may be chosen, or with the first."""

    name: str
    settings: dict[str, Any]
    rival: str = "published"
    repeated: bool = False

    @property
    def folder(self) -> str:
        """Its name as a folder's, and as --cells has it, where a comma parts two."""
        return self.name.replace(",", "").replace(" ", "-")

    def all_settings(self) -> dict[str, Any]:
        """Every setting of it that is not a default of the published recipe's."""
        return {**BASE, **self.settings}


PUBLISHED = "published"
# The first ones are short and have one seed: they say which recipe is worth the hours of the last ones.
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
class Trial:
    """One run of a cell."""

    cell: Cell
    seed: int
    shards: Path
    out: Path

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.out / self.cell.folder / f"seed-{self.seed}"

    def is_done(self) -> bool:
        """Whether it has had its epochs. Raises InputError where its checkpoint is of other settings or shards."""
        found = load_newest_good(self.run)
        if found is None:
            return False
        path, state, _ = found
        wanted = {**self.cell.all_settings(), "seed": self.seed, "shards": read_manifest(self.shards).fingerprint()}
        there = {**state["config"], "shards": state["shards"]}
        if differing := first_difference({name: there.get(name) for name in wanted}, wanted):
            raise InputError(f"{path}: is of another run ({differing}); choose another --out or remove {self.run}")
        return bool(state["epoch"] >= self.cell.all_settings()["epochs"])

    @property
    def kept(self) -> Path:
        """The file of what it came to."""
        return self.out / "results" / f"{self.cell.folder}.seed-{self.seed}.npz"

    def command(self, workers: int) -> list[str]:
        """The command that makes it, or goes on with it."""
        flags = {**self.cell.all_settings(), "shards": self.shards, "out": self.run, "seed": self.seed,
                 "workers": workers}  # fmt: skip
        return [sys.executable, "-m", "train", "--dali", *(f"{flag_of(name)}={value}" for name, value in flags.items())]

    def cost(self) -> float:
        """How long it takes, in units of one epoch's pixel a view."""
        settings = self.cell.all_settings()
        return float(settings["epochs"] * settings["size"] ** 2)


def choose_cells(names: Sequence[str]) -> list[Cell]:
    """The cells of those names, all where none is given; the published one is always among them."""
    known = {cell.name: cell for cell in CELLS} | {cell.folder: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise InputError(f"--cells={name}: no such cell; there are: {'; '.join(cell.folder for cell in CELLS)}")
    wanted = {PUBLISHED, *(word for name in names for word in (known[name].name, known[name].rival))}
    wanted = wanted if names else {cell.name for cell in CELLS}
    return [cell for cell in CELLS if cell.name in wanted]


def train_all(trials: Sequence[Trial], workers: int, finish: Callable[[Trial], None] = lambda trial: None) -> None:
    """Train what is not done yet, one after the other, and call finish with each when it is. Raises InputError where a
    run fails, with where its log lies."""
    total = sum(trial.cost() for trial in trials)
    with tqdm(total=round(total), desc="training", unit=" px", unit_scale=True, disable=None) as bar:
        for number, trial in enumerate(trials, 1):
            began = time.monotonic()
            if not trial.is_done():
                _train(trial, workers)
            finish(trial)
            bar.update(round(trial.cost()))
            print(f"{number} of {len(trials)}: {trial.cell.name}, seed {trial.seed}, {time.monotonic() - began:.0f} s",
                  flush=True)


def _train(trial: Trial, workers: int) -> None:
    trial.run.mkdir(parents=True, exist_ok=True)
    log = trial.run / "log.txt"
    with log.open("a") as file:
        status = subprocess.run(trial.command(workers), stdout=file, stderr=file).returncode
    if status or not trial.is_done():
        how = f"with status {status}" if status else "before its last epoch"
        raise InputError(f"{trial.run}: the run ended {how}, see {log}; run the same command again to go on")
