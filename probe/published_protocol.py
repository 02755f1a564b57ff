"""The published protocol, shown next to ours: peak accuracy over epochs, selected on the test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from probe.fewshot import Rows
from train.frozen_features import Features

EPOCHS, LR = 100, 1e-3  # the study states neither: Adam's default, and its number of pre-training epochs
NOISE = "Pure noise"


class Peaks(NamedTuple):
    """Accuracy of each draw [D] at its best epoch, selected on the test images themselves, and after the last epoch."""

    peak: npt.NDArray[np.float64]
    final: npt.NDArray[np.float64]


def published_draws(
    features: Features, support: Rows, labels: Rows, test: Rows, test_labels: Rows,
    sets: Sequence[npt.NDArray[np.bool_]], *, seed: int, first: int = 0,
) -> list[Peaks]:  # fmt: skip
    """Train a linear layer on frozen features with Adam and full batches, as published; return the peaks by test set.

    features: [images, F], not standardised. support, labels: [D, n]. test: [N] rows. sets: for each test set, the
    images [D, N] that each draw is tested on. first: the number of the first draw. A step is an epoch.
    """
    examples = torch.from_numpy(features[support])  # [D, n, F]
    targets = torch.from_numpy(labels).float()
    tested = torch.from_numpy(features[test])
    truth = torch.from_numpy(test_labels == 1)
    counted = torch.from_numpy(np.stack(sets)).float()  # [sets, D, N]
    weights, bias = _initial_layer(features.shape[1], seed, range(first, first + len(support)))
    optimizer = torch.optim.Adam([weights, bias], lr=LR)
    accuracies = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        logits = (examples @ weights[..., None])[..., 0] + bias[:, None]
        # Summed over draws, so that each draw's gradient is independent.
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = ((weights @ tested.T + bias[:, None] > 0) == truth).float() * counted
            accuracies.append(right.sum(2) / counted.sum(2))
    over_epochs = torch.stack(accuracies, 1).double().numpy()  # [sets, EPOCHS, D]
    return [Peaks(accuracy.max(axis=0), accuracy[-1]) for accuracy in over_epochs]


def _initial_layer(width: int, seed: int, draws: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Initialise weights [D, F] and biases [D] as torch.nn.Linear does, seeded by the number of the draw."""
    rows = [torch.rand(width + 1, generator=torch.Generator().manual_seed(seed * 10**6 + draw)) for draw in draws]
    both = (2 * torch.stack(rows) - 1) * width**-0.5
    return both[:, :-1].clone().requires_grad_(), both[:, -1].clone().requires_grad_()


def noise_features(like: Features, seed: int) -> Features:
    """Permute the rows of features: the same distribution, without any information about the images."""
    noise: Features = np.random.default_rng(seed).permutation(like)
    return noise
