"""Optimisers and the learning rate's schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import Optimizer, Schedule

LARS_MOMENTUM = 0.9  # as SimCLR's appendix B has it


def make_optimizer(name: Optimizer, model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The named optimiser over a model's parameters; weight decay falls on weights alone, not on biases and norms.

    adam's decay is L2 in the gradient, adamw's is decoupled; LARS (timm's) scales a decayed weight's step by the ratio
    of its norm to its gradient's. Sources: Kingma & Ba, 2015; Loshchilov & Hutter, 2019; You et al., 2017.
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if name == "lars":
        from timm.optim.lars import Lars  # timm takes a second: only its users wait for it

        groups[0]["always_adapt"] = True  # else the ratio would be left out where there is no decay
        lars: torch.optim.Optimizer = Lars(groups, lr=lr, momentum=LARS_MOMENTUM)
        return lars
    # Fused: one pass over all parameters, and on a GPU the scaler's verdict is read there, with no wait for it.
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, lr=lr, fused=True)


def learning_rate(step: int, *, peak: float, schedule: Schedule, warmup_steps: float, steps: int) -> float:
    """The learning rate of a step, the first being 0: linear up to `peak` over the warm-up, then constant or down to 0
    at `steps` along half a cosine (Loshchilov & Hutter, 2017)."""
    if step < warmup_steps:
        return peak * (step + 1) / (math.floor(warmup_steps) + 1)
    if schedule == "constant":
        return peak
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have the optimiser's next step taken at this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
