"""NT-Xent against a slow twin in float64."""

import math

import pytest
import torch

from train.loss import nt_xent


def slow_nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term."""
    views = [*z1, *z2]
    total = 0.0
    for i, anchor in enumerate(views):
        cosines = [float(anchor @ other / (anchor.norm() * other.norm())) for other in views]
        partner = (i + len(z1)) % len(views)
        rest = [math.exp(cosine / temperature) for k, cosine in enumerate(cosines) if k != i]
        total += math.log(sum(rest)) - cosines[partner] / temperature
    return total / len(views)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_equals_the_slow_twin(temperature: float) -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 7, 16, dtype=torch.float64)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(slow_nt_xent(z1, z2, temperature), rel=1e-12)


def test_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))


def test_is_finite_and_float32_under_bf16_autocast_at_a_small_temperature() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 32, 128, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z1, z2, 0.05)
    exact = nt_xent(z1.double(), z2.double(), 0.05)
    assert loss.dtype == torch.float32 and loss.item() > 1
    # bf16 similarities would be off by up to 2^-9 / 0.05 = 0.04 before the exponential.
    assert loss.item() == pytest.approx(exact.item(), abs=1e-5)


def test_equal_views_of_distinct_images_give_the_least_loss_and_equal_images_chance() -> None:
    far_apart = torch.eye(8)
    assert nt_xent(far_apart, far_apart, 0.05).item() < 1e-6
    collapsed = torch.ones(8, 4)
    assert nt_xent(collapsed, collapsed, 0.5).item() == pytest.approx(math.log(15), rel=1e-6)
