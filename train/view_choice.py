"""Where a run makes its views: as --views or its checkpoint says, or as measured to be faster."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.augmentation import ViewDevice
from pipeline.loader import ViewLoader, Views, choose_view_device, release_memory, view_devices
from shard.errors import InputError, OutOfMemory
from train.checkpoint import translate_load_errors
from train.distributed.ranks import Ranks
from train.fingerprint import check_ranks
from train.out_of_memory import is_out_of_memory
from train.rng import rng_state, set_rng_state
from train.setup import Setup, make_loader
from train.state import TrainState
from train.step import forward_backward

# A measurement, as checkpoints and run.json keep it: {"chosen": "gpu", "images_per_s": {"gpu": 1688.0, "cpu": None}},
# None where memory ran out. {} if nothing was measured.
ViewRecord = dict[str, Any]
SECONDS = 3.0  # for which each way is measured
# Each of up to four pipelines starts when its first batch is asked for, and computes up to three batches ahead.
PIPELINES, AHEAD = 4, 3


def settle_views(
    setup: Setup, ranks: Ranks, resumed: tuple[Path, Mapping[str, Any]] | None
) -> tuple[ViewLoader, ViewRecord]:
    """Return the run's loader and the record of the measurement behind it; print where views are made, and why.

    resumed: the checkpoint to resume from and its content, on the first rank. A resumed run keeps what its checkpoint
    says unless --views is cpu or gpu. A new run with --views=auto measures, if there are two ways.
    """
    config, manifest, augmentation, loader, state = setup
    # Ranks with other flags would wait for each other forever.
    check_ranks(ranks.all_gather({**config.decisive(), "views": config.views}))
    possible = view_devices(config.backend, state.device)
    kept, record, new = ranks.broadcast((*_recorded(resumed), resumed is None))
    if config.views in (None, "auto") and kept in possible and len(possible) > 1:
        where, why = kept, "as in the checkpoint" + (f", measured: {describe_rates(record)}" if record else "")
    elif config.views == "auto" and new and len(possible) > 1:
        ranks.print("--views=auto: measuring training with views made on the GPU, then on the CPU")
        ways = {views: partial(make_loader, config, manifest, augmentation, state.device, ranks, views)
                for views in possible}  # fmt: skip
        step = partial(forward_backward, state, temperature=config.temperature, precision=config.precision,
                       micro_batch=config.micro_batch, recompute=config.recompute)  # fmt: skip
        rates = measure_rates(ways, step, state, ranks, images_per_step=config.batch_size)
        record = ranks.broadcast(choose_faster(rates))  # the first rank decides
        where, why = record["chosen"], f"measured: {describe_rates(record)}"
    else:
        where, why = choose_view_device(None if config.views == "auto" else config.views, config.backend, state.device)
    ranks.print(f"views are made on the {where.upper()}: {why}")
    if where != loader.views:
        loader = make_loader(config, manifest, augmentation, state.device, ranks, where)
    return loader, record if record.get("chosen") == where else {}


def _recorded(resumed: tuple[Path, Mapping[str, Any]] | None) -> tuple[str | None, ViewRecord]:
    """Return where the views of a checkpoint's run were made, and the record of its measurement."""
    if resumed is None:
        return None, {}
    path, content = resumed
    with translate_load_errors(path):
        return content["fingerprint"].get("views"), parse_record(content.get("views"))


def parse_record(content: Any) -> ViewRecord:
    """Validate a record read from a file; runs of earlier versions have none. Raises ValueError or TypeError."""
    record = dict(content or {})
    if record:
        rates = dict(record.get("images_per_s") or {})
        valid = all(rate is None or (type(rate) is float and 0 < rate < 1e12) for rate in rates.values())
        if set(record) != {"chosen", "images_per_s"} or set(rates) != {"gpu", "cpu"} or not valid or (
            record["chosen"] not in rates
        ):
            raise ValueError(f"views: {record}")
    return record


def describe_rates(record: ViewRecord) -> str:
    """Describe a record: "1,688 images/s with views made on the GPU, 1,450 images/s with views made on the CPU"."""
    parts = [f"{rate:,.0f} images/s with views made on the {views.upper()}" if rate else
             f"out of memory with views made on the {views.upper()}"
             for views, rate in record["images_per_s"].items()]  # fmt: skip
    return ", ".join(parts)


def choose_faster(rates: Mapping[ViewDevice, float | None]) -> ViewRecord:
    """Return the record of a measurement. If memory ran out on every way, the last is chosen: it needs the least."""
    measured = {views: rate for views, rate in rates.items() if rate is not None}
    return {"chosen": max(measured, key=measured.__getitem__) if measured else list(rates)[-1],
            "images_per_s": {views: rate and round(rate, 1) for views, rate in rates.items()}}  # fmt: skip


def measure_rates(
    ways: Mapping[ViewDevice, Callable[[], ViewLoader]], step: Callable[[torch.Tensor, torch.Tensor], object],
    state: TrainState, ranks: Ranks, *, images_per_step: int,
) -> dict[ViewDevice, float | None]:  # fmt: skip
    """Measure images/s of `step` on the views of each way in turn; None for a way on which memory ran out.

    ways: for each, a function that creates its loader. step: a forward and a backward pass of state.model on two
    views of a batch. All ranks measure at the same time, since they share cores and storage. Afterwards the state and
    the random generators are as before, bit for bit, and the loaders' memory is free.
    """
    rates = {}
    for name, make in ways.items():
        with unchanged(state):
            rates[name] = _measure(make, step, ranks, images_per_step)
        gc.collect()  # a pipeline may be part of a cycle
        if state.device.type == "cuda":
            release_memory()
            torch.cuda.empty_cache()
    return rates


def _measure(
    make: Callable[[], ViewLoader], step: Callable[[torch.Tensor, torch.Tensor], object], ranks: Ranks,
    images_per_step: int,
) -> float | None:  # fmt: skip
    views = _endless(make())
    # No collective operations yet, so that a rank that runs out of memory here can tell the others.
    if ranks.any_of([_runs_out_of_memory(partial(_skip, views, 2 * PIPELINES))])[0]:
        return None
    try:
        for _ in range(3):  # compiles, and lets cuDNN choose its algorithms
            step(*next(views))
        _skip(views, PIPELINES * (1 + AHEAD))  # batches that were made during those steps, which were slow
        begun, steps = _clock(), 0
        while not ranks.any_of([time.perf_counter() - begun >= SECONDS])[0]:
            step(*next(views))
            steps += 1
        return steps * images_per_step / (_clock() - begun)
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if ranks.world > 1:  # the others wait in a collective operation
            raise InputError(f"--views=auto: memory ran out while training was measured ({error}); give --views=cpu, "
                             "or lower --batch-size") from None  # fmt: skip
        return None


def _runs_out_of_memory(work: Callable[[], None]) -> bool:
    try:
        work()
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False


def _skip(views: Iterator[Views], batches: int) -> None:
    for _ in range(batches):
        next(views)


def _endless(loader: ViewLoader) -> Iterator[Views]:
    while True:
        yield from loader


def _clock() -> float:
    """Return the time at which all work given to the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def unchanged(state: TrainState) -> Iterator[None]:
    """Put state.model into training mode for the block, and undo what its forward and backward passes change.

    That is the gradients, buffers such as BatchNorm's running statistics, and the states of the random generators.
    """
    generators = rng_state(state.device)
    buffers = [(buffer, buffer.clone()) for buffer in state.model.buffers()]
    state.model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        state.optimizer.zero_grad(set_to_none=True)
        set_rng_state(generators, state.device)
