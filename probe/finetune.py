"""Full fine-tuning: every weight of the encoder learns from the support set. What a probe is compared with."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

STEPS, LR, WEIGHT_DECAY = 100, 3e-4, 1e-2  # AdamW on the whole support set a step; fixed, as ten shots can't choose
BATCH = 128  # test images at a time


def finetune(
    module: nn.Module, examples: torch.Tensor, labels: torch.Tensor, tested: torch.Tensor, *, seed: int
) -> npt.NDArray[np.float64]:
    """Decision values [N] of one encoder with a linear layer on top, all of it trained on one support set.

    examples, tested: normalised images [n, 1, S, S] and [N, 1, S, S] on the device; labels: [n] of 0 and 1. Half of the
    examples of a step, chosen anew, are shown mirrored. `module` itself is left as it was.
    """
    device = examples.device
    encoder = copy.deepcopy(module).to(device)
    generator = torch.Generator().manual_seed(seed)
    encoder.eval()
    with torch.no_grad():
        width = encoder(examples[:1]).shape[1]
    encoder.train()
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)  # the first step's gradient says which way; no chance needed
    nn.init.zeros_(head.bias)
    head.to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    wanted = labels.float()
    for _ in range(STEPS):
        mirrored = (torch.rand(len(examples), generator=generator) < 0.5).to(device)
        shown = torch.where(mirrored[:, None, None, None], examples.flip(3), examples)
        loss = nn.functional.binary_cross_entropy_with_logits(head(encoder(shown))[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    with torch.inference_mode():
        decisions = [head(encoder(batch))[:, 0].double().cpu().numpy() for batch in tested.split(BATCH)]
    found: npt.NDArray[np.float64] = np.concatenate(decisions)
    return found
