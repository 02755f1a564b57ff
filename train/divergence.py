"""Numbers that are NaN or infinite: whether a state has any, and how to go on from before it had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from train.checkpoint import list_checkpoints


def all_finite(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a model's weights and buffers, and what the optimiser keeps, are numbers; one wait for a device."""
    kept = (value for values in optimizer.state.values() for value in values.values())
    checks = [tensor.detach().isfinite().all() for tensor in _floats([*model.state_dict().values(), *kept])]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for check in checks:
        by_device.setdefault(check.device, []).append(check)
    return all(bool(torch.stack(some).all()) for some in by_device.values())


def _floats(values: Iterable[object]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def how_to_continue(out: Path, lr: float) -> str:
    """What to run where a training's numbers overflowed: from its newest checkpoint, or anew where it has none."""
    good = list_checkpoints(out)
    if not good:
        return f"there is no checkpoint yet: run it again with a --lr below {lr:g}, or with --clip=1"
    return (f"go on from the last good checkpoint, {good[0]}, with a --lr below {lr:g} and --accept=lr, or --clip=1 "
            "--accept=clip")  # fmt: skip
