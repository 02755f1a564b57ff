"""TrainState: everything that changes while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from train.model import SimCLR


@dataclass
class TrainState:
    """Model, optimizer, gradient scaler and position of a run between two steps. Independent of files and ranks.

    forward: the model, or its compiled version. epoch: completed epochs. step_in_epoch: steps taken in the current
    epoch; equal to steps_per_epoch until the epoch's end is done. step: steps in all. loss_sum: sum of the current
    epoch's logged losses. pending_losses: the losses since then, each [] on the device.
    """

    model: SimCLR
    forward: Callable[[torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    steps_per_epoch: int
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    pending_losses: list[torch.Tensor] = field(default_factory=list)

    @property
    def epochs_trained(self) -> float:
        """Epochs trained so far, with the current one's fraction."""
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    @property
    def epoch_is_complete(self) -> bool:
        """Whether all steps of the current epoch have been taken."""
        return self.step_in_epoch == self.steps_per_epoch

    def take_pending_loss(self) -> float:
        """Return the mean of the pending losses and add them to the epoch's sum."""
        loss = torch.stack(self.pending_losses).mean().item()
        self.loss_sum += loss * len(self.pending_losses)
        self.pending_losses = []
        return loss

    def end_epoch(self) -> float:
        """Move on to the next epoch and return the mean loss of the one that ended."""
        loss = self.loss_sum / self.steps_per_epoch
        self.epoch, self.step_in_epoch, self.loss_sum = self.epoch + 1, 0, 0.0
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return all that load_state_dict needs, as tensors and plain values."""
        return {
            "epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "step": self.step, "loss_sum": self.loss_sum,
            "losses": torch.stack(self.pending_losses) if self.pending_losses else torch.empty(0),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what state_dict returned; hyperparameters of the optimizer keep their current values.

        Raises ValueError, KeyError, TypeError or RuntimeError if `state` does not fit.
        """
        epoch, step_in_epoch, step = (read_count(state, name) for name in ("epoch", "step_in_epoch", "step"))
        self.model.load_state_dict(state["model"])
        self._load_optimizer(state["optimizer"])
        if state["scaler"]:  # empty unless the run used fp16
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch, self.step = epoch, step_in_epoch, step
        self.loss_sum = float(state["loss_sum"])
        self.pending_losses = list(state["losses"].to(self.device).unbind())

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        # --accept=lr and the like let a resumed run have other hyperparameters than its checkpoint.
        current = [{name: value for name, value in group.items() if name != "params"}
                   for group in self.optimizer.param_groups]  # fmt: skip
        self.optimizer.load_state_dict(state)
        for group, hyperparameters in zip(self.optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, ()):
                    raise ValueError(f"the optimizer's {name} does not have the shape of its weights")


def read_count(state: Mapping[str, Any], name: str) -> int:
    """Return a count from a checkpoint. Raises KeyError if it is missing, ValueError if it is not plausible."""
    count = state[name]
    if type(count) is not int or not 0 <= count < 2**60:
        raise ValueError(f"{name} is {count!r}")
    return count
