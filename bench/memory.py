"""How much memory does a batch take, plain, recomputed and in micro-batches, and what does it cost in time?

python -m bench.memory. Each figure is that of a process of its own, on views of noise; the gradients are the trainer's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from tqdm import tqdm

from bench.figures import make_place, write_figures
from shard.cli import check_numbers, run
from shard.errors import InputError
from train.config import Arch
from train.device import autocast, make_fast, resolve_device, resolve_precision
from train.large_batch import backward_by_micro_batches, recompute_blocks
from train.loss import nt_xent
from train.model import SimCLR
from train.optim import make_optimizer

Mode = Literal["plain", "recompute", "micro-batch"]
MODES: tuple[Mode, ...] = ("plain", "recompute", "micro-batch")
OUT_OF_MEMORY = 3  # exit status of a process on a GPU; on a CPU the kernel ends it
WARMED = 256  # up to which batch a step is taken before the one that is timed


def bench(
    *, batches: tuple[int, ...] = (64, 128, 256, 512, 1024), modes: tuple[str, ...] = MODES, micro_batch: int = 64,
    arch: Arch = "resnet50", size: int = 224, json: Path = Path("bench-memory.json"),
) -> None:  # fmt: skip
    """Print peak memory and images/s of a training step against the batch, and write them as JSON.

    --batches: images a step, each as two views; --modes: plain steps, recompute (python -m train --recompute) and
    micro-batch (--micro-batch=N). Peak memory is a process's on a CPU, Python and PyTorch included; what PyTorch has
    allocated on a GPU. A batch that would not fit, as the two before it tell, is skipped; its estimate is printed. On a
    CPU the step of a batch above 256 is timed without a warm-up.
    """
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"--modes={','.join(modes)}: no mode {mode!r}; there are {', '.join(MODES)}")
    check_numbers(micro_batch=(micro_batch, 1, 10**6), size=(size, 32, 4096))
    for batch in batches or (0,):
        if batch < 2:
            raise InputError(f"--batches={','.join(map(str, batches))}: wants numbers of images, each at least 2")
        if "micro-batch" in modes and batch % micro_batch:
            raise InputError(f"--batches={','.join(map(str, batches))}: {batch} is no multiple of "
                             f"--micro-batch={micro_batch}")  # fmt: skip
    make_place(json)
    rows = list[dict[str, Any]]()
    with tqdm(total=len(modes) * len(batches), desc="measuring", unit=" steps", disable=None) as bar:
        for mode in modes:
            for batch in sorted(batches):
                before = [row for row in rows if row["mode"] == mode]
                rows.append(_row(mode, batch, before, micro_batch, arch, size))
                bar.update()
    _print(rows, arch, size, micro_batch)
    write_figures(json, {"settings": {"arch": arch, "size": size, "micro_batch": micro_batch}, "rows": rows})


def _row(
    mode: str, batch: int, before: list[dict[str, Any]], micro_batch: int, arch: Arch, size: int
) -> dict[str, Any]:
    """A measurement, or why there is none."""
    estimate, there = _estimate(batch, before), _memory_there()
    row = {"mode": mode, "batch": batch, "peak_mb": None, "images_per_s": None, "estimate_mb": estimate,
           "there_mb": there}  # fmt: skip
    if estimate > there:
        return row
    context = multiprocessing.get_context("spawn")
    here, other = context.Pipe()
    process = context.Process(target=_measure, args=(other, mode, batch, micro_batch, arch, size))
    process.start()
    other.close()
    with contextlib.suppress(EOFError):  # it has ended
        row["peak_mb"], row["images_per_s"] = here.recv()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL, OUT_OF_MEMORY):
        raise InputError(f"{mode}, batch {batch}: the process ended with {process.exitcode}; its reason is above")
    return row


def _estimate(batch: int, before: list[dict[str, Any]]) -> float:
    """MB by the line through the two largest batches measured in this mode; 0 where there are not two."""
    measured = [row for row in before if row["peak_mb"]]
    if len(measured) < 2:
        return 0.0
    one, two = measured[-2:]
    slope = (two["peak_mb"] - one["peak_mb"]) / (two["batch"] - one["batch"])
    return float(two["peak_mb"] + slope * (batch - two["batch"]))


def _memory_there() -> float:
    """MB that a process could have."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0] / 2**20)
    return float(psutil.virtual_memory().available / 2**20)


def _measure(connection: Connection, mode: Mode, batch: int, micro_batch: int, arch: Arch, size: int) -> None:
    """Peak MB and images/s of a step, sent through `connection`."""
    name = resolve_device("auto")
    device, precision = torch.device(name), resolve_precision("auto", name)
    make_fast(device)
    torch.manual_seed(0)
    model = SimCLR(arch).to(memory_format=torch.channels_last).to(device).train()
    optimizer = make_optimizer("adam", model, lr=3e-4, weight_decay=0.0)
    scaler = torch.amp.GradScaler(name, enabled=precision == "fp16")
    if mode == "recompute":
        recompute_blocks(model)
    kind = torch.float16 if precision == "fp16" else torch.float32
    view1, view2 = torch.randn(2, batch, 1, size, size, device=device, dtype=kind)
    loss = partial(nt_xent, temperature=0.5)

    def embed(views: torch.Tensor) -> torch.Tensor:
        with autocast(name, precision):
            z: torch.Tensor = model(views)
        return z

    def step() -> None:
        """One of the mode, with its update."""
        optimizer.zero_grad(set_to_none=True)
        if mode == "micro-batch":
            backward_by_micro_batches(embed, model, view1, view2, loss, micro_batch, scaler.scale)
        else:
            scaler.scale(loss(*embed(torch.cat([view1, view2])).chunk(2))).backward()
        scaler.step(optimizer)
        scaler.update()
        if name == "cuda":
            torch.cuda.synchronize()

    try:
        if batch <= WARMED or name == "cuda":
            step()
        begun = time.perf_counter()
        step()
    except torch.cuda.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)
    rate = batch / (time.perf_counter() - begun)
    peak = (torch.cuda.max_memory_allocated() / 2**20 if name == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # fmt: skip
    connection.send((peak, rate))


def _print(rows: list[dict[str, Any]], arch: str, size: int, micro_batch: int) -> None:
    print(f"\n{arch}, {size} px, two views an image, micro-batches of {micro_batch} images\n")
    print(f"{'mode':14}{'batch':>7}{'peak MB':>10}{'images/s':>10}")
    for row in rows:
        if row["peak_mb"] is None:
            wants = f"about {row['estimate_mb']:,.0f} MB" if row["estimate_mb"] else "ended for want of memory"
            print(f"{row['mode']:14}{row['batch']:7}  does not fit: {wants}, {row['there_mb']:,.0f} MB are there")
        else:
            print(f"{row['mode']:14}{row['batch']:7}{row['peak_mb']:10,.0f}{row['images_per_s']:10.2f}")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        peaks = {row["batch"]: row["peak_mb"] for row in rows if row["mode"] == mode and row["peak_mb"]}
        if {128, 1024} <= peaks.keys():
            print(f"{mode}: peak at 1024 is {peaks[1024] / peaks[128] - 1:+.1%} of that at 128")


if __name__ == "__main__":
    run("python -m bench.memory", bench)
