"""The training loop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from shard.files import locked
from train.collapse import say_collapse
from train.config import Config
from train.embedding_metrics import embedding_metrics
from train.journal import LOCK, draw_loss, read_journal, write_card
from train.online import Interrupted
from train.ranks import Ranks, init_distributed
from train.setup import set_up
from train.signals import REQUEUE, catch_stop_signals
from train.state import Run
from train.step import train_step
from train.throughput import Throughput

PATIENCE_S = 15.0  # DataLoader workers look every 5 seconds whether their parent is still there


def pretrain(config: Config) -> None:
    """Pre-train SimCLR as `config` says into config.out, going on from its newest checkpoint where there is one.

    Leaves checkpoints/, metrics.jsonl, speed.jsonl, run.json, tensorboard/ and loss.png there. A run stopped anywhere
    and started again goes through the same batches and, on a CPU, ends with the same weights as one never stopped.
    Told to stop by SIGUSR1 or SIGTERM it saves after the step and ends the process: the first rank with status 75.
    """
    with catch_stop_signals() as stop, init_distributed(config.device) as ranks:
        run = set_up(config, ranks, stop)
        with _alone(config.out, ranks):
            epoch, step_in_epoch = run.resume()
            if run.finished(epoch, step_in_epoch):
                run.say(f"{config.out}: {run.step} steps are done, as many as asked for; nothing to do")
                return
            run.open_journal()
            if ranks.first:
                write_card(config.out, config, run.accepted, ranks=ranks.world, steps_per_epoch=len(run.loader))
            with Throughput(run) as throughput:
                going_on = True
                while going_on and not run.told_to_stop and not run.finished(epoch, step_in_epoch):
                    going_on = train_epoch(run, throughput, epoch, step_in_epoch)
                    epoch, step_in_epoch = epoch + going_on, 0
    if run.told_to_stop:
        name = signal.Signals(stop.signal).name if stop.signal else "another rank"
        run.say(f"{config.out}: saved after step {run.step}, as {name} asked; the same command goes on")
        # One status for the job: of several, Slurm takes the highest, and may end what is left at the first of them.
        sys.exit((130 if stop.signal == signal.SIGINT else REQUEUE) if run.ranks.first else 0)
    if epoch < config.epochs:
        run.say(f"{config.out}: stopped after {run.step} steps, as --limit-steps asks; without it the run goes on")


@contextlib.contextmanager
def _alone(out: Path, ranks: Ranks) -> Iterator[None]:
    """Keep others from writing into the run's folder; the first rank does, and makes it."""
    if not ranks.first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, LOCK, timeout_s=PATIENCE_S):
        yield


def train_epoch(run: Run, throughput: Throughput, epoch: int, done: int) -> bool:
    """One epoch, its first `done` steps already taken. False where the run is to end before the epoch's end."""
    config, steps = run.config, len(run.loader)
    run.model.train()
    batches = iter(run.loader if done < steps else ())  # none where only the epoch's end is left to do
    for number, (view1, view2) in enumerate(throughput.waiting_for(batches), start=done + 1):
        patients = run.patients(epoch, number - 1)
        loss, z1, z2 = train_step(run, view1, view2, patients)
        run.losses.append(loss)
        if number % config.log_every == 0 or number == steps:
            run.check_losses(epoch, number)  # before their embeddings are measured, which NaN would stop
            write_interval(run, throughput, epoch, number, embedding_metrics(z1, z2, patients))
        stop, save = run.ranks.any_of([run.stop.wanted, run.save_is_due()])
        limited = run.step == config.limit_steps
        if (stop or save or limited) and number < steps:
            run.save(epoch, number)
        if (stop or limited) and number < steps:
            run.told_to_stop = stop
            return False
    return end_epoch(run, throughput, epoch)


def write_interval(run: Run, throughput: Throughput, epoch: int, number: int, measures: dict[str, float]) -> None:
    """Write the losses since the last time, and what the last batch's embeddings tell, into the journal."""
    loss = torch.stack(run.losses).mean().item()
    run.loss_sum += loss * len(run.losses)
    run.losses = []
    if run.journal:
        lr = run.optimizer.param_groups[0]["lr"]
        run.journal.write("step", step=run.step, epoch=epoch + number / len(run.loader), loss=loss, lr=lr, **measures)
    throughput.show(epoch, number, loss)


def end_epoch(run: Run, throughput: Throughput, epoch: int) -> bool:
    """The epoch's line, the online probe where it is due, a checkpoint and the loss curve; False where the run was told
    to stop in the middle of that, of which nothing is written then."""
    steps = len(run.loader)
    run.check_weights()  # before their features are probed, which NaN would stop
    scores = probe_online(run, epoch + 1)
    if scores is None:
        run.save(epoch, steps)
        run.told_to_stop = True
        return False
    mean = run.loss_sum / steps
    run.loss_sum = 0.0
    if run.journal:
        run.journal.write("epoch", step=run.step, epoch=epoch + 1, loss=mean)
    if scores and run.journal:
        run.journal.write("online", step=run.step, epoch=epoch + 1, **scores)
        run.say(f"online probe at epoch {epoch + 1}: AUROC {scores['linear_auroc']:.3f} (linear), "
                f"{scores['knn_auroc']:.3f} (kNN)")  # fmt: skip
        if run.best is None or scores["linear_auroc"] > run.best["score"]:
            run.best = {"step": run.step, "epoch": epoch + 1, "score": scores["linear_auroc"]}
    run.save(epoch + 1, 0)
    if run.journal:
        warn_of_collapse(run)
        draw_loss(run.config.out, run.config.batch_size)
    throughput.end_epoch(epoch, mean)
    run.told_to_stop = run.ranks.any_of([run.stop.wanted])[0] and not run.finished(epoch + 1)
    return True


def warn_of_collapse(run: Run) -> None:
    """Say that the run has collapsed, at the end of the epoch by which it had."""
    lines, settings = read_journal(run.config.out), run.config.plain()
    before = [line for line in lines if line["epoch"] <= lines[-1]["epoch"] - 1]
    if (said := say_collapse(lines, settings)) and not say_collapse(before, settings):
        run.say(f"warning: {said}")


def probe_online(run: Run, epoch: int) -> dict[str, float] | None:
    """The online probe's scores after an epoch, {} where none is due; None where the run was told to stop meanwhile."""
    every, scores = run.config.online_every, dict[str, float]()
    if not every or epoch % every:
        return scores
    interrupted = False
    if run.ranks.first:  # the others wait
        try:
            scores = run.online.score(run.model.encoder, lambda: run.stop.wanted)
        except Interrupted:
            interrupted = True
    interrupted, scores = run.ranks.broadcast((interrupted, scores))
    return None if interrupted else scores
