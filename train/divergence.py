"""Detect training that diverged: losses, weights or optimizer states that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from pipeline.loader import ViewLoader
from shard.errors import InputError
from shard.files import write_bytes
from train.checkpoint import list_checkpoints
from train.config import Config
from train.distributed.ranks import Ranks
from train.state import TrainState

BAD_BATCH = "bad-batch.txt"


def check_losses(state: TrainState, loader: ViewLoader, config: Config, ranks: Ranks) -> None:
    """Raise InputError if a pending loss is not finite, naming its step and the keys of its images.

    The first rank writes all keys of the batch to bad-batch.txt.
    """
    if not state.pending_losses or bool((finite := torch.stack(state.pending_losses).isfinite()).all()):
        return
    first = int((~finite).nonzero()[0])
    steps_since = len(finite) - 1 - first
    keys = loader.keys(state.epoch, state.step_in_epoch - 1 - steps_since)
    where = ""
    if ranks.first:
        config.out.mkdir(parents=True, exist_ok=True)
        write_bytes(config.out / BAD_BATCH, "".join(f"{key}\n" for key in keys).encode())
        where = f" and {max(0, len(keys) - 3)} more, all in {config.out / BAD_BATCH}"
    raise InputError(
        f"step {state.step - steps_since}: the loss is {float(state.pending_losses[first])}, on images "
        f"{', '.join(keys[:3])}{where}; {suggest_recovery(config.out, config.lr)}")  # fmt: skip


def check_weights(state: TrainState, config: Config, ranks: Ranks) -> None:
    """Raise InputError if weights or optimizer state are not finite on any rank.

    The loss of a step does not show this: it is computed before the update. With fp16 the scaler skips updates whose
    gradients overflow.
    """
    if ranks.any_of([not all_finite(state.model, state.optimizer)])[0]:
        raise InputError(f"step {state.step}: the weights or the optimizer's state are NaN or infinite, and were not "
                         f"saved; {suggest_recovery(config.out, config.lr)}")  # fmt: skip


def all_finite(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether all weights, buffers and optimizer states are finite, with one synchronization per device."""
    optimizer_values = (value for values in optimizer.state.values() for value in values.values())
    checks = [tensor.detach().isfinite().all()
              for tensor in _floats([*model.state_dict().values(), *optimizer_values])]  # fmt: skip
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for check in checks:
        by_device.setdefault(check.device, []).append(check)
    return all(bool(torch.stack(some).all()) for some in by_device.values())


def _floats(values: Iterable[object]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def suggest_recovery(out: Path, lr: float) -> str:
    """Suggest how to continue after training diverged: from the newest checkpoint, or from scratch if there is none."""
    checkpoints = list_checkpoints(out)
    if not checkpoints:
        return f"there is no checkpoint yet: run it again with a --lr below {lr:g}, or with --clip=1"
    return (f"continue from the last good checkpoint, {checkpoints[0]}, with a --lr below {lr:g} and --accept=lr, or "
            "--clip=1 --accept=clip")  # fmt: skip
