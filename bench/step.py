"""How many images/s does a whole training step give, and what is it waiting for?

python -m bench.step SHARDS. All rows train on the same shards in the same run, a turn each a round, in a process begun
for it: together they would not fit into memory. Ours is the trainer's own code; the published loop is the study's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from tqdm import tqdm

from bench.figures import ARCHIVE, make_place, spread, write_figures
from bench.rivals import published_views
from bench.runner import Runner, gpu_share
from pipeline.augmentation import Augmentation, ViewDevice
from pipeline.loader import has_dali
from shard.cli import check_numbers, run
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.machine import cores
from shard.manifest import read_manifest
from train.config import Arch, Config, Precision, check_batch
from train.device import autocast, resolve_device, resolve_precision
from train.loss import nt_xent
from train.model import PROJECTION
from train.setup import set_up
from train.step import forward_backward, update

EPOCHS = 100  # the published run's
PARTS = ("data", "forward_backward", "optimizer")


@dataclass(frozen=True)
class Step:
    """What one step took, in seconds."""

    images: int
    data: float
    forward_backward: float
    optimizer: float


@dataclass(frozen=True)
class Setting:
    """What every row is given."""

    shards: Path
    arch: Arch
    size: int
    batch_size: int
    workers: int


def bench(
    shards: Path, *, rows: tuple[str, ...] = (), arch: Arch = "resnet50", size: int = 224, batch_size: int = 64,
    workers: int = 0, rounds: int = 5, seconds: float = 5.0, json: Path = Path("bench-step.json"),
) -> None:  # fmt: skip
    """Print images/s of training and what a step's time goes to, and write them as JSON.

    Rows: published (fp32, contiguous, RGB from PIL, DataLoader workers), plain-amp (the same in bf16, on a GPU in fp16
    with a scaler), ours (python -m train --dali), ours-compiled (--compile) and, on a GPU, ours-cpu-views and
    ours-gpu-views (--views=cpu, --views=gpu). --rows chooses. A row has a turn of
    --seconds in each round, at least a step, after a warm-up step; median, low and high are over rounds. The hours are
    those of 100 epochs of CheXpert's 224,316 images at that rate.
    """
    known = {"published": _published, "plain-amp": _plain_amp, "ours": _ours, "ours-compiled": _ours_compiled}
    if torch.cuda.is_available() and has_dali():
        known |= {"ours-cpu-views": partial(_ours, views="cpu"), "ours-gpu-views": partial(_ours, views="gpu")}
    check_numbers(rounds=(rounds, 1, 10**4), size=(size, 32, 4096), workers=(workers, 0, 4096),
                  batch_size=(batch_size, 2, 10**6), seconds=(seconds, 0, 3600))  # fmt: skip
    for row in rows:
        if row not in known:
            raise InputError(f"--rows={','.join(rows)}: no row {row!r}; there are {', '.join(known)}")
    check_batch(shards, batch_size)
    read_manifest(shards)  # raises here, not in a row's process
    if not has_dali() and (not rows or {"ours", "ours-compiled"} & set(rows)):
        print("ours: NVIDIA DALI is not installed (Linux only); torchvision makes its views", file=sys.stderr)
    make_place(json)
    setting = Setting(shards, arch, size, batch_size, workers or cores())
    table = _measure({name: known[name] for name in rows or known}, setting, rounds, seconds)
    print(f"\n{shards}: {arch}, {size} px, batch {batch_size}, {setting.workers} workers, {rounds} rounds\n")
    _print(table)
    settings = {"arch": arch, "size": size, "batch_size": batch_size, "workers": setting.workers, "rounds": rounds,
                "seconds": seconds}  # fmt: skip
    write_figures(json, {"settings": settings, "rows": table})


def _measure(
    rows: dict[str, Callable[[Setting], Iterator[Step]]], setting: Setting, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    turns = {name: list[Any]() for name in rows}
    for _ in tqdm(range(rounds), desc="rounds", unit=" rounds", disable=None):
        for name, start in rows.items():
            runner = Runner(start, (setting,), _turn)
            try:
                turns[name].append(runner.turn(seconds))
            except RuntimeError as error:
                raise InputError(f"row {name}: {error}; is there too little memory? Lower --batch-size, or leave it "
                                 "out with --rows")  from error  # fmt: skip
            finally:
                runner.end()
    return [_summarise(name, turns[name], turns.get("published")) for name in rows]


def _turn(steps: Iterator[Step], seconds: float) -> tuple[list[Step], float | None]:
    """The steps of some seconds, at least one, after one that warms up; and the share of the time the GPU worked."""
    next(steps)
    made, begun = list[Step](), time.perf_counter()
    while not made or time.perf_counter() - begun < seconds:
        made.append(next(steps))
    return made, gpu_share()


def _summarise(name: str, turns: list[Any], published: list[Any] | None) -> dict[str, Any]:
    rates = [_rate(steps) for steps, _ in turns]
    # Ratios are taken round by round, so that a slow minute of the machine falls on both sides.
    ratios = [rate / _rate(steps) for rate, (steps, _) in zip(rates, published, strict=True)] if published else []
    steps = [step for some, _ in turns for step in some]
    total = sum(getattr(step, part) for step in steps for part in PARTS)
    shares = [share for _, share in turns if share is not None]
    return {
        "name": name, "images_per_s": (rate := spread(rates)),
        "times_published": spread(ratios) if ratios else None,
        "shares": {part: sum(getattr(step, part) for step in steps) / total for part in PARTS},
        "gpu_share": statistics.median(shares) if shares else None,
        "hours": ARCHIVE * EPOCHS / rate["median"] / 3600, "steps": len(steps),
    }  # fmt: skip


def _rate(steps: list[Step]) -> float:
    seconds = sum(step.data + step.forward_backward + step.optimizer for step in steps)
    return sum(step.images for step in steps) / seconds


def _published(setting: Setting, precision: Precision = "fp32") -> Iterator[Step]:
    """The study's loop: three channels, contiguous, PIL in workers, Adam as it comes."""
    device = resolve_device("auto")
    manifest = read_manifest(setting.shards)
    augmentation = Augmentation(size=setting.size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    torch.manual_seed(0)
    model = torchvision.models.get_model(setting.arch, weights=None)
    width = model.fc.in_features
    model.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    fetcher = Fetcher(setting.shards, manifest, "train")
    batches = published_views(fetcher, augmentation, setting.batch_size, setting.workers)

    def forward_and_backward(view1: torch.Tensor, view2: torch.Tensor) -> None:
        with autocast(device, precision):
            z1, z2 = model(torch.cat([view1, view2]).to(device)).chunk(2)
        optimizer.zero_grad()
        scaler.scale(nt_xent(z1, z2, 0.5)).backward()

    def take_step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return _timed(batches, forward_and_backward, take_step)


def _plain_amp(setting: Setting) -> Iterator[Step]:
    device = resolve_device("auto")
    return _published(setting, resolve_precision("auto", device) if device == "cuda" else "bf16")


def _ours(setting: Setting, compile: bool = False, views: ViewDevice = "auto") -> Iterator[Step]:
    """The trainer's own loader, model and step, as its settings ask by default."""
    config = Config(shards=setting.shards, out=setting.shards / "none", dali=has_dali(), arch=setting.arch,
                    size=setting.size, batch_size=setting.batch_size, workers=setting.workers,
                    compile=compile, views=views)  # fmt: skip
    config, _, _, loader, state = set_up(config)
    state.model.train()

    def epochs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    def work(view1: torch.Tensor, view2: torch.Tensor) -> None:
        forward_backward(state, view1, view2, temperature=config.temperature, precision=config.precision)

    return _timed(epochs(), work, lambda: update(state, lr=config.lr))


def _ours_compiled(setting: Setting) -> Iterator[Step]:
    return _ours(setting, compile=True)


def _timed(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]], work: Callable[[torch.Tensor, torch.Tensor], None],
    take_step: Callable[[], None],
) -> Iterator[Step]:  # fmt: skip
    """Steps without end, each with the time of its parts. On a GPU each part is waited for, which a run never does."""
    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    while True:
        begun = clock()
        view1, view2 = next(batches)
        got = clock()
        work(view1, view2)
        worked = clock()
        take_step()
        yield Step(len(view1), got - begun, worked - got, clock() - worked)


def _print(table: list[dict[str, Any]]) -> None:
    print(f"{'row':16}{'images/s':>9} {'[low, high]':16}{'× published':>12}{'waiting':>9}{'fwd+bwd':>9}{'optim.':>8}"
          f"{'GPU':>6}{'hours':>9}")  # fmt: skip
    for row in table:
        rate, share = row["images_per_s"], row["shares"]
        ratio = f"{row['times_published']['median']:.2f}" if row["times_published"] else "n/a"
        gpu = "n/a" if row["gpu_share"] is None else f"{row['gpu_share']:.0%}"
        print(f"{row['name']:16}{rate['median']:9.2f} {'[{low:.2f}, {high:.2f}]'.format(**rate):16}{ratio:>12}"
              f"{share['data']:9.1%}{share['forward_backward']:9.1%}{share['optimizer']:8.1%}{gpu:>6}"
              f"{row['hours']:9,.0f}")  # fmt: skip
    print(f"\nhours = {ARCHIVE:,} images × {EPOCHS} epochs ÷ images/s ÷ 3,600")


if __name__ == "__main__":
    run("python -m bench.step", bench)
