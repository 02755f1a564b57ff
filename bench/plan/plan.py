"""Plan the resources for a whole archive: rates measured here → hours, cores, GPUs, disk and memory.

python -m bench.plan --images=224316 --source=2320x2828 --gpus=8. Reads the JSON of bench.shard, bench.io, bench.step
and bench.memory, and prints the plan with all its assumptions and the sbatch commands.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from bench.output import prepare_output_path, write_results
from bench.plan.estimate import StepEstimate
from bench.plan.request import SHORT_SIDE, PlanRequest
from bench.plan.results import read_results
from bench.plan.simulation import check_epoch_order, run_ranks
from bench.plan.steps import PROBING_H, estimate_steps, stored_image_size
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.errors import InputError
from shard.flags import JSON, Flag, validate_call
from shard.manifest import parse_manifest
from train.config import Config

START_H = 0.25  # hours for a job to start, which no rate includes


@validate_call
def plan(
    request: PlanRequest, *,
    benches: Annotated[Path, Flag("Folder with the JSON files of bench.shard, bench.io, bench.step and bench.memory.",
                                  "rates", metavar="DIR")] = Path(),
    shards: Annotated[Place | None, Flag("Folder of shards, to measure the size of an image and for --simulate.",
                                        "rates", metavar="DIR")] = None,
    simulate: Annotated[int, Flag("Simulate this many ranks in one process; 0 simulates none.", "simulation",
                                  0, 4096)] = 0,
    simulate_epochs: Annotated[int, Flag("Epochs to simulate.", "simulation", 1, 4096)] = 3,
    json: Annotated[Path, replace(JSON, group="rates")] = Path("bench-plan.json"),
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Print what sharding, pre-training and probing an archive take, and the sbatch lines to submit it.

    The plan multiplies rates measured on this machine. It prints what it assumes and what was not measured. --simulate
    audits the order of images over many ranks. With --shards it also makes their views, and measures each rank's
    start, file handles and memory.

        python -m bench.plan --images=224316 --source=2320x2828 --gpus=8
    """
    if not benches.is_dir():
        raise InputError(f"--benches={benches}: no such folder; name the one with bench-io.json and the others")
    _check_simulation(request, simulate, simulate_epochs)
    folder = open_shards(shards, cache, complete=bool(simulate)) if shards else None
    image_size = stored_image_size(request, folder, parse_manifest(folder) if folder else None)
    results = read_results(benches, request)
    steps = estimate_steps(request, results, image_size)
    *commands, submit = sbatch_commands(request, steps)
    prepare_output_path(json)
    _print_table(request, steps)
    _print_commands(request, commands, submit)
    simulated = _simulate(request, folder, simulate, simulate_epochs) if simulate else {}
    write_results(json, {"request": asdict(request), "rates": asdict(results),
                         "needs": [asdict(step) for step in steps], "sbatch": commands, "submit": submit,
                         "simulated": simulated})  # fmt: skip
    if faults := [fault for report in simulated.values() for fault in report.get("faults", ())]:
        raise InputError(f"--simulate={simulate}: the simulation found faults ({faults[0]}); don't train on this many "
                         f"ranks, and report the fault with {json}")  # fmt: skip


def sbatch_commands(request: PlanRequest, steps: list[StepEstimate]) -> list[str]:
    """Return the commands that submit each job after the previous one, and last the equivalent slurm/submit.sh command.

    They read the variables SRC, SHARDS and RUN. Unknown figures are omitted, so that the script's own value applies.
    Times are rounded up to a quarter of an hour.
    """
    by_name = {step.name: step for step in steps}
    build_flags = _flags({"size": (request.short_side, SHORT_SIDE)})
    train_flags = _flags({"arch": (request.arch, Config.arch), "size": (request.size, Config.size),
                          "epochs": (request.epochs, Config.epochs),
                          "batch-size": (request.batch_size, Config.batch_size)})  # fmt: skip
    shard_options = _sbatch_options(request, by_name["shard"])
    # The scripts and site settings request one GPU, possibly of a certain type.
    gpus = f" --gres=gpu:{request.used_gpus_per_node}" if request.used_gpus_per_node > 1 else ""
    train_options = (f"--nodes={request.nodes} --ntasks-per-node={request.used_gpus_per_node}{gpus} "
                     f"{_sbatch_options(request, by_name['pre-train'])}").rstrip()  # fmt: skip
    probe_options = _sbatch_options(request, by_name["probe"], PROBING_H)
    shards, both = 'SHARDS="$SHARDS"', 'SHARDS="$SHARDS" RUN="$RUN"'
    return [
        f'sharded=$(SRC="$SRC" {shards}{build_flags and f" FLAGS={build_flags}"} sbatch --parsable '
        f"--array=0-{request.tasks - 1} {shard_options} slurm/shard.sbatch)",
        f'merged=$(MERGE=1 {shards} sbatch --parsable --dependency=afterok:"$sharded" --cpus-per-task=1 '
        "--time=01:00:00 slurm/shard.sbatch)",
        f'trained=$({both}{train_flags and f" FLAGS={train_flags}"} sbatch --parsable --dependency=afterok:"$merged" '
        f"{train_options} slurm/pretrain.sbatch)",
        f'{both} sbatch --dependency=afterok:"$trained" {probe_options} slurm/probe.sbatch',
        f'SRC="$SRC" {both} SHARD_PARTS={request.tasks}{build_flags and f" SHARD_FLAGS={build_flags}"} '
        f'SHARD_OPTIONS="{shard_options}"{train_flags and f" TRAIN_FLAGS={train_flags}"} '
        f'TRAIN_OPTIONS="{train_options}" PROBE_OPTIONS="{probe_options}" slurm/submit.sh',
    ]


