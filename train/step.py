"""One training step of SimCLR."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch

from train.config import Precision
from train.device import autocast
from train.distributed.collectives import all_reduce_mean
from train.distributed.gradients import average_gradients
from train.large_batch import backward_by_micro_batches, preserve_running_stats
from train.loss import nt_xent
from train.optim import set_learning_rate
from train.presets import SamePatient
from train.state import TrainState


def train_step(
    state: TrainState, view1: torch.Tensor, view2: torch.Tensor, *, lr: float, temperature: float,
    patients: torch.Tensor | None = None, same_patient: SamePatient = "negatives", precision: Precision = "fp32",
    micro_batch: int = 0, recompute: bool = False, clip: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Take one step of SimCLR on two views of a batch, each [B, 1, S, S].

    patients, same_patient: see nt_xent. micro_batch: images at a time, 0 for the whole batch. recompute: whether the
    model recomputes activations (train.large_batch). clip: largest norm of the gradient, 0 for no limit. Returns the
    loss of the joint batch [] and this rank's embeddings z1 and z2, [B, 128].
    """
    loss, z1, z2 = forward_backward(state, view1, view2, temperature=temperature, patients=patients,
                                    same_patient=same_patient, precision=precision, micro_batch=micro_batch,
                                    recompute=recompute)  # fmt: skip
    update(state, lr=lr, clip=clip)
    return loss, z1, z2


def forward_backward(
    state: TrainState, view1: torch.Tensor, view2: torch.Tensor, *, temperature: float,
    patients: torch.Tensor | None = None, same_patient: SamePatient = "negatives", precision: Precision = "fp32",
    micro_batch: int = 0, recompute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute the loss of the joint batch and put its gradient into .grad; see train_step."""

    def embed(views: torch.Tensor) -> torch.Tensor:
        # A new context for each call: one context would reuse a weight that was cast without a graph.
        with autocast(views.device.type, precision):
            return state.forward(views)

    loss_of = partial(nt_xent, temperature=temperature, patients=patients, same_patient=same_patient)
    state.optimizer.zero_grad(set_to_none=True)
    if micro_batch:
        loss, z1, z2 = backward_by_micro_batches(embed, state.model, view1, view2, loss_of, micro_batch,
                                                 state.scaler.scale, recompute=recompute,
                                                 averaging=average_gradients(state.model))  # fmt: skip
    else:
        z1, z2 = embed(torch.cat([view1, view2])).chunk(2)  # BatchNorm sees both views
        loss = loss_of(z1, z2)
        with preserve_running_stats(state.model) if recompute else nullcontext(), average_gradients(state.model):
            state.scaler.scale(loss).backward()
    # Normalising an overflowed embedding gives zeros, and the loss would look normal.
    finite = torch.linalg.vector_norm(torch.stack([z1, z2]).detach().float(), dim=-1).isfinite().all()
    loss = torch.where(finite, loss.detach(), torch.nan)
    return all_reduce_mean(loss), z1.detach(), z2.detach()


def update(state: TrainState, *, lr: float, clip: float = 0.0) -> None:
    """Update the weights with the gradients of forward_backward, and count the step."""
    set_learning_rate(state.optimizer, lr)
    if clip:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    state.step_in_epoch += 1
