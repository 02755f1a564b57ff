"""Measure how many images/s a complete training step processes, and what it waits for.

python -m bench.step SHARDS. All rows train on the same shards. They are interleaved: in each round every row is
measured once, in a new process, because all models together would not fit into memory. "ours" is the trainer's own
code; "published" is the published study's loop, called "plain" around a model of timm.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from bench.output import CHEXPERT_IMAGES, prepare_output_path, save_results, spread, write_results
from bench.process import WARM_UP, MeasuredProcess, gpu_share, wait_for_imports
from bench.step_rows import Step, StepSettings, available_rows, baseline_of
from pipeline.loader import has_dali
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.cli import run
from shard.errors import InputError
from shard.flags import JSON, ROUNDS, SHARDS, Flag, flag_in, validate_call
from shard.machine import cores
from shard.manifest import read_manifest
from train.architectures import check_arch
from train.config import Config, check_batch

EPOCHS = 100  # the length of the published run, for the column "hours"
PARTS = ("data", "forward_backward", "optimizer")
WARM_UP_S = 10.0  # no warm-up step begins later than this after the first one


@dataclass(frozen=True)
class StepMeasurement:
    """The steps of one round, and the fraction of time that the GPU was busy, None if unknown.

    warm_up: how many steps were taken before.
    """

    steps: list[Step]
    gpu_share: float | None
    warm_up: int = 0

    @property
    def images_per_s(self) -> float:
        """The rate over all steps."""
        seconds = sum(step.data + step.forward_backward + step.optimizer for step in self.steps)
        return sum(step.images for step in self.steps) / seconds


@validate_call
def bench(
    shards: Annotated[Place, SHARDS], *,
    rows: Annotated[tuple[str, ...], Flag("Rows to measure.", "rows", metavar="NAME,…", default="all")] = (),
    arch: Annotated[str, flag_in(Config, "arch", group="rows")] = "resnet50",
    size: Annotated[int, Flag("Side of a view in pixels.", "rows", low=32, high=4096)] = 224,
    batch_size: Annotated[int, Flag("Images per step.", "rows", low=2, high=10**6)] = 64,
    workers: Annotated[int, Flag("Loader threads or processes; 0 starts one per core.", "rows", low=0, high=4096)] = 0,
    rounds: Annotated[int, replace(ROUNDS, group="measurement")] = 5,
    seconds: Annotated[float, Flag("Seconds for which a row is measured in each round.", "measurement",
                                     low=0, high=3600)] = 5.0,
    json: Annotated[Path, replace(JSON, group="measurement")] = Path("bench-step.json"),
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Measure images/s of training, and what the time of a step is spent on.

    The rows are published (float32, RGB images from PIL, DataLoader workers), plain-amp (the same in mixed precision),
    ours (python -m train --dali) and ours-compiled (with --compile). A GPU adds ours-cpu-views and ours-gpu-views (with
    --views=cpu and --views=gpu). For a model of timm, published is called plain. The hours printed are those of 100
    epochs of CheXpert, 224,316 images, at that rate.

        python -m bench.step shards --rows=published,ours
    """
    check_arch(arch, size)
    known = available_rows(arch)
    for row in rows:
        if row not in known:
            raise InputError(f"--rows={','.join(rows)}: no row {row!r}; available: {', '.join(known)}")
    folder = open_shards(shards, cache, complete=True)
    check_batch(folder, batch_size)
    read_manifest(folder)  # so that errors are raised here and not in a row's process
    if not has_dali() and (not rows or {"ours", "ours-compiled"} & set(rows)):
        print("ours: NVIDIA DALI is not installed (Linux only); torchvision makes its views", file=sys.stderr)
    prepare_output_path(json)
    step_settings = StepSettings(folder, arch, size, batch_size, workers or cores())
    settings = {"arch": arch, "size": size, "batch_size": batch_size, "workers": step_settings.workers,
                "rounds": rounds, "seconds": seconds}  # fmt: skip
    table = list[dict[str, Any]]()
    for table in _measure({name: known[name] for name in rows or known}, step_settings, rounds, seconds):
        save_results(json, {"settings": settings, "rows": table})
    print(f"\n{shards}: {arch}, {size} px, batch {batch_size}, {step_settings.workers} workers, {rounds} rounds\n")
    _print(table, baseline_of(arch))
    write_results(json, {"settings": settings, "rows": table})


