"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from train.config import Optimizer, Schedule

LARS_MOMENTUM = 0.9  # as in SimCLR's appendix B


def make_optimizer(name: Optimizer, model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Create the named optimizer of a model's parameters. Weight decay applies to weights, not to biases, norms and
    what timm exempts, such as position embeddings.

    adam adds the decay to the gradient (L2), adamw decouples it; LARS (timm's) scales a decayed weight's step by the
    ratio of its norm to its gradient's. Sources: Kingma & Ba, 2015; Loshchilov & Hutter, 2019; You et al., 2017.
    """
    exempt = _exempt_from_decay(model)
    weights = [parameter for name, parameter in model.named_parameters() if parameter.ndim > 1 and name not in exempt]
    others = [parameter for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name in exempt]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if name == "lars":
        from timm.optim.lars import Lars  # imported here because timm takes a second

        groups[0]["always_adapt"] = True  # also without weight decay
        lars: torch.optim.Optimizer = Lars(groups, lr=lr, momentum=LARS_MOMENTUM)
        return lars
    # fused: one pass over all parameters, and no synchronization for the gradient scaler on a GPU.
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, lr=lr, fused=True)


def _exempt_from_decay(model: nn.Module) -> set[str]:
    """Return the names of the parameters that timm's models exempt from weight decay, as timm's optimizers do."""
    encoder: Any = getattr(model, "encoder", model)
    patterns = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    prefix = "" if encoder is model else "encoder."
    return {prefix + name for name, _ in encoder.named_parameters()
            if any(fnmatch(name, pattern) for pattern in patterns)}  # fmt: skip


def learning_rate(step: int, *, peak: float, schedule: Schedule, warmup_steps: float, steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to `peak` during the warm-up. Then it stays constant, or falls to 0 at `steps` along half a
    cosine (Loshchilov & Hutter, 2017).
    """
    if step < warmup_steps:
        return peak * (step + 1) / (math.floor(warmup_steps) + 1)
    if schedule == "constant":
        return peak
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the optimizer's next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
