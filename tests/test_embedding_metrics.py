"""Embedding metrics against a slow reference implementation."""

from __future__ import annotations

import math

import pytest
import torch

from train.embedding_metrics import embedding_metrics


def reference_metrics(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, float]:
    views = [view / view.norm() for view in [*z1.double(), *z2.double()]]
    images = len(z1)
    positive, negative, near, found = [], [], [], 0
    for i, one in enumerate(views):
        partner = (i + images) % (2 * images)
        cosines = {k: float(one @ other) for k, other in enumerate(views) if k != i}
        positive.append(cosines[partner])
        negative += [cosine for k, cosine in cosines.items() if k != partner]
        near += [math.exp(-2 * float((one - views[k]).square().sum())) for k in cosines]
        found += max(cosines, key=lambda k: cosines[k]) == partner
    gram = torch.stack(views)
    shares = torch.linalg.eigvalsh(gram.T @ gram).clamp(min=0).sqrt()
    shares = shares / shares.sum()
    entropy = -sum(float(share) * math.log(float(share)) for share in shares if share > 1e-12)
    distances = [float((views[i] - views[i + images]).square().sum()) for i in range(images)]
    return {"positive_similarity": sum(positive) / len(positive), "negative_similarity": sum(negative) / len(negative),
            "alignment": sum(distances) / images, "uniformity": math.log(sum(near) / len(near)),
            "embedding_rank": math.exp(entropy), "top1": found / len(views)}  # fmt: skip


def test_metrics_equal_the_reference() -> None:
    torch.manual_seed(0)
    z1 = torch.randn(9, 6)
    z2 = z1 + torch.randn(9, 6)
    expected = reference_metrics(z1, z2)
    assert embedding_metrics(z1, z2) == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}
    assert 0 < expected["top1"] < 1


def test_same_patient_pairs_count_the_joint_batch() -> None:
    z1, z2 = torch.randn(2, 1500, 4)
    patients = torch.arange(1500) // 3
    assert embedding_metrics(z1, z2, patients)["same_patient_pairs"] == pytest.approx(2 / 1499)
    assert "same_patient_pairs" not in embedding_metrics(z1, z2)


def test_collapse_is_visible_in_the_metrics() -> None:
    z = torch.ones(8, 1) * torch.randn(1, 16)
    collapsed, spread = embedding_metrics(z, z), embedding_metrics(torch.eye(8), torch.eye(8))
    assert collapsed["embedding_rank"] == pytest.approx(1, abs=0.01)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-6)
    assert spread["embedding_rank"] == pytest.approx(8, rel=1e-3) and spread["top1"] == 1
    assert spread["alignment"] == pytest.approx(0, abs=1e-6) and spread["negative_similarity"] == 0


def test_metrics_use_the_first_1024_images() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 1500, 4)
    assert embedding_metrics(z1, z2) == embedding_metrics(z1[:1024], z2[:1024])
