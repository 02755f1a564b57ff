"""NT-Xent against a slow reference implementation in float64."""

import math

import pytest
import torch

from train.loss import nt_xent
from train.presets import SamePatient

PATIENTS = [3, 0, 3, 1, 0, 3, 2]


def reference_nt_xent(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float, patients: list[int] | None = None, same: str = "negatives"
) -> float:
    """Compute equation 1 of the paper term by term, with views of the same patient masked or positives."""
    views, total = [*z1, *z2], 0.0
    of = 2 * (patients or list(range(len(z1))))
    for i, anchor in enumerate(views):
        cosines = [float(anchor @ other / (anchor.norm() * other.norm())) for other in views]
        partner = (i + len(z1)) % len(views)
        left_out = {k for k in range(len(views)) if of[k] == of[i] and k != partner} if same == "masked" else {i}
        rest = [math.exp(cosine / temperature) for k, cosine in enumerate(cosines) if k not in left_out]
        positives = [k for k in range(len(views)) if of[k] == of[i] and k != i] if same == "positives" else [partner]
        total += sum(math.log(sum(rest)) - cosines[k] / temperature for k in positives) / len(positives)
    return total / len(views)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_loss_equals_the_reference(temperature: float) -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 7, 16, dtype=torch.float64)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(reference_nt_xent(z1, z2, temperature), rel=1e-12)


@pytest.mark.parametrize("same", ["masked", "positives"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_loss_equals_the_reference_with_several_images_per_patient(same: SamePatient, temperature: float) -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 7, 16, dtype=torch.float64)
    found = nt_xent(z1, z2, temperature, torch.tensor(PATIENTS), same).item()
    assert found == pytest.approx(reference_nt_xent(z1, z2, temperature, PATIENTS, same), rel=1e-12)
    assert found != pytest.approx(reference_nt_xent(z1, z2, temperature), rel=1e-3)


@pytest.mark.parametrize("same", ["negatives", "masked", "positives"])
def test_patients_with_one_image_do_not_change_the_loss(same: SamePatient) -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 7, 16, dtype=torch.float64)
    found = nt_xent(z1, z2, 0.5, torch.arange(7), same).item()
    assert found == pytest.approx(nt_xent(z1, z2, 0.5).item(), rel=1e-12)


@pytest.mark.parametrize("same", ["masked", "positives"])
def test_batch_of_one_patient_has_a_finite_loss(same: SamePatient) -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    loss = nt_xent(z1, z2, 0.05, torch.zeros(5, dtype=torch.int64), same)
    loss.backward()
    assert loss.isfinite() and z1.grad is not None and z1.grad.isfinite().all()
    assert (loss.item() == 0) == (same == "masked")  # a softmax over the positive alone


@pytest.mark.parametrize("same", ["negatives", "masked", "positives"])
def test_gradient_equals_finite_differences(same: SamePatient) -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    patients = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, patients, same), (z1, z2))


def test_loss_is_float32_and_finite_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 32, 128, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z1, z2, 0.05)
    exact = nt_xent(z1.double(), z2.double(), 0.05)
    assert loss.dtype == torch.float32 and loss.item() > 1
    # bf16 similarities would be off by up to 2^-9 / 0.05 = 0.04 before the exponential.
    assert loss.item() == pytest.approx(exact.item(), abs=1e-5)


def test_loss_is_minimal_for_equal_views_and_chance_for_equal_images() -> None:
    far_apart = torch.eye(8)
    assert nt_xent(far_apart, far_apart, 0.05).item() < 1e-6
    collapsed = torch.ones(8, 4)
    assert nt_xent(collapsed, collapsed, 0.5).item() == pytest.approx(math.log(15), rel=1e-6)
