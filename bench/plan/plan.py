"""What to ask the scheduler for, for the whole archive: rates measured here → hours, cores, GPUs, disk and memory.

python -m bench.plan --images=224316 --source=2320x2828 --gpus=8. It reads the JSON that bench.shard, bench.io,
bench.step and bench.memory have left, prints the plan with all that it assumes, and the lines for sbatch.
"""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from bench.figures import ARCHIVE, make_place, write_figures
from bench.plan.audit import audit_plan, run_ranks
from bench.plan.needs import LEARNING_H, list_needs, weigh
from bench.plan.rates import read_rates
from bench.plan.request import SHORT_SIDE, Need, PlanRequest
from shard.cli import check_numbers
from shard.errors import InputError
from shard.manifest import parse_manifest
from train.config import Arch, Config

START_H = 0.25  # that a job may take to begin, which is in no rate


def plan(
    *, images: int = ARCHIVE, source: str = "2320x2828", tasks: int = 16, cores: int = 4, short_side: int = 256,
    gpus: int = 1, gpus_per_node: int = 8, gpu_rate: float | None = None, arch: Arch = "resnet50", size: int = 224,
    epochs: int = 100, batch_size: int = 0, safety: float = 1.5, benches: Path = Path(), shards: Path | None = None,
    simulate: int = 0, simulate_epochs: int = 3, json: Path = Path("bench-plan.json"),
) -> None:  # fmt: skip
    """Print what sharding, pre-training and probing an archive take, by rates measured here, and the sbatch lines.

    The archive: --images of --source=WIDTHxHEIGHT pixels are sharded to --short-side pixels by a job array of --tasks,
    each of --cores. --shards: real ones, by which an image is weighed.

    The training: --epochs of --arch at --size pixels by --gpus, at most --gpus-per-node on a node, with --batch-size
    images a step on all of them (0: 64 on each). --benches is the folder with the other benches' JSON; what isn't in
    there is said to be not measured. A CPU's rate tells nothing of a GPU: where none was measured, --gpu-rate states
    the images/s that one trains on. --safety multiplies the time and memory that the scheduler is asked for.

    --simulate=64 audits --simulate-epochs of so many ranks in this process: the order of --images and, with --shards,
    views of those, and then measures each rank's start, file handles and memory. --json keeps it all.
    """
    request = PlanRequest(images=images, source=source, tasks=tasks, cores=cores, short_side=short_side, gpus=gpus,
                          gpus_per_node=gpus_per_node, gpu_rate=gpu_rate, arch=arch, size=size, epochs=epochs,
                          batch_size=batch_size or Config.batch_size * gpus, safety=safety)  # fmt: skip
    if not benches.is_dir():
        raise InputError(f"--benches={benches}: no such folder; name the one that has bench-io.json and its like")
    _check_simulation(request, simulate, simulate_epochs)
    weight = weigh(request, shards, parse_manifest(shards) if shards else None)
    rates = read_rates(benches, request)
    needs = list_needs(request, rates, weight)
    lines = sbatch_lines(request, needs)
    make_place(json)
    _print(request, needs, lines)
    simulated = _simulate(request, shards, simulate, simulate_epochs) if simulate else {}
    write_figures(json, {"request": asdict(request), "rates": asdict(rates), "needs": [asdict(need) for need in needs],
                         "sbatch": lines[:-1], "submit": lines[-1], "simulated": simulated})  # fmt: skip
    if faults := [fault for found in simulated.values() for fault in found.get("faults", ())]:
        raise InputError(f"--simulate={simulate}: the audit failed ({faults[0]}); don't train on so many ranks, and "
                         f"report it with {json}")  # fmt: skip


def sbatch_lines(request: PlanRequest, needs: list[Need]) -> list[str]:
    """The commands that submit all of it, each to begin after the one before, where SRC, SHARDS and RUN are set; and
    last the one that has slurm/submit.sh do the same.

    What isn't known is left out: there the script's own value stands. Times are rounded up to a quarter of an hour.
    """
    by_name = {need.name: need for need in needs}
    building = _flags({"size": (request.short_side, SHORT_SIDE)})
    recipe = _flags({"arch": (request.arch, Config.arch), "size": (request.size, Config.size),
                     "epochs": (request.epochs, Config.epochs),
                     "batch-size": (request.batch_size, Config.batch_size)})  # fmt: skip
    to_shard = _ask(request, by_name["shard"])
    # One GPU is what scripts and site settings ask for, and there it may have a type.
    gpus = f" --gres=gpu:{request.gpus_a_node}" if request.gpus_a_node > 1 else ""
    to_train = (f"--nodes={request.nodes} --ntasks-per-node={request.gpus_a_node}{gpus} "
                f"{_ask(request, by_name['pre-train'])}"
                ).rstrip()  # fmt: skip
    to_probe = _ask(request, by_name["probe"], LEARNING_H)
    shards, both = 'SHARDS="$SHARDS"', 'SHARDS="$SHARDS" RUN="$RUN"'
    return [
        f'sharded=$(SRC="$SRC" {shards}{building and f" FLAGS={building}"} sbatch --parsable '
        f"--array=0-{request.tasks - 1} {to_shard} slurm/shard.sbatch)",
        f'merged=$(MERGE=1 {shards} sbatch --parsable --dependency=afterok:"$sharded" --cpus-per-task=1 '
        "--time=01:00:00 slurm/shard.sbatch)",
        f'trained=$({both}{recipe and f" FLAGS={recipe}"} sbatch --parsable --dependency=afterok:"$merged" '
        f"{to_train} slurm/pretrain.sbatch)",
        f'{both} sbatch --dependency=afterok:"$trained" {to_probe} slurm/probe.sbatch',
        f'SRC="$SRC" {both} SHARD_PARTS={request.tasks}{building and f" SHARD_FLAGS={building}"} '
        f'SHARD_OPTIONS="{to_shard}"{recipe and f" TRAIN_FLAGS={recipe}"} TRAIN_OPTIONS="{to_train}" '
        f'PROBE_OPTIONS="{to_probe}" slurm/submit.sh',
    ]