def _flags(values: dict[str, tuple[Any, Any]]) -> str:
    """Quote a flag for each (value, default) pair that differs. Returns an empty string if none does."""
    changed = [f"--{name}={value}" for name, (value, default) in values.items() if value != default]
    return f'"{" ".join(changed)}"' if changed else ""


def _sbatch_options(request: PlanRequest, step: StepEstimate, extra_h: float = START_H) -> str:
    """Return the sbatch options for cores, memory and time. extra_h: hours that no rate includes."""
    options = [f"--cpus-per-task={step.cores}"] if step.cores else []
    if step.memory_mb is not None:
        options.append(f"--mem={ceil(step.memory_mb * request.safety / 1024)}G")
    if step.hours is not None:
        minutes = 15 * ceil(4 * (step.hours * request.safety + extra_h))
        days, rest = divmod(minutes, 24 * 60)
        options.append(f"--time={f'{days}-' if days else ''}{rest // 60:02}:{rest % 60:02}:00")
    return " ".join(options)


def _print_table(request: PlanRequest, steps: list[StepEstimate]) -> None:
    print(f"{request.images:,} images of {request.source} px, shards of {request.short_side} px, {request.arch} "
          f"at {request.size} px, {request.epochs} epochs in batches of {request.batch_size:,}\n")  # fmt: skip
    print(f"{'step':20}{'hours':>9}{'core-hours':>12}{'GPU-hours':>11}{'disk GB':>9}{'memory GiB':>12}  on")
    for step in steps:
        cells = [_format(step, name).rjust(width) for name, width in (
            ("hours", 9), ("core_hours", 12), ("gpu_hours", 11), ("disk_gb", 9), ("memory_mb", 12))]  # fmt: skip
        print(f"{step.name:20}{''.join(cells)}  {step.shape}")
    print("\n?: not measured. Memory: of a task or, in training, a node. No figure includes the safety factor.")
    for title in ("assumed", "missing"):
        print(f"\n{title}:")
        print("\n".join(f"- {step.name}: {line}" for step in steps for line in getattr(step, title)))


def _print_commands(request: PlanRequest, commands: list[str], submit: str) -> None:
    print(f"""
for the scheduler: {request.safety:g} times (--safety) these hours and memory, because no rate includes checkpoints
and the online probe, and {60 * START_H:.0f} minutes to start. Unknown figures are left to the scripts. If a partition
allows less time, request less: training saves a checkpoint, is requeued and resumes.
""")
    print("# SRC: the folder with the radiographs; SHARDS, RUN: new folders that all nodes can access")
    print(f"\nall jobs, checked first and resumable after a failure, with your site's options:\n\n{submit}")
    print("\nor job by job; add the partition, account and GPU type of your site:\n")
    print("\n".join(commands))


def _format(step: StepEstimate, name: str) -> str:
    value = getattr(step, name)
    if not value:
        return "?" if value is None else "none"
    value = value / 1024 if name == "memory_mb" else value
    return ("≤ " if name in step.at_most else "") + f"{value:,.{1 if value >= 1 else 2 if value >= 0.1 else 3}f}"


def _check_simulation(request: PlanRequest, ranks: int, epochs: int) -> None:
    if request.images < ranks * request.images_per_gpu:
        raise InputError(f"--simulate={ranks}: {request.images_per_gpu} images per rank and step need more than "
                         f"--images={request.images}; lower it, or --batch-size")  # fmt: skip


def _simulate(request: PlanRequest, shards: Path | None, ranks: int, epochs: int) -> dict[str, dict[str, Any]]:
    """Check the epoch order of the whole archive and, if there are shards, the loaders on those."""
    order = check_epoch_order(request.shards, request.images_per_gpu, ranks, epochs)
    print(f"\nsimulated order of {len(request.shards)} shards: {order}")
    if shards is None:
        print("start-up and file descriptors: not measured; add --shards=SHARDS to --simulate")
        return {"order": asdict(order)}
    views, startup = run_ranks(shards, request.images_per_gpu, ranks, epochs, request.size)
    print(f"simulated views of {shards}: {views}\nsimulated start: {startup}")
    return {"order": asdict(order), "views": asdict(views), "starts": asdict(startup)}
