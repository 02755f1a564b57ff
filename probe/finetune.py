"""Full fine-tuning on a support set, all weights of the encoder included, to compare the linear probe with."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from probe.full_precision import full_precision
from shard.progress import Progress

STEPS, LR, WEIGHT_DECAY = 100, 3e-4, 1e-2  # AdamW, full batch; fixed: ten shots can't tune them


def finetune(
    module: nn.Module, examples: torch.Tensor, labels: torch.Tensor, tested: torch.Tensor, *, seed: int,
    batch_size: int = 128, progress: Progress | None = None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Train a copy of the encoder with a linear layer on one support set; return the decision values [N].

    examples, tested: normalised images [n, 1, S, S] and [N, 1, S, S] on the device. labels: [n], 0 or 1. In each step
    every example is mirrored with probability 0.5. Dropout and stochastic depth draw from the seed, too. batch_size:
    test images at a time. progress: counts the steps.
    """
    with full_precision(), torch.random.fork_rng(devices=[examples.device] if examples.is_cuda else []):
        torch.manual_seed(seed)
        return _finetune(module, examples, labels, tested, seed, batch_size, progress)


def _finetune(
    module: nn.Module, examples: torch.Tensor, labels: torch.Tensor, tested: torch.Tensor, seed: int,
    batch_size: int, progress: Progress | None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    device = examples.device
    encoder = copy.deepcopy(module).to(device)
    generator = torch.Generator().manual_seed(seed)
    encoder.eval()
    with torch.no_grad():
        width = encoder(examples[:1]).shape[1]
    encoder.train()
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)  # a linear layer alone needs no random initialisation
    nn.init.zeros_(head.bias)
    head.to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    targets = labels.float()
    for _ in range(STEPS):
        mirrored = (torch.rand(len(examples), generator=generator) < 0.5).to(device)
        views = torch.where(mirrored[:, None, None, None], examples.flip(3), examples)
        loss = nn.functional.binary_cross_entropy_with_logits(head(encoder(views))[:, 0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress.advance()
    encoder.eval()
    with torch.inference_mode():
        decisions = [head(encoder(batch))[:, 0].double().cpu().numpy() for batch in tested.split(batch_size)]
    result: npt.NDArray[np.float64] = np.concatenate(decisions)
    return result