def _flags(values: dict[str, tuple[Any, Any]]) -> str:
    """In quotes, a flag for each value that is not the default, given as (value, default); blank where all are."""
    given = [f"--{name}={value}" for name, (value, default) in values.items() if value != default]
    return f'"{" ".join(given)}"' if given else ""


def _ask(request: PlanRequest, need: Need, beside_h: float = START_H) -> str:
    """Cores, memory and time of a step as sbatch wants them; beside_h: hours that are in no rate."""
    asked = [f"--cpus-per-task={need.cores}"] if need.cores else []
    if need.memory_mb is not None:
        asked.append(f"--mem={ceil(need.memory_mb * request.safety / 1024)}G")
    if need.hours is not None:
        minutes = 15 * ceil(4 * (need.hours * request.safety + beside_h))
        days, rest = divmod(minutes, 24 * 60)
        asked.append(f"--time={f'{days}-' if days else ''}{rest // 60:02}:{rest % 60:02}:00")
    return " ".join(asked)


def _print(request: PlanRequest, needs: list[Need], lines: list[str]) -> None:
    print(f"{request.images:,} images of {request.source} px, shards of {request.short_side} px, {request.arch} "
          f"at {request.size} px, "
          f"{request.epochs} epochs in batches of {request.batch_size:,}\n")  # fmt: skip
    print(f"{'step':20}{'hours':>9}{'core-hours':>12}{'GPU-hours':>11}{'disk GB':>9}{'memory GiB':>12}  on")
    for need in needs:
        cells = [_figure(need, name).rjust(width) for name, width in (
            ("hours", 9), ("core_hours", 12), ("gpu_hours", 11), ("disk_gb", 9), ("memory_mb", 12))]  # fmt: skip
        print(f"{need.name:20}{''.join(cells)}  {need.shape}")
    print("\n?: not measured. Memory: of a task or, in training, a node. No figure has the safety factor in it.")
    for word in ("assumed", "missing"):
        print(f"\n{word}:")
        print("\n".join(f"- {need.name}: {said}" for need in needs for said in getattr(need, word)))
    print(f"""
for the scheduler: {request.safety:g} times (--safety) these hours and memory, as checkpoints and the online
probe are in no rate, and {60 * START_H:.0f} minutes to begin. What isn't known is left to the script. Where a
partition gives less time, ask for less: training saves, is requeued and goes on.
""")
    print("# SRC: the folder with the radiographs; SHARDS, RUN: folders to come, which all nodes see")
    print(f"\nall of it, checked before and gone on with after a failure, with your site's options:\n\n{lines[-1]}")
    print("\nor job by job, with the partition, account and GPU type that your site wants put in:\n")
    print("\n".join(lines[:-1]))


def _figure(need: Need, name: str) -> str:
    value = getattr(need, name)
    if not value:
        return "?" if value is None else "none"
    value = value / 1024 if name == "memory_mb" else value
    return ("≤ " if name in need.at_most else "") + f"{value:,.{1 if value >= 1 else 2 if value >= 0.1 else 3}f}"


def _check_simulation(request: PlanRequest, ranks: int, epochs: int) -> None:
    check_numbers(simulate=(ranks, 0, 4096), simulate_epochs=(epochs, 1, 4096))
    if request.images < ranks * request.images_a_gpu:
        raise InputError(f"--simulate={ranks}: ranks of {request.images_a_gpu} images a step want more than --images="
                         f"{request.images}; lower it, or --batch-size")  # fmt: skip


def _simulate(request: PlanRequest, shards: Path | None, ranks: int, epochs: int) -> dict[str, dict[str, Any]]:
    """Audit the plan over the whole archive, then, where there are shards, the loaders on those."""
    found = audit_plan(request.shards, request.images_a_gpu, ranks, epochs)
    print(f"\nsimulated, the order of {len(request.shards)} shards: {found}")
    if shards is None:
        print("start-up and file handles: not measured; give --shards=SHARDS beside --simulate")
        return {"order": asdict(found)}
    read, starts = run_ranks(shards, request.images_a_gpu, ranks, epochs, request.size)
    print(f"simulated, views of {shards}: {read}\nsimulated, {starts}")
    return {"order": asdict(found), "views": asdict(read), "starts": asdict(starts)}
