"""Checkpointer: saves a run's checkpoints and resumes from them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.augmentation import Augmentation
from pipeline.loader import ViewLoader
from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import commit
from shard.manifest import Manifest
from train.accepted import Change, accepted_changes, format_changes, record_changes
from train.checkpoint import save_checkpoint, translate_load_errors
from train.config import Config
from train.distributed.ranks import Ranks
from train.divergence import check_losses, check_weights
from train.fingerprint import INIT, PACKAGES, check_fingerprint, check_ranks, compute_fingerprint, differences
from train.journal import METRICS, Journal, backup_journal, read_journal
from train.recipe import StartRecord, parse_start
from train.rng import rng_state, set_rng_state
from train.state import TrainState, read_count
from train.view_choice import ViewRecord

MILESTONE = 10  # epochs between checkpoints that are never removed


class Checkpointer:
    """Saves a run's checkpoints and resumes from them. All ranks take part; the first one writes.

    A checkpoint contains the training state, the loader's position, every rank's RNG state, the position in the
    journal, and the fingerprint that a resumed run is compared with. docs/formats.md lists its fields.
    """

    def __init__(
        self, config: Config, manifest: Manifest, augmentation: Augmentation, loader: ViewLoader, ranks: Ranks,
        start: StartRecord | None = None, views: ViewRecord | None = None,
    ) -> None:  # fmt: skip
        self._config, self._manifest, self._augmentation = config, manifest, augmentation
        self._loader, self._ranks = loader, ranks
        self.start = dict(start or {})  # what the encoder started from
        self.views = dict(views or {})  # the measurement that decided where views are made
        self._fingerprint = compute_fingerprint(config, loader.state_dict()["fingerprint"], ranks.world, self.start)
        self._commit = commit()  # now: another commit may be checked out before the run ends
        self._saved_at = time.monotonic()
        self._journal: Journal | None = None
        self._journal_source = (config.out, 0)  # the run whose journal is continued, and how many of its lines
        self._milestones: list[int] = []  # steps whose checkpoints are kept
        self._best: dict[str, float] | None = None  # step, epoch and score of the best checkpoint
        self._origin = ""  # the other run's checkpoint that this run started from
        self.accepted: list[Change] = []  # differences that --accept allowed so far

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than --checkpoint-minutes."""
        return time.monotonic() - self._saved_at >= 60 * self._config.checkpoint_minutes > 0

    def save(self, state: TrainState) -> None:
        """Write a checkpoint. Raises InputError, without writing, if a loss or the state is not finite."""
        check_losses(state, self._loader, self._config, self._ranks)
        check_weights(state, self._config, self._ranks)
        rng_states = self._ranks.all_gather(rng_state(state.device))
        if self._ranks.first:
            assert self._journal, "open_journal comes before save"
            if state.step_in_epoch == 0 and state.epoch % MILESTONE == 0:
                self._milestones.append(state.step)
            self._journal.sync()
            keep = [*self._milestones, *([int(self._best["step"])] if self._best else [])]
            content = self._content(state, rng_states, self._journal.lines)
            with self._ranks.saving:
                save_checkpoint(self._config.out, state.step, content, keep)
        self._ranks.broadcast(None)  # no rank continues, or ends, before the file is written
        self._saved_at = time.monotonic()

    def keep_if_best(self, state: TrainState, score: float) -> None:
        """Have the next checkpoint kept if its online probe's score is the highest so far."""
        if self._best is None or score > self._best["score"]:
            self._best = {"step": state.step, "epoch": state.epoch, "score": score}

    def _content(self, state: TrainState, rng_states: list[Any], journal_lines: int) -> dict[str, Any]:
        return {
            **state.state_dict(), "loader": self._loader.state_dict(), "rng_state": rng_states,
            "journal_lines": journal_lines, "milestones": self._milestones, "best": self._best,
            "origin": self._origin, "init": self.start, "views": self.views, "accepted": self.accepted,
            "fingerprint": self._fingerprint, "config": self._config.plain(),
            "augmentation": asdict(self._augmentation), "shards": self._manifest.fingerprint(),
            "data": self._manifest.counts, "commit": self._commit,
            "versions": {name: self._fingerprint[name] for name in PACKAGES},
        }  # fmt: skip

    def resume(self, state: TrainState, found: tuple[Path, dict[str, Any]] | None) -> None:
        """Load the checkpoint that was selected, if there is one, into `state`, the loader and the generators.

        found: its path and content, on the first rank. Raises InputError if the checkpoint was made under settings,
        code or data that give other numbers, or if the ranks differ in these.
        """
        check_ranks(self._ranks.all_gather(self._fingerprint))
        if found is not None:
            path, content = found
            with translate_load_errors(path):
                self._inherit_start(path, content)
                self._check_start(path, content)
                between_epochs = content["step_in_epoch"] % len(self._loader) == 0
                check_fingerprint(path, content["fingerprint"], self._fingerprint, between_epochs=between_epochs,
                                  accept=self._config.accept, changes=accepted_changes(content))  # fmt: skip
        found = self._ranks.broadcast(found)
        if found is None:
            return
        path, content = found
        with translate_load_errors(path):
            self._load(path, content, state)
        self._ranks.print(f"resuming from {path} (epoch {state.epoch + 1}, step {state.step})")
        if self.accepted:
            self._ranks.print(f"changed by --accept so far: {format_changes(self.accepted)}")

    def _inherit_start(self, path: Path, content: Mapping[str, Any]) -> None:
        """Take the record of the encoder's start from a checkpoint if the run began from another run's."""
        if not self._config.init and (content["origin"] or path.parent.parent != self._config.out):
            self.start = parse_start(content.get("init"))
            self._fingerprint |= {INIT: self.start["sha256"]} if self.start else {}

    def _check_start(self, path: Path, content: Mapping[str, Any]) -> None:
        """Raise InputError, naming the flag, if the run began with --init and is continued without it."""
        started = parse_start(content.get("init"))
        if started and not self.start and INIT not in self._config.accept:
            flags = [f"--{name.replace('_', '-')}={started[name]}" for name in ("init", "init_input") if started[name]]
            raise InputError(f"{path}: the run started from other weights: give {' '.join(flags)}, too, or train from "
                             "scratch with another --out")  # fmt: skip

    def _load(self, path: Path, content: Mapping[str, Any], state: TrainState) -> None:
        """Load a checkpoint's content. Raises errors that translate_load_errors converts to InputError."""
        lines = read_count(content, "journal_lines")
        state.load_state_dict(content)
        # check_fingerprint has compared the loader's fingerprint, and --accept may allow another one.
        fingerprint = self._loader.state_dict()["fingerprint"]
        self._inherit_start(path, content)  # on the other ranks
        self._loader.load_state_dict({**content["loader"], "fingerprint": fingerprint})
        if len(content["rng_state"]) == self._ranks.world:
            set_rng_state(content["rng_state"][self._ranks.rank], state.device)
        self._milestones = [int(step) for step in content["milestones"]]
        self._best = content["best"] and {name: float(value) for name, value in content["best"].items()}
        run = path.parent.parent
        self._origin = content["origin"] if run == self._config.out else str(path)
        self._journal_source = (run, lines)
        allowed = differences(content["fingerprint"], self._fingerprint)
        self.accepted = [*accepted_changes(content), *record_changes(state.step, allowed)]

    @property
    def origin(self) -> str:
        """The checkpoint of another run that this run started from, or ""."""
        return self._origin

    def open_journal(self, state: TrainState) -> Journal | None:
        """Open the journal at the position of the resumed checkpoint; None on all ranks but the first."""
        if not self._ranks.first:
            return None
        out, (source, lines) = self._config.out, self._journal_source
        if source != out and (source / METRICS).exists():  # the run started from another run's checkpoint
            write_bytes(out / METRICS, (source / METRICS).read_bytes())
        last = max((line["step"] for line in read_journal(out)), default=0)
        if state.step == 0 and (backup := backup_journal(out)):
            self._ranks.print(f"warning: {out} contains no checkpoint, though its journal goes up to step {last}: "
                              f"training starts FROM SCRATCH, and that journal is kept as {backup.name}; if the "
                              "checkpoints were left behind when the run was moved, stop this run, put them into "
                              f"{out / 'checkpoints'} and run the same command")  # fmt: skip
        self._journal = Journal(out, state.step, lines, self._config.log, self._config.plain(), new=source != out)
        if self._journal.lines < lines:
            self._ranks.print(f"warning: {out / METRICS} has {self._journal.lines} lines, but the checkpoint was "
                              f"written after line {lines}; the loss curve will have a gap")  # fmt: skip
        return self._journal