def _measure(
    rows: dict[str, Callable[[StepSettings], Iterator[Step]]], settings: StepSettings, rounds: int, seconds: float
) -> Iterator[list[dict[str, Any]]]:
    """Yield the table of the rows measured so far, after each measurement."""
    measurements, baseline = {name: list[StepMeasurement]() for name in rows}, baseline_of(settings.arch)
    with tqdm(total=rounds * len(rows), desc="measuring", unit=" rows", disable=None) as bar:
        for number in range(1, rounds + 1):
            processes = {name: MeasuredProcess(start, (settings,), measure_steps) for name, start in rows.items()}
            try:
                wait_for_imports(processes)
                for name, process in processes.items():
                    measured = _measure_row(name, process, seconds)
                    measurements[name].append(measured)
                    process.close()
                    bar.update()
                    if bar.disable:  # in a log
                        print(f"round {number}: {name} {measured.images_per_s:,.1f} images/s", flush=True)
                    yield [summarise_row(row, own, measurements.get(baseline), baseline)
                           for row, own in measurements.items() if own]  # fmt: skip
            finally:
                for process in processes.values():
                    process.close()


def _measure_row(name: str, process: MeasuredProcess, seconds: float) -> StepMeasurement:
    try:
        measured: StepMeasurement = process.measure(seconds)
    except RuntimeError as error:
        raise InputError(f"row {name}: {error}; if memory is short, lower --batch-size, or omit the row by naming the "
                         "others with --rows") from error  # fmt: skip
    return measured


def measure_steps(steps: Iterator[Step], seconds: float) -> StepMeasurement:
    """Take eight steps to warm up, then at least one, until `seconds` have passed.

    By then each of the loader's up to four pipelines has started, which delays the step that first waits for it by up
    to a second, and has run twice; cuDNN has chosen its algorithms, and torch.compile has compiled. Where steps are
    slow, as on a CPU, all this matters less: ten seconds after the first step no further one is taken to warm up.
    """
    next(steps)
    warm_up, begun = 1, time.perf_counter()
    while warm_up < WARM_UP and time.perf_counter() - begun < WARM_UP_S:
        next(steps)
        warm_up += 1
    taken, begun = list[Step](), time.perf_counter()
    while not taken or time.perf_counter() - begun < seconds:
        taken.append(next(steps))
    return StepMeasurement(taken, gpu_share(), warm_up)


def summarise_row(
    name: str, measurements: list[StepMeasurement], compared: list[StepMeasurement] | None = None,
    baseline: str = "published",
) -> dict[str, Any]:  # fmt: skip
    """Return one row's statistics over rounds, as written to JSON. compared: the measurements of the baseline."""
    rates = [one.images_per_s for one in measurements]
    # Ratios are taken within each round, so that load on the machine affects both sides. The current one may be
    # incomplete.
    ratios = [rate / other.images_per_s for rate, other in zip(rates, compared or (), strict=False)]
    steps = [step for one in measurements for step in one.steps]
    total = sum(getattr(step, part) for step in steps for part in PARTS)
    gpu_shares = [one.gpu_share for one in measurements if one.gpu_share is not None]
    return {
        "name": name, "images_per_s": (rate := spread(rates)),
        f"times_{baseline}": spread(ratios) if ratios else None,
        "shares": {part: sum(getattr(step, part) for step in steps) / total for part in PARTS},
        "gpu_share": statistics.median(gpu_shares) if gpu_shares else None,
        "hours": CHEXPERT_IMAGES * EPOCHS / rate["median"] / 3600, "steps": len(steps),
        "warm_up_steps": min(one.warm_up for one in measurements),
    }  # fmt: skip


def _print(table: list[dict[str, Any]], baseline: str) -> None:
    print(f"{'row':16}{'images/s':>9} {'[low, high]':16}{f'× {baseline}':>12}{'waiting':>9}{'fwd+bwd':>9}{'optim.':>8}"
          f"{'GPU':>6}{'hours':>9}{'warm-up':>9}")  # fmt: skip
    for row in table:
        rate, share = row["images_per_s"], row["shares"]
        ratio = f"{row[f'times_{baseline}']['median']:.2f}" if row[f"times_{baseline}"] else "n/a"
        gpu = "n/a" if row["gpu_share"] is None else f"{row['gpu_share']:.0%}"
        print(f"{row['name']:16}{rate['median']:9.2f} {'[{low:.2f}, {high:.2f}]'.format(**rate):16}{ratio:>12}"
              f"{share['data']:9.1%}{share['forward_backward']:9.1%}{share['optimizer']:8.1%}{gpu:>6}"
              f"{row['hours']:9,.0f}{row['warm_up_steps']:9}")  # fmt: skip
    print(f"\nhours = {CHEXPERT_IMAGES:,} images × {EPOCHS} epochs ÷ images/s ÷ 3,600; warm-up: steps before those "
          "that were measured, in each round")  # fmt: skip


if __name__ == "__main__":
    run("python -m bench.step", bench)
