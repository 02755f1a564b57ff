"""Optimizers and schedules: weight decay, learning rates, and steps as in the papers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from train.config import Optimizer
from train.optim import learning_rate, make_optimizer, set_learning_rate


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.mark.parametrize("name", ["adam", "adamw", "lars"])
def test_weight_decay_excludes_biases_and_norms(name: Optimizer) -> None:
    decayed, free = model(), model()
    for some, decay in ((decayed, 0.5), (free, 0.0)):
        optimizer = make_optimizer(name, some, lr=0.1, weight_decay=decay)
        torch.manual_seed(1)
        some(torch.randn(5, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    for (key, one), other in zip(decayed.named_parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other) == (key in ("1.weight", "1.bias", "3.bias")), key


def test_every_parameter_is_in_one_group() -> None:
    some = model()
    groups = make_optimizer("adam", some, lr=0.1, weight_decay=0.1).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(some.parameters()))


def test_adam_step_equals_the_papers() -> None:
    """The first step of Adam is lr · g / (|g| + ε), whatever the size of g."""
    some = model()
    before = [parameter.detach().clone() for parameter in some.parameters()]
    optimizer = make_optimizer("adam", some, lr=3e-4, weight_decay=0.0)
    some(torch.randn(5, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    for old, new in zip(before, some.parameters(), strict=True):
        assert new.grad is not None
        assert torch.allclose(old - new, 3e-4 * new.grad / (new.grad.abs() + 1e-8), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_step_equals_the_papers(decay: float) -> None:
    """Weights: lr · η ‖w‖ / (‖g‖ + β‖w‖) · (g + βw); biases and norms: lr · g (You et al., 2017, algorithm 1)."""
    some = model()
    before = [parameter.detach().clone() for parameter in some.parameters()]
    optimizer = make_optimizer("lars", some, lr=0.5, weight_decay=decay)
    some(torch.randn(5, 1, 8, 8)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in some.parameters() if parameter.grad is not None]
    optimizer.step()  # in older versions of timm this adds the decay to the gradients themselves
    for old, new, gradient in zip(before, some.parameters(), gradients, strict=True):
        if new.ndim > 1:
            ratio = 0.001 * old.norm() / (gradient.norm() + decay * old.norm())
            wanted = 0.5 * ratio * (gradient + decay * old)
        else:
            wanted = 0.5 * gradient
        assert torch.allclose(old - new, wanted, rtol=1e-3, atol=1e-6)


def learning_rates(schedule: str, warmup: float) -> list[float]:
    return [learning_rate(step, peak=2.0, schedule=schedule, warmup_steps=warmup, steps=100) for step in range(100)]  # type: ignore[arg-type]


def test_published_learning_rate_is_constant() -> None:
    assert set(learning_rates("constant", 0)) == {2.0}


def test_warm_up_is_linear() -> None:
    for schedule in ("constant", "cosine"):
        rising = learning_rates(schedule, 10)[:11]
        assert all(later - earlier == pytest.approx(2 / 11) for earlier, later in pairwise(rising))
        assert rising[0] == pytest.approx(2 / 11) and rising[10] == pytest.approx(2.0)


def test_cosine_falls_to_zero_after_the_warm_up() -> None:
    falling = learning_rates("cosine", 20)
    assert falling[60] == pytest.approx(1.0) and falling[20] == 2.0 == max(falling)
    assert falling[99] == pytest.approx(1 + math.cos(math.pi * 79 / 80), rel=1e-12) and falling[99] < 0.002
    assert all(earlier > later for earlier, later in pairwise(falling[20:]))


def test_set_learning_rate_applies_to_the_next_step() -> None:
    some = model()
    optimizer = make_optimizer("adam", some, lr=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.0)
    before = [parameter.detach().clone() for parameter in some.parameters()]
    some(torch.randn(5, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, some.parameters(), strict=True))
