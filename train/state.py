"""Run: what changes while training, and how it goes into a checkpoint and comes out of one, exactly."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.augmentation import Augmentation
from pipeline.loader import ViewLoader
from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import commit
from shard.manifest import Manifest
from train.accepted import Change, changes_of, list_changes, say_changes
from train.checkpoint import save_checkpoint, translate_load_errors
from train.config import Config
from train.divergence import all_finite, how_to_continue
from train.fingerprint import PACKAGES, check_fingerprint, check_ranks, differences, take_fingerprint
from train.journal import METRICS, Journal, read_journal, set_journal_aside
from train.model import SimCLR
from train.online import OnlineProbe
from train.ranks import Ranks
from train.resume import find_checkpoint
from train.signals import StopRequest

MILESTONE = 10  # every so many epochs a checkpoint is kept for good


class Run:
    """A run between two steps. What a checkpoint holds is in _state(); docs/formats.md says it field by field."""

    def __init__(
        self, config: Config, manifest: Manifest, augmentation: Augmentation, loader: ViewLoader, model: SimCLR,
        forward: Callable[[torch.Tensor], torch.Tensor], optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler, online: OnlineProbe, ranks: Ranks, stop: StopRequest,
    ) -> None:  # fmt: skip
        """forward: the model, compiled or not."""
        self.config, self.manifest, self.augmentation, self.loader = config, manifest, augmentation, loader
        self.model, self.forward, self.optimizer, self.scaler = model, forward, optimizer, scaler
        self.online, self.ranks, self.stop = online, ranks, stop
        self.journal: Journal | None = None  # the first rank's, once it is known where it goes on
        self.step = 0
        # Of the epoch under way: the sum of the losses in the journal, and those that are not in it yet.
        self.loss_sum, self.losses = 0.0, list[torch.Tensor]()
        self.milestones = list[int]()  # steps whose checkpoints are kept
        self.best: dict[str, float] | None = None  # step, epoch and score of the best checkpoint by the online probe
        self.origin = ""  # the checkpoint of another run that this one began from
        self.accepted = list[Change]()  # what --accept let through on the way here
        self._fingerprint = take_fingerprint(config, loader.state_dict()["fingerprint"], ranks.world)
        self.told_to_stop = False  # by a signal, on any rank
        self._commit = commit()  # now: later another may be checked out
        self._journalled = (config.out, 0)  # whose journal is gone on with, and how many of its lines
        self._saved_at = time.monotonic()

    def finished(self, epoch: int, step_in_epoch: int = 0) -> bool:
        """Whether the run has had its epochs, or its limit of steps, and no epoch's end is left to do."""
        limited = 0 < self.config.limit_steps <= self.step and step_in_epoch != len(self.loader)
        return epoch >= self.config.epochs or limited

    def patients(self, epoch: int, step_in_epoch: int) -> torch.Tensor | None:
        """The patients of the next step's images on all ranks, [B·world], where the loss asks for them."""
        if self.config.same_patient == "negatives":
            return None
        return self.loader.patients(epoch, step_in_epoch).to(self.config.device, non_blocking=True)

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is older than --checkpoint-minutes."""
        return time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_minutes > 0

    def save(self, epoch: int, step_in_epoch: int) -> None:
        """Write a checkpoint `step_in_epoch` steps into `epoch`; all ranks take part, the first writes.

        Raises InputError where a loss, a weight or the optimiser is not a number: what is on the disk stays good.
        """
        self.check_losses(epoch, step_in_epoch)
        self.check_weights()
        chance = self.ranks.all_gather(_random_state(self.config.device))
        if self.journal:
            if step_in_epoch == 0 and epoch % MILESTONE == 0:
                self.milestones.append(self.step)
            self.journal.sync()
            keep = [*self.milestones, *([int(self.best["step"])] if self.best else [])]
            save_checkpoint(self.config.out, self.step, self._state(epoch, step_in_epoch, chance), keep)
        self.ranks.broadcast(None)  # none goes on, or ends, before it is written
        self._saved_at = time.monotonic()

    def _state(self, epoch: int, step_in_epoch: int, chance: list[Any]) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "epoch": epoch, "step_in_epoch": step_in_epoch, "step": self.step, "loss_sum": self.loss_sum,
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "loader": self.loader.state_dict(), "chance": chance,
            "journal_lines": self.journal.lines if self.journal else 0,
            "milestones": self.milestones, "best": self.best, "origin": self.origin, "accepted": self.accepted,
            "fingerprint": self._fingerprint, "config": self.config.plain(), "augmentation": asdict(self.augmentation),
            "shards": manifest.fingerprint(), "data": manifest.counts, "commit": self._commit,
            "versions": {name: self._fingerprint[name] for name in PACKAGES},
        }  # fmt: skip

    def resume(self) -> tuple[int, int]:
        """Take up the checkpoint that --resume asks for; returns (epoch, steps done in it), (0, 0) where there is none.

        Raises InputError where it was made under what gives other numbers, or a rank is under other than the first.
        """
        check_ranks(self.ranks.all_gather(self._fingerprint))
        found = find_checkpoint(self.config, self.say) if self.ranks.first else None
        if found is not None:
            with translate_load_errors(found[0]):
                done = found[1]["step_in_epoch"] % len(self.loader)
                check_fingerprint(found[0], found[1]["fingerprint"], self._fingerprint, between_epochs=done == 0,
                                  accept=self.config.accept, changes=changes_of(found[1]))  # fmt: skip
        found = self.ranks.broadcast(found)
        if found is None:
            return 0, 0
        path, state = found
        with translate_load_errors(path):
            self._take_up(path, state)
        self.say(f"resuming from {path} (epoch {state['epoch'] + 1}, step {self.step})")
        if self.accepted:
            self.say(f"changed on the way by --accept: {say_changes(self.accepted)}")
        return state["epoch"], state["step_in_epoch"]

    def _take_up(self, path: Path, state: dict[str, Any]) -> None:
        """Raises what translate_load_errors makes an InputError of."""
        for name in ("epoch", "step_in_epoch", "step", "journal_lines"):
            if type(state[name]) is not int or not 0 <= state[name] < 2**60:
                raise ValueError(f"{name} is {state[name]!r}")
        self.model.load_state_dict(state["model"])
        self._load_optimizer(state)
        # The fingerprint holds what the loader promises, and has been compared.
        self.loader.load_state_dict({**state["loader"], "fingerprint": self.loader.state_dict()["fingerprint"]})
        if len(state["chance"]) == self.ranks.world:
            _set_random_state(state["chance"][self.ranks.rank], self.config.device)
        self.step, self.loss_sum = state["step"], float(state["loss_sum"])
        self.losses = list(state["losses"].to(self.config.device).unbind())
        self.milestones = [int(step) for step in state["milestones"]]
        self.best = state["best"] and {name: float(value) for name, value in state["best"].items()}
        self.origin = state["origin"] if path.parent.parent == self.config.out else str(path)
        self._journalled = (path.parent.parent, state["journal_lines"])
        let_through = differences(state["fingerprint"], self._fingerprint)
        self.accepted = [*changes_of(state), *list_changes(self.step, let_through)]

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Its state, and the scaler's; the settings stay our own, where --accept lets them differ."""
        own = [{name: value for name, value in group.items() if name != "params"}
               for group in self.optimizer.param_groups]  # fmt: skip
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, ()):
                    raise ValueError(f"the optimiser's {name} is not of its weights")
        if state["scaler"]:  # empty where there was none
            self.scaler.load_state_dict(state["scaler"])

    def open_journal(self) -> None:
        """Open the journal where the run stands; the first rank alone has one."""
        if not self.ranks.first:
            return
        out, (there, lines) = self.config.out, self._journalled
        if there != out and (there / METRICS).exists():  # another run's lines go along
            write_bytes(out / METRICS, (there / METRICS).read_bytes())
        last = max((line["step"] for line in read_journal(out)), default=0)
        if self.step == 0 and (before := set_journal_aside(out)):
            self.say(f"warning: {out} holds no checkpoint, though its journal goes up to step {last}: training begins "
                     f"ANEW, and that journal is kept as {before.name}; if checkpoints were left behind when the run "
                     f"was moved, stop this, put them into {out / 'checkpoints'} and run the same command")  # fmt: skip
        self.journal = Journal(out, self.step, lines)
        if self.journal.lines < lines:
            self.say(f"warning: {out / METRICS} has {self.journal.lines} lines, the checkpoint was written after "
                     f"{lines}; the curve will have a gap")  # fmt: skip

    def check_losses(self, epoch: int, step_in_epoch: int) -> None:
        """Raise InputError with a step, its batch's keys and the last good checkpoint, where a loss is not a number.

        The losses looked at are those not in the journal yet, up to `step_in_epoch`.
        """
        if not self.losses or bool((finite := torch.stack(self.losses).isfinite()).all()):
            return
        first = int((~finite).nonzero()[0])
        back = len(finite) - 1 - first  # steps taken since
        keys = self.loader.keys(epoch, step_in_epoch - 1 - back)
        where = ""
        if self.ranks.first:
            self.config.out.mkdir(parents=True, exist_ok=True)
            write_bytes(self.config.out / "bad-batch.txt", "".join(f"{key}\n" for key in keys).encode())
            where = f" and {max(0, len(keys) - 3)} more, all in {self.config.out / 'bad-batch.txt'}"
        raise InputError(
            f"step {self.step - back}: the loss is {float(self.losses[first])}, on images {', '.join(keys[:3])}{where};"
            f" {how_to_continue(self.config.out, self.config.lr)}")  # fmt: skip

    def check_weights(self) -> None:
        """Raise InputError where the weights or the optimiser are no numbers, which the loss of a step does not tell:
        it was taken before them. With fp16, steps whose gradients overflow are not taken, and change neither."""
        if self.ranks.any_of([not all_finite(self.model, self.optimizer)])[0]:
            raise InputError(f"step {self.step}: the weights or the optimiser's state are NaN or infinite, and not "
                             f"saved; {how_to_continue(self.config.out, self.config.lr)}")  # fmt: skip

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.ranks.first:
            print(text, flush=True)


def _random_state(device: str) -> dict[str, Any]:
    """Every generator's state, as data that a checkpoint may hold."""
    numpy: Any = np.random.get_state(legacy=False)
    state = {"python": random.getstate(), "torch": torch.get_rng_state(),
             "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}}}  # fmt: skip
    if device == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any], device: str) -> None:
    numpy = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}})
    torch.set_rng_state(state["torch"])
    if device == "cuda" and "cuda" in state:  # it may have been on a CPU
        torch.cuda.set_rng_state(state["cuda"])
