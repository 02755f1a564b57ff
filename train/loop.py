"""The training loop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.loader import ViewLoader
from shard.files import locked
from train.checkpointer import Checkpointer
from train.config import Config
from train.device import resolve_device
from train.distributed.process_group import init_distributed
from train.distributed.ranks import Ranks
from train.divergence import check_losses, check_weights
from train.embedding_metrics import embedding_metrics
from train.journal import LOCK, write_card
from train.online import OnlineProbe
from train.optim import learning_rate
from train.out_of_memory import describe_step, explain_out_of_memory, step_cures
from train.run_log import RunLog
from train.select_checkpoint import select_checkpoint
from train.setup import set_up
from train.signals import REQUEUE, StopRequest, catch_stop_signals
from train.starting_weights import read_starting_weights
from train.state import TrainState
from train.step import train_step
from train.trackers.open import check_trackers, servers_behind
from train.view_choice import settle_views

LOCK_TIMEOUT_S = 15.0  # for the lock: DataLoader workers of a killed run notice within 5 seconds and release it


def pretrain(config: Config) -> None:
    """Pre-train SimCLR as `config` says, and write the run into config.out; resume from its newest checkpoint.

    Writes checkpoints/, metrics.jsonl, speed.jsonl, run.json, loss.png and what config.log names. An interrupted and
    resumed run sees the same batches and, on a CPU, ends with the same weights as an uninterrupted one. On SIGUSR1 or
    SIGTERM it saves after the current step and exits, the first rank with status 75 (requeue).
    """
    check_trackers(config.log)
    device = resolve_device(config.device)
    with (catch_stop_signals() as stop, init_distributed(device) as ranks,
          explain_out_of_memory(device, lambda: describe_step(config, ranks.world),
                                lambda: step_cures(config, ranks.world))):  # fmt: skip
        start = read_starting_weights(config, ranks)
        setup = set_up(config, ranks)
        config, manifest, augmentation, _, state = setup
        start.load_into(state.model.encoder)
        with _only_writer(config.out, ranks):
            found = select_checkpoint(config, ranks.print) if ranks.first else None
            loader, views = settle_views(setup, ranks, found)
            checkpointer = Checkpointer(config, manifest, augmentation, loader, ranks, start.record, views)
            checkpointer.resume(state, found)
            del found  # as large as the model and the optimizer's state
            if is_finished(state, config):
                ranks.print(f"{config.out}: the requested {state.step} steps are done; nothing to do")
                _send_the_rest(config, state, checkpointer, ranks)
                return
            if ranks.first:
                write_card(config.out, config, checkpointer.accepted, checkpointer.start, views,
                           origin=checkpointer.origin, ranks=ranks.world, steps_per_epoch=len(loader))  # fmt: skip
            probe = OnlineProbe(config, manifest, augmentation, state.device)
            with RunLog(config, state, ranks, checkpointer.open_journal(state)) as log:
                stopped = train(config, state, loader, checkpointer, probe, log, ranks, stop)
    if stopped:
        name = signal.Signals(stop.signal).name if stop.signal else "another rank"
        ranks.print(f"{config.out}: saved after step {state.step}, as requested by {name}; the same command resumes")
        # One status for the job: Slurm reports the highest of several, and may end the job at the first non-zero one.
        sys.exit((130 if stop.signal == signal.SIGINT else REQUEUE) if ranks.first else 0)
    if state.epoch < config.epochs:
        ranks.print(f"{config.out}: stopped after {state.step} steps, at --limit-steps; without it the run continues")


@contextlib.contextmanager
def _only_writer(out: Path, ranks: Ranks) -> Iterator[None]:
    """Create the run's folder and lock it against other processes; the first rank does this for all."""
    if not ranks.first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, LOCK, timeout_s=LOCK_TIMEOUT_S):
        yield


def _send_the_rest(config: Config, state: TrainState, checkpointer: Checkpointer, ranks: Ranks) -> None:
    """Send what the servers of --log lack of a finished run, after an outage at its end."""
    if state.epoch >= config.epochs and ranks.first and servers_behind(config.log, config.out):
        journal = checkpointer.open_journal(state)
        assert journal is not None, "this is the first rank"
        journal.close("finished")


def is_finished(state: TrainState, config: Config) -> bool:
    """Return whether all epochs, or --limit-steps steps, are done and no end of an epoch is pending."""
    at_limit = 0 < config.limit_steps <= state.step and not state.epoch_is_complete
    return state.epoch >= config.epochs or at_limit


def train(
    config: Config, state: TrainState, loader: ViewLoader, checkpointer: Checkpointer, probe: OnlineProbe, log: RunLog,
    ranks: Ranks, stop: StopRequest,
) -> bool:  # fmt: skip
    """Train until the run is finished or a signal stops it; return whether a signal did."""
    stopped = False
    while not (stopped or is_finished(state, config)):
        state.model.train()
        batches = () if state.epoch_is_complete else loader  # complete: resumed at the end of an epoch
        for view1, view2 in log.timed(batches):
            patients = _joint_patients(config, state, loader)
            loss, z1, z2 = train_step(
                state, view1, view2, lr=_current_lr(config, state), temperature=config.temperature, patients=patients,
                same_patient=config.same_patient, precision=config.precision, micro_batch=config.micro_batch,
                recompute=config.recompute, clip=config.clip,
            )  # fmt: skip
            state.pending_losses.append(loss)
            if state.step_in_epoch % config.log_every == 0 or state.epoch_is_complete:
                check_losses(state, loader, config, ranks)  # the embedding metrics would fail on NaN
                log.log_interval(embedding_metrics(z1, z2, patients))
            stop_requested, save_is_due = ranks.any_of([stop.requested, checkpointer.is_due()])
            at_limit = state.step == config.limit_steps
            if state.epoch_is_complete:
                continue  # to end_epoch, which saves and checks for a stop
            if stop_requested or save_is_due or at_limit:
                checkpointer.save(state)
            if stop_requested or at_limit:
                return stop_requested
        stopped = end_epoch(config, state, checkpointer, probe, log, ranks, stop)
    return stopped


def end_epoch(
    config: Config, state: TrainState, checkpointer: Checkpointer, probe: OnlineProbe, log: RunLog, ranks: Ranks,
    stop: StopRequest,
) -> bool:  # fmt: skip
    """Probe, log and save after the last step of an epoch; return whether a signal stopped the run.

    A signal during the online probe postpones all end-of-epoch work to the resumed run.
    """
    check_weights(state, config, ranks)  # the probe would fail on NaN
    scores = probe.score_if_due(state, ranks, stop)
    if scores is None:
        checkpointer.save(state)
        return True
    loss = state.end_epoch()
    log.log_epoch(loss, scores)
    if scores:
        checkpointer.keep_if_best(state, scores["linear_auroc"])
    checkpointer.save(state)
    log.report_epoch(loss)
    return ranks.any_of([stop.requested])[0] and not is_finished(state, config)


def _joint_patients(config: Config, state: TrainState, loader: ViewLoader) -> torch.Tensor | None:
    """Return the patients of the next step's images on all ranks, [B·world], or None if the loss ignores them."""
    if config.same_patient == "negatives":
        return None
    return loader.patients(state.epoch, state.step_in_epoch).to(state.device, non_blocking=True)


def _current_lr(config: Config, state: TrainState) -> float:
    """Return the learning rate of the next step."""
    steps = state.steps_per_epoch
    return learning_rate(state.step, peak=config.lr, schedule=config.schedule,
                         warmup_steps=config.warmup_epochs * steps, steps=config.epochs * steps)  # fmt: skip
