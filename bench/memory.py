"""Measure the memory and time of a training step: plain, with recomputation, and in micro-batches.

python -m bench.memory. Every measurement runs in a separate process, on views of noise, with the trainer's own step.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
from tqdm import tqdm

from bench.output import prepare_output_path, save_results, write_results
from shard.cli import run
from shard.errors import InputError
from shard.flags import JSON, Flag, flag_in, validate_call
from train.architectures import check_arch
from train.config import Config
from train.device import configure_backend, fit_to_device, resolve_device, resolve_precision
from train.large_batch import apply_activation_checkpointing, check_recompute
from train.model import SimCLR
from train.optim import make_optimizer
from train.state import TrainState
from train.step import train_step

Mode = Literal["plain", "recompute", "micro-batch"]
MODES: tuple[Mode, ...] = ("plain", "recompute", "micro-batch")
OUT_OF_MEMORY = 3  # exit status of a process that exhausts GPU memory; on a CPU the kernel kills it
MAX_WARM_UP_BATCH = 256  # on a CPU, larger batches are timed without a warm-up step


@validate_call
def bench(
    *,
    batches: Annotated[tuple[int, ...], Flag("Batch sizes to measure, in images.", low=2, high=10**6,
                                             metavar="N,…")] = (64, 128, 256, 512, 1024),
    modes: Annotated[tuple[str, ...], Flag("Rows to measure: plain steps, --recompute or --micro-batch.",
                                           metavar="MODE,…")] = MODES,
    micro_batch: Annotated[int, Flag("Images embedded at a time in the mode micro-batch.", low=1, high=10**6)] = 64,
    arch: Annotated[str, flag_in(Config, "arch", group="options")] = "resnet50",
    size: Annotated[int, Flag("Side of a view in pixels.", low=32, high=4096)] = 224,
    json: Annotated[Path, JSON] = Path("bench-memory.json"),
) -> None:  # fmt: skip
    """Measure peak memory and images/s of a training step against the batch size.

    On a CPU, peak memory is that of the whole process. On a GPU, it is what PyTorch allocated. A batch that would not
    fit, judging by the two before it, is skipped, and its estimate is printed. On a CPU, batches above 256 are timed
    without a warm-up.

        python -m bench.memory --batches=64,256,1024 --modes=plain,recompute
    """
    check_arch(arch, size)
    if "recompute" in modes:
        check_recompute(arch, size)
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"--modes={','.join(modes)}: no mode {mode!r}; available: {', '.join(MODES)}")
    if not batches:
        raise InputError("--batches: needs at least one batch size, as in --batches=64,128")
    for batch in batches:
        if "micro-batch" in modes and batch % micro_batch:
            raise InputError(f"--batches={','.join(map(str, batches))}: {batch} is not a multiple of "
                             f"--micro-batch={micro_batch}")  # fmt: skip
    prepare_output_path(json)
    rows, settings = list[dict[str, Any]](), {"arch": arch, "size": size, "micro_batch": micro_batch}
    with tqdm(total=len(modes) * len(batches), desc="measuring", unit=" steps", disable=None) as bar:
        for mode in modes:
            for batch in sorted(batches):
                previous = [row for row in rows if row["mode"] == mode]
                rows.append(measure_row(mode, batch, previous, micro_batch, arch, size))
                bar.update()
                if bar.disable:  # in a log
                    print(describe_row(rows[-1]), flush=True)
                save_results(json, {"settings": settings, "rows": rows})
    _print(rows, arch, size, micro_batch)
    write_results(json, {"settings": settings, "rows": rows})


def measure_row(
    mode: str, batch: int, previous: list[dict[str, Any]], micro_batch: int, arch: str, size: int
) -> dict[str, Any]:
    """Measure one batch size in a new process. Skips it, with peak_mb None, if it is not expected to fit.

    previous: the rows of smaller batches in the same mode. Raises InputError if the process fails for a reason
    other than memory.
    """
    estimate, available = estimate_peak_mb(batch, previous), _available_mb()
    row = {"mode": mode, "batch": batch, "peak_mb": None, "images_per_s": None, "estimate_mb": estimate,
           "there_mb": available}  # fmt: skip
    if estimate > available:
        return row
    context = multiprocessing.get_context("spawn")
    connection, child_connection = context.Pipe()
    process = context.Process(target=_measure, args=(child_connection, mode, batch, micro_batch, arch, size))
    process.start()
    child_connection.close()
    with contextlib.suppress(EOFError):  # the process ended without an answer
        row["peak_mb"], row["images_per_s"] = connection.recv()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL, OUT_OF_MEMORY):
        raise InputError(f"{mode}, batch {batch}: the process exited with status {process.exitcode}, see above")
    return row


def estimate_peak_mb(batch: int, previous: list[dict[str, Any]]) -> float:
    """Extrapolate the peak memory from the two largest batches measured. Returns 0 if there are fewer than two."""
    measured = [row for row in previous if row["peak_mb"]]
    if len(measured) < 2:
        return 0.0
    smaller, larger = measured[-2:]
    slope = (larger["peak_mb"] - smaller["peak_mb"]) / (larger["batch"] - smaller["batch"])
    return float(larger["peak_mb"] + slope * (batch - larger["batch"]))


def _available_mb() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0] / 2**20)
    return float(psutil.virtual_memory().available / 2**20)


def _measure(connection: Connection, mode: Mode, batch: int, micro_batch: int, arch: str, size: int) -> None:
    """Send the peak MB and images/s of a step through `connection`."""
    name = resolve_device("auto")
    device, precision = torch.device(name), resolve_precision("auto", name)
    configure_backend(device)
    torch.manual_seed(0)
    model = fit_to_device(SimCLR(arch, size), device, precision).train()
    if mode == "recompute":
        apply_activation_checkpointing(model, arch)
    optimizer = make_optimizer("adam", model, lr=Config.lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(name, enabled=precision == "fp16")
    state = TrainState(model, model, optimizer, scaler, device, steps_per_epoch=2)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    view1, view2 = torch.randn(2, batch, 1, size, size, device=device, dtype=dtype)

    def step() -> None:
        train_step(state, view1, view2, lr=Config.lr, temperature=Config.temperature, precision=precision,
                   micro_batch=micro_batch if mode == "micro-batch" else 0, recompute=mode == "recompute")  # fmt: skip
        if name == "cuda":
            torch.cuda.synchronize()

    try:
        if batch <= MAX_WARM_UP_BATCH or name == "cuda":
            step()
        begun = time.perf_counter()
        step()
    except torch.cuda.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)
    rate = batch / (time.perf_counter() - begun)
    peak = (torch.cuda.max_memory_allocated() / 2**20 if name == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # fmt: skip
    connection.send((peak, rate))


def describe_row(row: dict[str, Any]) -> str:
    """Return a line of the table: mode, batch, peak MB and images/s, or why the batch does not fit."""
    if row["peak_mb"] is None:
        reason = f"needs about {row['estimate_mb']:,.0f} MB" if row["estimate_mb"] else "ran out of memory"
        return f"{row['mode']:14}{row['batch']:7}  does not fit: {reason}, {row['there_mb']:,.0f} MB are available"
    return f"{row['mode']:14}{row['batch']:7}{row['peak_mb']:10,.0f}{row['images_per_s']:10.2f}"


def _print(rows: list[dict[str, Any]], arch: str, size: int, micro_batch: int) -> None:
    print(f"\n{arch}, {size} px, two views per image, micro-batches of {micro_batch} images\n")
    print(f"{'mode':14}{'batch':>7}{'peak MB':>10}{'images/s':>10}")
    for row in rows:
        print(describe_row(row))
    for mode in dict.fromkeys(row["mode"] for row in rows):
        peaks = {row["batch"]: row["peak_mb"] for row in rows if row["mode"] == mode and row["peak_mb"]}
        if {128, 1024} <= peaks.keys():
            print(f"{mode}: peak at 1024 is {peaks[1024] / peaks[128] - 1:+.1%} against that at 128")


if __name__ == "__main__":
    run("python -m bench.memory", bench)
