"""Diverged training: a state that is not finite is not saved, and the error advises what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shard.errors import InputError
from tests.conftest import Shards, train_here
from train import loop
from train.checkpoint import list_checkpoints
from train.divergence import all_finite
from train.state import TrainState
from train.step import forward_backward


def diverging_step(value: float, step: int) -> Any:
    """Return a train_step whose loss is finite and whose update is not."""

    def take(state: TrainState, *views: torch.Tensor, **settings: Any) -> Any:
        made = STEP(state, *views, **settings)
        if state.step == step:
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0] = value
        return made

    return take


STEP = loop.train_step


@pytest.mark.parametrize(("value", "limit_steps"), [(float("nan"), 0), (float("inf"), 4)], ids=["end", "middle"])
def test_non_finite_weights_are_not_saved(
    value: float, limit_steps: int, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", diverging_step(value, limit_steps or 6))
    with pytest.raises(InputError, match=r"^step [46]: the weights or .*; there is no checkpoint yet: run it again "
                                         r"with a --lr below 0.001, or with --clip=1$"):  # fmt: skip
        train_here(shards, tmp_path, epochs=1, limit_steps=limit_steps, online_every=1)
    assert not list_checkpoints(tmp_path)


@pytest.mark.parametrize("size", [1e30, float("inf"), float("nan")])
def test_overflowing_embeddings_have_a_nan_loss(size: float) -> None:
    """1e30 fits into float32, but its square does not: normalised, the embedding is zero, and its loss is at chance."""
    model = torch.nn.Linear(4, 8)
    unwrapped: Any = model  # a linear layer stands in for SimCLR
    state = TrainState(unwrapped, lambda views: model(views) * size, torch.optim.SGD(model.parameters(), lr=0.1),
                       torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"), steps_per_epoch=1)  # fmt: skip
    assert forward_backward(state, torch.randn(3, 4), torch.randn(3, 4), temperature=0.5)[0].isnan()
    state.forward = model
    assert forward_backward(state, torch.randn(3, 4), torch.randn(3, 4), temperature=0.5)[0].isfinite()


def test_all_finite_checks_optimizer_state_and_ignores_integers() -> None:
    model = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert all_finite(model, optimizer)
    optimizer.state[model.weight]["exp_avg_sq"][1] = float("inf")
    assert not all_finite(model, optimizer)
