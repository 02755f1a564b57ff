"""The training loop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pipeline.loader import ViewLoader, choose_views, two_view_loader
from pipeline.recipe import Recipe
from shard.errors import InputError
from shard.machine import cores
from shard.manifest import Manifest, read_manifest
from train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from train.config import Config
from train.journal import Journal, draw_loss
from train.loss import nt_xent
from train.model import SimCLR

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain(config: Config) -> None:
    """Pre-train SimCLR as `config` says into config.out, going on from its newest checkpoint where there is one.

    Leaves checkpoints/, metrics.jsonl, tensorboard/ and loss.png there. A run stopped anywhere and started again
    goes through the same batches and, on a CPU, ends with the same weights as one never stopped.
    """
    run = set_up(config)
    epoch, done_in_epoch = run.resume()
    if run.finished(epoch):
        print(f"{config.out}: {run.step} steps are done, as many as asked for; nothing to do")
        return
    config.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(config.out, run.step)
    steps = min(config.epochs * len(run.loader), config.limit_steps or math.inf)
    with tqdm(total=int(steps) * config.batch_size, initial=run.step * config.batch_size, desc="pretraining",
              unit=" images", smoothing=0.05, disable=None) as bar:  # fmt: skip
        while not run.finished(epoch):
            train_epoch(run, journal, bar, epoch, done_in_epoch)
            epoch, done_in_epoch = epoch + 1, 0
    journal.close()
    if run.step == config.limit_steps:
        print(f"{config.out}: stopped after {run.step} steps, as --limit-steps asks; without it the run goes on")


def set_up(config: Config) -> Run:
    """The loader, model and optimiser that `config` asks for, at step 0. Raises InputError where that can't be."""
    manifest = read_manifest(config.shards)
    recipe = Recipe(size=config.size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    device = torch.device(config.device)
    where, why = choose_views(config.views, config.backend, device, config.workers or cores())
    print(f"views are made on the {where.upper()}: {why}")
    half = config.precision == "fp16" and config.dali  # what autocast would make of them anyway
    loader = two_view_loader(config.backend, config.shards, manifest, recipe, batch_size=config.batch_size,
                             device=device, views=config.views, half=half, workers=config.workers,
                             seed=config.seed)  # fmt: skip
    torch.manual_seed(config.seed)  # for the weights; views are drawn from the loader's own generators
    model = SimCLR(config.arch).to(memory_format=torch.channels_last).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return Run(config, manifest, recipe, loader, model, optimizer, scaler)


def train_epoch(run: Run, journal: Journal, bar: Any, epoch: int, done: int) -> None:
    """One epoch, its first `done` steps already taken; then a checkpoint and the loss curve."""
    config, steps = run.config, len(run.loader)
    interval = [run.losses]  # of steps not yet in the journal
    begun = time.perf_counter()
    run.model.train()
    for number, (view1, view2) in enumerate(run.loader, start=done + 1):
        interval.append(train_step(run, view1, view2))
        bar.update(config.batch_size)
        if number % config.log_every == 0 or number == steps:
            losses = torch.cat(interval)
            loss = losses.mean().item()  # the only wait for the device
            run.loss_sum += loss * len(losses)
            journal.write("step", step=run.step, epoch=epoch + number / steps, loss=loss, lr=config.lr)
            bar.set_postfix(epoch=f"{epoch + 1}/{config.epochs}", loss=f"{loss:.3f}")
            interval = []
            if not math.isfinite(loss):
                raise InputError(f"step {run.step}: the loss is {loss}; lower --lr={config.lr} or use --precision=fp32"
                                 f"; the last good checkpoint is {newest_checkpoint(config.out)}")
        if run.step == config.limit_steps and number < steps:
            run.losses = torch.cat(interval) if interval else run.no_losses
            run.save(epoch, number)
            return
    rate = (steps - done) * config.batch_size / (time.perf_counter() - begun)
    mean = run.loss_sum / steps
    journal.write("epoch", step=run.step, epoch=epoch + 1, loss=mean, images_per_s=round(rate, 1))
    run.loss_sum, run.losses = 0.0, run.no_losses
    run.save(epoch + 1, 0)
    draw_loss(config.out, config.batch_size)
    if bar.disable:
        left = (config.epochs - epoch - 1) * steps * config.batch_size / rate
        print(f"epoch {epoch + 1}/{config.epochs}: loss {mean:.4f}, {rate:.0f} images/s, "
              f"{tqdm.format_interval(left)} left", flush=True)


def train_step(run: Run, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
    """One step of SimCLR on two views of a batch, each [B, 1, S, S]; returns the loss [1], detached, on the device."""
    dtype = AUTOCAST[run.config.precision]
    with torch.autocast(view1.device.type, dtype, enabled=dtype != torch.float32):
        z1, z2 = run.model(torch.cat([view1, view2])).chunk(2)  # [B, 128] each, BatchNorm over both views
        loss = nt_xent(z1, z2, run.config.temperature)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.step += 1
    return loss.detach()[None]


class Run:
    """What changes while training, and how it goes into a checkpoint and comes out of one."""

    def __init__(
        self, config: Config, manifest: Manifest, recipe: Recipe, loader: ViewLoader, model: nn.Module,
        optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
    ) -> None:  # fmt: skip
        self.config, self.recipe, self.loader, self.step = config, recipe, loader, 0
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        # Of the epoch under way: the sum of the losses in the journal, and the losses that are not in it yet.
        self.no_losses = torch.empty(0, device=config.device)
        self.loss_sum, self.losses = 0.0, self.no_losses
        self._settings = {**config.decisive(), "shards": manifest.fingerprint()}

    def finished(self, epoch: int) -> bool:
        """Whether the run has had its epochs, or its limit of steps."""
        return epoch >= self.config.epochs or 0 < self.config.limit_steps <= self.step

    def save(self, epoch: int, done_in_epoch: int) -> None:
        """Write a checkpoint `done_in_epoch` steps into `epoch`."""
        save_checkpoint(self.config.out, self.step, {
            "settings": self._settings, "recipe": asdict(self.recipe),
            "config": self.config.plain(),
            "epoch": epoch, "done_in_epoch": done_in_epoch, "step": self.step,
            "loader": self.loader.state_dict(),
            "loss_sum": self.loss_sum, "losses": self.losses,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        })  # fmt: skip

    def resume(self) -> tuple[int, int]:
        """Take up the newest checkpoint of config.out; returns (epoch, steps done in it), (0, 0) where there is none.

        Raises InputError where that checkpoint was made under settings that give other weights.
        """
        path = newest_checkpoint(self.config.out)
        if path is None:
            return 0, 0
        state = load_checkpoint(path)
        then, now = state["settings"], self._settings
        differing = [f"{name} {then.get(name)} there, {now[name]} now" for name in now if then.get(name) != now[name]]
        if differing:
            raise InputError(f"{path}: made under other settings ({', '.join(differing)}); use those, or another --out")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.loss_sum, self.losses = state["step"], state["loss_sum"], state["losses"].to(self.config.device)
        print(f"resuming from {path} (epoch {state['epoch'] + 1}, step {self.step})")
        return state["epoch"], state["done_in_epoch"]
