"""The published protocol, to be shown beside ours: its figure is the best of many looks at the test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from probe.fewshot import Rows
from train.frozen_features import Features

EPOCHS, LR = 100, 1e-3  # the study names neither: Adam's own rate, and as many epochs as its pre-training had
NOISE = "Pure noise"


class Peaks(NamedTuple):
    """Of each draw [D]: accuracy at its best epoch, chosen on the test images themselves, and after the last epoch."""

    peak: npt.NDArray[np.float64]
    final: npt.NDArray[np.float64]


def published_draws(
    features: Features, support: Rows, labels: Rows, test: Rows, test_labels: Rows,
    sets: Sequence[npt.NDArray[np.bool_]], *, seed: int, first: int = 0,
) -> list[Peaks]:  # fmt: skip
    """The published protocol on each draw: a linear layer on frozen features, Adam, all examples a step, peak accuracy.

    features: [images, F], as the encoder gives them; support, labels: [D, n]; test: [N] rows; sets: test sets, [D, N]
    each, the images that each draw is tested on, for which there are as many peaks; first: the number of the first
    draw. A step is an epoch.
    """
    examples = torch.from_numpy(features[support])  # [D, n, F]
    wanted = torch.from_numpy(labels).float()
    tested = torch.from_numpy(features[test])
    truth = torch.from_numpy(test_labels == 1)
    counted = torch.from_numpy(np.stack(sets)).float()  # [sets, D, N]
    weights, bias = _start(features.shape[1], seed, range(first, first + len(support)))
    optimizer = torch.optim.Adam([weights, bias], lr=LR)
    accuracies = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        said = (examples @ weights[..., None])[..., 0] + bias[:, None]
        # The sum over draws of each one's mean: the draws do not touch one another.
        loss = torch.nn.functional.binary_cross_entropy_with_logits(said, wanted, reduction="none").mean(1).sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = ((weights @ tested.T + bias[:, None] > 0) == truth).float() * counted
            accuracies.append(right.sum(2) / counted.sum(2))
    over_epochs = torch.stack(accuracies, 1).double().numpy()  # [sets, EPOCHS, D]
    return [Peaks(one.max(axis=0), one[-1]) for one in over_epochs]


def _start(width: int, seed: int, draws: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [D, F] and biases [D] as torch.nn.Linear begins, those of a draw by its number."""
    rows = [torch.rand(width + 1, generator=torch.Generator().manual_seed(seed * 10**6 + draw)) for draw in draws]
    both = (2 * torch.stack(rows) - 1) * width**-0.5
    return both[:, :-1].clone().requires_grad_(), both[:, -1].clone().requires_grad_()


def noise_features(like: Features, seed: int) -> Features:
    """Features that know nothing of the images and look like others: those, dealt out to the images at random."""
    noise: Features = np.random.default_rng(seed).permutation(like)
    return noise
