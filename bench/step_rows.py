"""The rows of bench.step: the training loops that can be measured here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from bench.baselines import published_views
from pipeline.augmentation import Augmentation, ViewDevice
from pipeline.loader import has_dali
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from train.architectures import build_encoder
from train.config import Config, Precision
from train.device import autocast, resolve_device, resolve_precision
from train.loss import nt_xent
from train.model import PROJECTION
from train.setup import set_up
from train.step import forward_backward, update
from train.timm_models import TIMM

AHEAD = 2  # steps that the processor may be ahead of the GPU


@dataclass(frozen=True)
class Step:
    """The images of one step, and the seconds of each of its parts."""

    images: int
    data: float
    forward_backward: float
    optimizer: float


@dataclass(frozen=True)
class StepSettings:
    """The inputs of every row."""

    shards: Path
    arch: str
    size: int
    batch_size: int
    workers: int


def baseline_of(arch: str) -> str:
    """Return the name of the row that others are compared with: "published", or "plain" for models of timm."""
    return "plain" if arch.startswith(TIMM) else "published"


def available_rows(arch: str) -> dict[str, Callable[[StepSettings], Iterator[Step]]]:
    """Return the training loops that can run here, by name. Each yields its steps indefinitely."""
    rows: dict[str, Callable[[StepSettings], Iterator[Step]]] = {
        baseline_of(arch): _plain, "plain-amp": _plain_amp, "ours": _ours,
        "ours-compiled": partial(_ours, compile=True),
    }  # fmt: skip
    if torch.cuda.is_available() and has_dali():
        rows |= {"ours-cpu-views": partial(_ours, views="cpu"), "ours-gpu-views": partial(_ours, views="gpu")}
    return rows


def _plain(settings: StepSettings, precision: Precision = "fp32") -> Iterator[Step]:
    """Run the published loop: three channels, contiguous memory, PIL in workers, Adam with default settings."""
    device = resolve_device("auto")
    manifest = read_manifest(settings.shards)
    augmentation = Augmentation(size=settings.size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    torch.manual_seed(0)
    model = _plain_model(settings.arch, settings.size)
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    fetcher = Fetcher(settings.shards, manifest, "train")
    batches = published_views(fetcher, augmentation, settings.batch_size, settings.workers)

    def compute_gradients(view1: torch.Tensor, view2: torch.Tensor) -> None:
        with autocast(device, precision):
            z1, z2 = model(torch.cat([view1, view2]).to(device)).chunk(2)
        optimizer.zero_grad()
        scaler.scale(nt_xent(z1, z2, 0.5)).backward()

    def take_step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return _timed(batches, compute_gradients, take_step)


def _plain_model(arch: str, size: int) -> nn.Module:
    """Build torchvision's or timm's own module for three channels, and the projector."""
    if arch.startswith(TIMM):
        encoder, width = build_encoder(arch, size, channels=3)
    else:
        encoder = torchvision.models.get_model(arch, weights=None)
        width, encoder.fc = encoder.fc.in_features, nn.Identity()
    return nn.Sequential(encoder, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))


def _plain_amp(settings: StepSettings) -> Iterator[Step]:
    device = resolve_device("auto")
    return _plain(settings, resolve_precision("auto", device) if device == "cuda" else "bf16")


def _ours(settings: StepSettings, compile: bool = False, views: ViewDevice | None = None) -> Iterator[Step]:
    """Run the trainer's own loader, model and step with its default settings."""
    config = Config(shards=settings.shards, out=settings.shards / "none", dali=has_dali(), arch=settings.arch,
                    size=settings.size, batch_size=settings.batch_size, workers=settings.workers,
                    compile=compile, views=views)  # fmt: skip
    config, _, _, loader, state = set_up(config)
    state.model.train()

    def epochs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    def compute_gradients(view1: torch.Tensor, view2: torch.Tensor) -> None:
        forward_backward(state, view1, view2, temperature=config.temperature, precision=config.precision)

    return _timed(epochs(), compute_gradients, lambda: update(state, lr=config.lr))


def _timed(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    compute_gradients: Callable[[torch.Tensor, torch.Tensor], None], take_step: Callable[[], None],
) -> Iterator[Step]:  # fmt: skip
    """Yield steps indefinitely, each with the time of its parts.

    On a GPU the times are those at which the GPU reached the end of each part. So the processor can be two steps ahead,
    as in training: to wait for the GPU after each part would also hold up the making of views.
    """
    on_gpu = torch.cuda.is_available()
    pending = deque[tuple[int, list[Any]]]()
    while True:
        marks = [_mark(on_gpu)]
        view1, view2 = next(batches)
        marks.append(_mark(on_gpu))
        compute_gradients(view1, view2)
        marks.append(_mark(on_gpu))
        take_step()
        marks.append(_mark(on_gpu))
        pending.append((len(view1), marks))
        if len(pending) > (AHEAD if on_gpu else 0):
            images, ended = pending.popleft()
            yield Step(images, *(_seconds_between(*pair) for pair in pairwise(ended)))


def _mark(on_gpu: bool) -> Any:
    """Return the time or, on a GPU, an event that records when the GPU reaches it."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(one: Any, other: Any) -> float:
    if isinstance(one, float):
        return float(other - one)
    other.synchronize()
    return float(one.elapsed_time(other)) / 1000
