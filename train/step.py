"""One step of SimCLR."""

from __future__ import annotations

from functools import partial

import torch

from train.device import autocast
from train.distributed import average
from train.large_batch import backward_by_micro_batches
from train.loss import nt_xent
from train.optim import learning_rate, set_learning_rate
from train.state import Run


def train_step(
    run: Run, view1: torch.Tensor, view2: torch.Tensor, patients: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of SimCLR on two views of a batch, each [B, 1, S, S]; returns the joint batch's loss [], z1 and z2.

    patients: of the joint batch, [B·world], where the loss asks for them.
    """
    loss, z1, z2 = forward_backward(run, view1, view2, patients)
    update(run)
    return loss, z1, z2


def forward_backward(
    run: Run, view1: torch.Tensor, view2: torch.Tensor, patients: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of the joint batch and the embeddings of ours, [B, 128] each; their gradient goes into .grad."""
    config, embed = run.config, partial(_embed, run)
    loss_of = partial(nt_xent, temperature=config.temperature, patients=patients, same_patient=config.same_patient)
    run.optimizer.zero_grad(set_to_none=True)
    if config.micro_batch:
        loss, z1, z2 = backward_by_micro_batches(embed, run.model, view1, view2, loss_of, config.micro_batch,
                                                 run.scaler.scale)  # fmt: skip
    else:
        z1, z2 = embed(torch.cat([view1, view2])).chunk(2)  # BatchNorm over both views
        loss = loss_of(z1, z2)
        run.scaler.scale(loss).backward()
    # Of an embedding that overflows, or whose length does, normalising makes zeros, and of those a loss like any other.
    finite = torch.linalg.vector_norm(torch.stack([z1, z2]).detach().float(), dim=-1).isfinite().all()
    loss = torch.where(finite, loss.detach(), torch.nan)
    return average(run.model, loss), z1.detach(), z2.detach()


def _embed(run: Run, views: torch.Tensor) -> torch.Tensor:
    # A context of its own each time: within one, a weight cast without a graph would be cached without its gradient.
    with autocast(run.config.device, run.config.precision):
        return run.forward(views)


def update(run: Run) -> None:
    """The optimiser's step along what forward_backward left."""
    config = run.config
    set_learning_rate(run.optimizer, lr_of(run))
    if config.clip:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.step += 1


def lr_of(run: Run) -> float:
    """The learning rate of the next step."""
    config, steps = run.config, len(run.loader)
    return learning_rate(run.step, peak=config.lr, schedule=config.schedule,
                         warmup_steps=config.warmup_epochs * steps, steps=config.epochs * steps)  # fmt: skip
