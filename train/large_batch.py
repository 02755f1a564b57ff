"""Batches larger than memory, exactly: activations computed again, and the two-pass gradient cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from train.rng import rng_state, set_rng_state

Embed = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def recompute_blocks(model: nn.Module) -> None:
    """Have every residual block forget its activations and compute them again in backward: the same gradient, whole-
    batch BatchNorm included, for about a third more time and a fraction of the memory (Chen et al., 2016)."""
    for block in model.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            # The second time, BatchNorm must not move its running statistics again.
            contexts = partial(_contexts, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], ...]:
    """What surrounds a block's first and second computation."""
    return contextlib.nullcontext(), statistics_kept(block)


def backward_by_micro_batches(
    embed: Embed, model: nn.Module, view1: torch.Tensor, view2: torch.Tensor, loss: Loss, micro_batch: int,
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss over a whole batch and its gradient, with the activations of one micro-batch at a time in memory.

    embed: views [2M, 1, S, S] → [2M, D], both views of M images. loss: (z1, z2), each [B, D], → a number, which `scale`
    scales for backward. First all micro-batches are embedded without a graph, then the loss and its gradient at the
    embeddings are taken, then each micro-batch is embedded again, with the same random numbers, and that gradient
    carried on into the parameters' .grad. Exact for the model whose BatchNorm sees micro-batches; running statistics
    move once. Returns loss, z1, z2, detached. Source: Gao et al., 2021, "Scaling deep contrastive learning batch size
    under memory limited setup" (GradCache).
    """
    parts = list(zip(view1.split(micro_batch), view2.split(micro_batch), strict=True))
    embedded, rng_states = [], []
    with torch.no_grad(), statistics_kept(model):
        for part1, part2 in parts:
            rng_states.append(rng_state(view1.device))
            embedded.append(embed(torch.cat([part1, part2])).chunk(2))
    z1, z2 = (torch.cat(half).requires_grad_() for half in zip(*embedded, strict=True))  # [B, D] each
    value = loss(z1, z2)
    gradient1, gradient2 = torch.autograd.grad(scale(value), (z1, z2))
    slices = zip(gradient1.split(micro_batch), gradient2.split(micro_batch), strict=True)
    for (part1, part2), rng, gradients in zip(parts, rng_states, slices, strict=True):
        set_rng_state(rng, view1.device)
        embed(torch.cat([part1, part2])).backward(torch.cat(gradients))
    return value.detach(), z1.detach(), z2.detach()


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm moves copies of its running statistics, which are dropped at the end."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
