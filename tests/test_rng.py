"""Random states: a resumed run continues every generator, including those that training does not draw from."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Shards, newest, same_run, train_here
from train import loop

STEP = loop.train_step


@pytest.mark.long
def test_resumed_run_continues_every_generator(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[tuple[float, float, float]] = []

    def step_that_draws(*arguments: Any, **settings: Any) -> Any:
        numbers.append((random.random(), float(np.random.rand()), torch.rand(()).item()))
        return STEP(*arguments, **settings)

    monkeypatch.setattr(loop, "train_step", step_that_draws)
    train_here(shards, tmp_path / "whole", epochs=1)
    uninterrupted, numbers[:] = numbers.copy(), []
    for limit in (3, 0):
        train_here(shards, tmp_path / "parts", epochs=1, limit_steps=limit)
    assert numbers == uninterrupted and len(set(numbers)) == newest(tmp_path / "whole")["step"]
    assert same_run(tmp_path / "whole", tmp_path / "parts")
