"""Exact training on batches larger than memory: activation checkpointing and gradient caching (GradCache)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from shard.errors import InputError
from train.architectures import build_encoder
from train.rng import rng_state, set_rng_state

Embed = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NO_AVERAGING = contextlib.nullcontext()


def check_recompute(arch: str, size: int) -> None:
    """Raise InputError if an encoder of this architecture has nothing to recompute."""
    with torch.device("meta"):
        apply_activation_checkpointing(build_encoder(arch, size)[0], arch)


def apply_activation_checkpointing(model: nn.Module, arch: str = "") -> None:
    """Recompute activations in backward instead of storing them: in residual blocks, or by timm's own means.

    Gradients stay the same, including BatchNorm over the complete batch. A step takes about a third more time and a
    fraction of the memory (Chen et al., 2016). The recomputation would update BatchNorm's running statistics again:
    run backward within preserve_running_stats. arch: the encoder's architecture, for the message. Raises InputError if
    the encoder has nothing to recompute.
    """
    blocks = [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if blocks:
        return
    encoder: Any = getattr(model, "encoder", model)
    reason = "it has no blocks to recompute"
    if hasattr(encoder, "set_grad_checkpointing"):
        try:
            encoder.set_grad_checkpointing()
            return
        except (AssertionError, NotImplementedError) as error:  # timm's models without it
            reason = f"timm says: {error}"
    raise InputError(f"--recompute: {arch or type(encoder).__name__} can't recompute its activations ({reason}); use "
                     "--micro-batch, which needs even less memory, or another --arch")  # fmt: skip


def backward_by_micro_batches(
    embed: Embed, model: nn.Module, view1: torch.Tensor, view2: torch.Tensor, loss: Loss, micro_batch: int,
    scale: Callable[[torch.Tensor], torch.Tensor], *, recompute: bool = False,
    averaging: contextlib.AbstractContextManager[None] = NO_AVERAGING,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute the loss of a batch and its gradient with the activations of one micro-batch at a time in memory.

    embed: views [2M, 1, S, S] → [2M, D], both views of M images. loss: (z1, z2), each [B, D], → scalar. scale: scales
    the loss for backward. recompute: whether the model recomputes activations. averaging: entered for the last
    backward, to average gradients over ranks. First embeds all micro-batches without a graph. Then computes the loss
    and its gradient with respect to the embeddings. Then embeds each micro-batch again, with the same random numbers,
    and backpropagates that gradient into the parameters' .grad. Exact for a model whose BatchNorm sees micro-batches;
    running statistics are updated once. Returns loss, z1 and z2, detached. Source: Gao et al., 2021, "Scaling deep
    contrastive learning batch size under memory limited setup" (GradCache).
    """
    parts = list(zip(view1.split(micro_batch), view2.split(micro_batch), strict=True))
    embedded, rng_states = [], []
    with torch.no_grad(), preserve_running_stats(model):
        for part1, part2 in parts:
            rng_states.append(rng_state(view1.device))
            embedded.append(embed(torch.cat([part1, part2])).chunk(2))
    z1, z2 = (torch.cat(half).requires_grad_() for half in zip(*embedded, strict=True))  # [B, D] each
    value = loss(z1, z2)
    gradient1, gradient2 = torch.autograd.grad(scale(value), (z1, z2))
    gradient_parts = zip(gradient1.split(micro_batch), gradient2.split(micro_batch), strict=True)
    for number, ((part1, part2), rng, gradients) in enumerate(zip(parts, rng_states, gradient_parts, strict=True), 1):
        set_rng_state(rng, view1.device)
        z = embed(torch.cat([part1, part2]))
        with contextlib.ExitStack() as contexts:
            if recompute:
                contexts.enter_context(preserve_running_stats(model))
            if number == len(parts):
                contexts.enter_context(averaging)
            z.backward(torch.cat(gradients))
    return value.detach(), z1.detach(), z2.detach()


@contextlib.contextmanager
def preserve_running_stats(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics of BatchNorm, and of timm's EvoNorm, at the end of the block."""
    buffers = [(module, name, buffer) for module in model.modules()
               for name, buffer in module.named_buffers(recurse=False)
               if name.startswith("running_") or name == "num_batches_tracked"]  # fmt: skip
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
