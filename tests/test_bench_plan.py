"""bench.plan: estimates against figures worked out by hand, missing measurements, sbatch commands, the simulation."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import io as bench_io
from bench import shard as bench_shard
from bench import step as bench_step
from bench.plan import plan as bench_plan
from bench.plan.plan import plan
from bench.plan.request import SHARD_SIZE, SHORT_SIDE, PlanRequest
from bench.plan.simulation import EpochReport, check_epoch_order, check_epochs, run_ranks
from bench.plan.steps import PROBING_H
from bench.process import LoaderMeasurement
from bench.rows import JPEG_LOADERS, Row
from bench.step_rows import Step
from pipeline.sampler import Batch, BatchSampler
from shard.cli import BoundCommand
from shard.errors import InputError
from shard.write import build
from tests.conftest import ROOT, Shards
from train.checkpoint import list_checkpoints, save_checkpoint, step_of
from train.config import Config
from train.model import SimCLR
from train.optim import make_optimizer

GPU = "NVIDIA H100 80GB HBM3"
# The request behind the figures worked out below: ten shards of 1,000 images of 2 megapixels.
REQUEST: dict[str, Any] = {
    "images": 10_000, "source": "1000x2000", "tasks": 3, "cores": 2, "gpus": 4, "gpus_per_node": 2, "epochs": 50,
    "arch": "resnet18", "safety": 2.0,
}  # fmt: skip


@pytest.fixture
def benches(tmp_path: Path) -> Path:
    """A folder with the JSON of each benchmark, as on a machine with a GPU."""
    folder = tmp_path / "benches"
    folder.mkdir()
    write_benches(folder, GPU)
    return folder


def write_benches(folder: Path, gpu: str) -> None:
    """Write the results of each benchmark from given measurements, through its own summary."""
    rates = {"390x320": 900.0, "1000x800 smooth": 120.0, "1000x800 grain": 100.0}
    write_json(folder, "shard", gpu, size=256, rows=bench_shard.summarise_rates(
        {name: {"plain Pillow loop": [9.0], "decode + encode": [2 * rate], "sharder, 1 worker": [0.75 * rate],
                "sharder, 2 workers": [rate]} for name, rate in rates.items()}, dict.fromkeys(rates, 20.0)),
        memory=[{"rows": 2000, "process_mb": 86, "largest_worker_mb": 60, "seconds": 3},
                {"rows": 100_000, "process_mb": 150, "largest_worker_mb": 70, "seconds": 9}])  # fmt: skip

    def loader(name: str, cpu_ms: float, memory_mb: float) -> Row:
        settings: Any = None  # not used by the summary
        measurement = LoaderMeasurement(180.0, cpu_ms, [1.0], memory_mb, None)
        return Row(name, JPEG_LOADERS[name], settings, None, [measurement], 1.0)

    to_gpu = [loader("dali-fused-to-gpu", 13.0, 3000.0)] if gpu != "none" else []
    rows = [loader("decode", 5.0, 500.0), loader("dali-fused", 11.0, 800.0), loader("dali-fused-raw", 1.0, 900.0),
            *to_gpu]  # fmt: skip
    write_json(folder, "io", gpu, shards="0123456789abcdef", settings={"size": 224, "batch_size": 64, "threads": 2},
               rows=bench_io.summarise_rows(rows))  # fmt: skip
    steps = {"published": 50.0, "ours": 500.0, "ours-compiled": 5000.0}
    write_json(folder, "step", gpu, settings={"arch": "resnet18", "size": 224, "batch_size": 64}, rows=[
        bench_step.summarise_row(name, [bench_step.StepMeasurement([Step(64, 0.0, 64 / rate, 0.0)], None)])
        for name, rate in steps.items()])  # fmt: skip
    peaks = {("plain", 32): 5000.0, ("plain", 128): 17_000.0, ("plain", 256): None, ("recompute", 64): 1.0}
    write_json(folder, "memory", gpu, settings={"arch": "resnet18", "size": 224, "micro_batch": 64}, rows=[
        {"mode": mode, "batch": batch, "peak_mb": peak, "images_per_s": peak and 1.0, "estimate_mb": 0.0,
         "there_mb": 20_000.0} for (mode, batch), peak in peaks.items()])  # fmt: skip


def write_json(folder: Path, name: str, gpu: str, **content: Any) -> None:
    machine = {"cpu": "a CPU", "cores": 2, "gpu": gpu, "python": "3.11", "torch": "2", "torchvision": "0", "dali": "2",
               "commit": "0123456"}  # fmt: skip
    (folder / f"bench-{name}.json").write_text(json.dumps({"machine": machine, **content}))


def run_plan(**changed: Any) -> None:
    """Run the command with the flags of REQUEST and changes to them."""
    BoundCommand(plan, {**REQUEST, **changed})()


def make_plan(benches: Path, **changed: Any) -> dict[str, Any]:
    """Return the JSON that `plan` writes, with its estimates by the name of the step."""
    out = benches.parent / "plan" / "plan.json"
    run_plan(benches=benches, json=out, **changed)
    content: dict[str, Any] = json.loads(out.read_text())
    content["needs"] = {step["name"]: step for step in content["needs"]}
    return content


def test_estimates_match_figures_worked_out_by_hand(benches: Path) -> None:
    needs = make_plan(benches)["needs"]
    shard, train, probe = needs["shard"], needs["pre-train"], needs["probe"]
    assert list(needs) == ["shard", "pre-train", "probe"]
    # 1000x800 grain: 100/s on 2 cores, 50 on one. At 2 megapixels instead of 0.8: 20. The largest task has shards 0, 3,
    # 6 and 9.
    assert shard["hours"] == pytest.approx(4000 / (2 * 20) / 3600)
    assert shard["core_hours"] == pytest.approx(10_000 / 20 / 3600)
    assert shard["gpu_hours"] == 0 and shard["cores"] == 2
    assert shard["memory_mb"] == 86 * 5 + 2 * 60  # five times the table of 2,000 rows
    # 500 images/s per GPU, 4 GPUs, 50 epochs. 11 ms per image keep 5.5 cores busy: 6, and one for the GPU.
    assert train["hours"] == pytest.approx(10_000 * 50 / 2000 / 3600)
    assert train["gpu_hours"] == pytest.approx(4 * train["hours"]) and train["cores"] == 7
    assert train["core_hours"] == pytest.approx(7 * 4 * train["hours"])
    assert train["memory_mb"] == pytest.approx(2 * 3000 + 2 * train["disk_gb"] * 1e9 / 9 / 2**20)  # 9 checkpoints
    assert probe["hours"] == probe["gpu_hours"] == pytest.approx(3 * 10_000 / 500 / 3600)
    assert probe["core_hours"] == pytest.approx(7 * probe["hours"])
    features = 10_000 * 4 * (512 + 512 + 512 + 16 * 16)
    assert probe["disk_gb"] == pytest.approx(features / 1e9)
    assert probe["memory_mb"] == pytest.approx(3 * features / 2**20)
    # 64 images on a GPU: a third of the way from 32 to 128.
    assert "GPU memory: 9,000 MB for 64 images" in " ".join(train["assumed"])


def test_sharding_rate_is_of_the_slowest_source_nearest_in_size(benches: Path) -> None:
    assert make_plan(benches, source="1000x800")["needs"]["shard"]["core_hours"] == pytest.approx(10_000 / 50 / 3600)
    assert make_plan(benches, source="320x390")["needs"]["shard"]["core_hours"] == pytest.approx(10_000 / 450 / 3600)


def test_cpu_measurements_give_no_gpu_hours(benches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benches(benches, "none")
    content = make_plan(benches)
    train, on_cpu, probe = (content["needs"][name] for name in ("pre-train", "pre-train on a CPU", "probe"))
    for step in (train, probe):
        assert step["hours"] is step["gpu_hours"] is step["core_hours"] is None
    assert train["memory_mb"] is None
    assert on_cpu["hours"] == pytest.approx(10_000 * 50 / 500 / 3600) and on_cpu["gpu_hours"] == 0
    assert on_cpu["core_hours"] == pytest.approx(2 * on_cpu["hours"])
    assert on_cpu["memory_mb"] == 9000
    printed = capsys.readouterr().out
    assert "bench-step.json comes from a CPU" in printed and "--gpu-rate=IMAGES_PER_S" in printed
    assert "bench-memory.json comes from a CPU" in printed
    assert "bench-io.json comes from a machine without a GPU" in printed
    assert not re.search(r"--time|--mem", content["sbatch"][2])


def test_stated_gpu_rate_replaces_a_measured_one(benches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for gpu in ("none", GPU):
        write_benches(benches, gpu)
        needs = make_plan(benches, gpu_rate=100.0)["needs"]
        assert needs["pre-train"]["gpu_hours"] == pytest.approx(10_000 * 50 / 100 / 3600)
        assert needs["pre-train"]["cores"] == 3  # 1.1 busy cores and one more
        assert needs["probe"]["hours"] == pytest.approx(3 * 10_000 / 100 / 3600)
        assert "100.0 images/s per GPU: given by --gpu-rate, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "step", "figure", "command"),
    [("shard", "shard", "core_hours", "python -m bench.shard --json="),
     ("io", "pre-train", "cores", "python -m bench.io SHARDS --json="),
     ("step", "pre-train", "gpu_hours", "python -m bench.step SHARDS --rows=ours --arch=resnet18 --json="),
     ("memory", "pre-train", "", "python -m bench.memory --arch=resnet18 --json=")],
)  # fmt: skip
@pytest.mark.parametrize("fault", ["absent", "truncated", "no rows", "no key", "a list", "no number",
                                   "other settings"])
def test_unusable_measurement_is_reported_and_not_guessed(
    benches: Path, capsys: pytest.CaptureFixture[str], name: str, step: str, figure: str, command: str, fault: str
) -> None:
    before = make_plan(benches)["needs"]
    path = benches / f"bench-{name}.json"
    spoil(path, fault)
    capsys.readouterr()
    after = make_plan(benches)["needs"]
    printed = capsys.readouterr().out.split("\nmissing:\n")[1]
    reason = {"absent": "does not exist",
              "other settings": "was measured with --size=99, but the plan uses "}.get(fault, "")  # fmt: skip
    assert f"- {step}: " in printed and f"not measured ({path} {reason}" in printed
    assert f"run: {command}{path}" in printed
    assert before[step]["missing"] == [] and len(after[step]["missing"]) == 1
    if figure:
        assert before[step][figure] is not None and after[step][figure] is None
    untouched = {"shard": ("pre-train", "probe"), "memory": ("shard", "probe")}.get(name, ("shard",))
    assert all(after[other] == before[other] for other in untouched)


def spoil(path: Path, fault: str) -> None:
    content = json.loads(path.read_text())
    if fault == "absent":
        path.unlink()
    elif fault == "truncated":
        path.write_text(path.read_text()[:200])
    elif fault == "no rows":
        path.write_text(json.dumps({**content, "rows": []}))
    elif fault == "no key":
        del content["rows"]
        path.write_text(json.dumps(content))
    elif fault == "a list":
        path.write_text("[1, 2]")
    elif fault == "no number":
        for row in content["rows"]:
            row.update({"images_per_s": {"median": float("nan")}, "cpu_ms": 0, "peak_mb": -1})
        path.write_text(json.dumps(content))
    else:
        content["size"] = content.setdefault("settings", {})["size"] = 99
        path.write_text(json.dumps(content))


def test_stored_image_size_is_the_mean_of_the_shards_scaled_by_area(benches: Path, shards: Shards) -> None:
    files = [file for file in shards.folder.iterdir() if file.suffix in (".tar", ".idx")]
    mean = sum(file.stat().st_size for file in files) / 121
    step = make_plan(benches, shards=shards.folder, short_side=96)["needs"]["shard"]
    assert step["disk_gb"] == pytest.approx(10_000 * mean / 1e9) and step["at_most"] == []
    step = make_plan(benches, shards=shards.folder, short_side=192)["needs"]["shard"]
    assert step["disk_gb"] == pytest.approx(4 * 10_000 * mean / 1e9)


def test_stored_image_size_without_shards_is_an_upper_bound(
    benches: Path, shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    step = make_plan(benches, short_side=96, source="320x390")["needs"]["shard"]
    assert step["disk_gb"] == pytest.approx(10_000 * (96 * 96 * 390 / 320 + 3072) / 1e9)
    assert step["at_most"] == ["disk_gb"] and f"≤ {step['disk_gb']:.2f}" in capsys.readouterr().out
    assert make_plan(benches, shards=shards.folder, short_side=96)["needs"]["shard"]["disk_gb"] < step["disk_gb"]


def test_checkpoint_disk_space_matches_saved_checkpoints(benches: Path, tmp_path: Path) -> None:
    """Measure the size of one, and count them while a run saves twice per epoch and its best epoch is early."""
    model = SimCLR("resnet18")
    optimizer = make_optimizer("adam", model, lr=1e-3, weight_decay=0.0)
    model(torch.zeros(2, 1, 32, 32)).sum().backward()
    optimizer.step()
    content = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    most, milestones = 0, list[int]()
    for step in range(1, 65):  # 32 epochs
        most = max(most, len(list_checkpoints(tmp_path)) + 1)  # and the one being written
        if step % 20 == 0:
            milestones.append(step)
        save_checkpoint(tmp_path, step, {}, [*milestones, 7])
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [64, 63, 60, 40, 20, 7]
    estimate = make_plan(benches, epochs=32)["needs"]["pre-train"]
    assert estimate["disk_gb"] == pytest.approx(most * len(content.getbuffer()) / 1e9, rel=0.005)


def test_sbatch_commands_submit_every_script_with_its_variables(benches: Path, tmp_path: Path) -> None:
    content = make_plan(benches, gpus=64, gpus_per_node=8, images=10_000_000, short_side=320, epochs=200,
                        batch_size=1024)  # fmt: skip
    jobs = submit(content["sbatch"], tmp_path)
    assert [job["script"] for job in jobs] == [
        "slurm/shard.sbatch", "slurm/shard.sbatch", "slurm/pretrain.sbatch", "slurm/probe.sbatch"]  # fmt: skip
    for job in jobs:
        script = (ROOT / job["script"]).read_text()
        required = set(re.findall(r'^(?!\[\[ -n).*: "\$\{(\w+):\?', script, re.M)) - {"SLURM_ARRAY_TASK_ID"}
        assert required <= set(job["given"])
        assert all(f"${name}" in script or f"${{{name}" in script for name in job["given"])
    shard, merge, train, probe = jobs
    folders = {name: str(tmp_path / f"my {name}") for name in ("SRC", "SHARDS", "RUN")}
    run = folders["RUN"]
    assert shard["given"] == {"SRC": folders["SRC"], "SHARDS": folders["SHARDS"], "FLAGS": "--size=320"}
    assert merge["given"] == {"MERGE": "1", "SHARDS": folders["SHARDS"]}
    recipe = "--arch=resnet18 --epochs=200 --batch-size=1024"
    assert train["given"] == {"SHARDS": folders["SHARDS"], "RUN": run, "FLAGS": recipe}
    assert probe["given"] == {"SHARDS": folders["SHARDS"], "RUN": run}
    known = {field.name for field in fields(Config)}
    assert {flag.split("=")[0][2:].replace("-", "_") for flag in recipe.split()} <= known
    assert [job["asked"].get("dependency") for job in jobs] == [None, "afterok:101", "afterok:102", "afterok:103"]


def test_submit_command_requests_the_same_as_the_sbatch_commands(benches: Path, tmp_path: Path) -> None:
    content = make_plan(benches, gpus=64, gpus_per_node=8, images=10_000_000, short_side=320, batch_size=1024)
    by_hand = submit(content["sbatch"], tmp_path)
    by_script = [job for job in submit([content["submit"]], tmp_path) if "test-only" not in job["asked"]]
    assert len(by_script) == len(by_hand) + 1  # chain.sbatch, which reports on the others
    for one, other in zip(by_hand, by_script, strict=False):
        assert other["script"].endswith(one["script"])
        options = {name: value for name, value in one["asked"].items() if name != "dependency"}
        assert options.items() <= other["asked"].items() and one["given"].items() <= other["given"].items()


def test_submit_sorts_steps_and_ignores_repetitions(tmp_path: Path) -> None:
    jobs = submit(['SRC="$SRC" SHARDS="$SHARDS" RUN="$RUN" slurm/submit.sh probe shard pretrain probe'], tmp_path)
    names = [Path(job["script"]).name for job in jobs if "test-only" not in job["asked"]]
    assert names == ["shard.sbatch", "shard.sbatch", "pretrain.sbatch", "probe.sbatch", "chain.sbatch"]


def test_sbatch_commands_request_the_estimates_times_safety(benches: Path, tmp_path: Path) -> None:
    """Twice the hours plus a quarter, rounded up to quarters of an hour; twice the memory, rounded up to GiB."""
    content = make_plan(benches, gpus=64, gpus_per_node=8, images=10_000_000, epochs=200)
    shard, _, train, probe = (job["asked"] for job in submit(content["sbatch"], tmp_path))
    assert shard["array"] == "0-2" and shard["cpus-per-task"] == "2"
    assert shard["time"] == "1-22:45:00"  # 3,334,000 images / 40 / 3600 = 23.15 hours
    assert shard["mem"] == f"{-(-2 * (150 * 100 + 140) // 1024)}G"
    assert (train["nodes"], train["ntasks-per-node"], train["gres"], train["cpus-per-task"]) == ("8", "8", "gpu:8", "7")
    assert train["time"] == "1-11:00:00"  # 10,000,000 × 200 / (500 × 64) / 3600 = 17.36 hours
    assert "gres" not in probe and probe["time"] == "07:30:00"
    # Twice 3 × 1,024,096 / 500 / 3600 = 1.71 hours, and 4: 24,096 training images and a tenth of all are used.
    quick = make_plan(benches)
    assert [job["asked"]["time"] for job in submit(quick["sbatch"], tmp_path)] == [
        "00:30:00", "01:00:00", "00:30:00", "04:15:00"]  # fmt: skip
    assert "--nodes=2 --ntasks-per-node=2 --gres=gpu:2" in quick["sbatch"][2]
    alone = make_plan(benches, gpus=1, batch_size=64, epochs=100, arch="resnet50", gpu_rate=1.0)["sbatch"][2]
    assert "--nodes=1 --ntasks-per-node=1 --" in alone and "gres" not in alone and "FLAGS" not in alone


def submit(lines: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run the lines with a fake sbatch, and return each call's script, options and variables.

    The names of the folders SRC, SHARDS and RUN contain a space.
    """
    tools, log = folder / "tools", folder / "jobs"
    tools.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    names = ("SRC", "SHARDS", "RUN", "FLAGS", "MERGE", "PARTS", "OUT")
    notes = [f'[[ -z ${{{name}:-}} ]] || printf "%s\\0" "{name}=${name}" >> "{log}"' for name in names]
    notes += [f'printf "%s\\0" -- "$@" end >> "{log}"', f"echo $((100 + $(tr '\\0' '\\n' < '{log}' | grep -cx end)))"]
    for tool, content in (("sbatch", notes), ("squeue", [])):
        (tools / tool).write_text("\n".join(["#!/usr/bin/env bash", *content, ""]))
        (tools / tool).chmod(0o755)
    folders = [f"{name}='{folder / f'my {name}'}'" for name in ("SRC", "SHARDS", "RUN")]
    (folder / "my SRC").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    subprocess.run(["bash", "-c", "\n".join(["set -eu", *folders, *lines])], cwd=ROOT, env=environment, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    jobs = []
    for job in log.read_text().split("\0end\0")[:-1]:
        given, asked = (part.split("\0") for part in f"\0{job}".split("\0--\0"))
        options = {name: value for name, _, value in (word.lstrip("-").partition("=") for word in asked[:-1])}
        jobs.append({"script": asked[-1], "asked": options,
                     "given": dict(word.split("=", 1) for word in given if word)})  # fmt: skip
    return jobs


def test_defaults_equal_those_of_the_planned_commands() -> None:
    defaults = inspect.signature(build).parameters
    assert (defaults["size"].default, defaults["shard_size"].default) == (SHORT_SIDE, SHARD_SIZE)
    assert PlanRequest.short_side == SHORT_SIDE
    assert all(getattr(PlanRequest, name) == getattr(Config, name) for name in ("arch", "size", "epochs"))
    hours = re.search(r"--time=(\d+):00:00", (ROOT / "slurm" / "probe.sbatch").read_text())
    assert hours and int(hours[1]) == PROBING_H


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"images": 0}, "--images=0: .* a number from 1 to"), ({"safety": 0.5}, "--safety=0.5: .* a number from 1"),
     ({"safety": float("nan")}, "--safety=nan: "), ({"source": "2320"}, r"--source=2320: .* --source=2320x2828"),
     ({"source": "0x99"}, "--source=0x99: expects"), ({"gpu_rate": -1.0}, "--gpu-rate=-1.0: expects images/s"),
     ({"gpus": 12, "gpus_per_node": 8}, "--gpus=12: not a multiple of --gpus-per-node=8; use 8"),
     ({"gpus": 0}, "--gpus=0: .* a number from 1 to"),
     ({"batch_size": 30}, "--batch-size=30: not divisible by the 4 GPUs; use 28"),
     ({"images": 100}, "--batch-size=256: more than --images=100"),
     ({"simulate": -1}, "--simulate=-1: .* a number from 0"),
     ({"simulate_epochs": 0}, "--simulate-epochs=0: .* a number from 1"),
     ({"simulate": 200}, "--simulate=200: 64 images per rank and step need more than --images=10000"),
     ({"shards": Path("no-such")}, "no-such: no such folder"), ({"benches": Path("no-such")}, "--benches=no-such: ")],
)  # fmt: skip
def test_bad_input_is_refused_before_the_plan_is_written(
    benches: Path, tmp_path: Path, changed: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_plan(**{"benches": benches, "json": tmp_path / "plan.json", **changed})
    assert not (tmp_path / "plan.json").exists()


def test_simulated_order_matches_a_count_with_sets(benches: Path) -> None:
    """For 8 nodes of 8 GPUs."""
    sizes, ranks, batch = (1000,) * 10 + (37,), 64, 16
    samplers = [BatchSampler(sizes, batch, 0, rank, ranks) for rank in range(ranks)]
    seen = [[index for sampler in samplers for one in islice(sampler.batches(epoch, 0), 9)
             for index in one.indices.tolist()] for epoch in range(3)]  # fmt: skip
    assert all(len(epoch) == len(set(epoch)) == 9 * ranks * batch for epoch in seen)
    report = check_epoch_order(sizes, batch, ranks, 3)
    assert report == EpochReport(ranks, 10_037, batch, 9, (10_037 - 9 * ranks * batch,) * 3, ())
    content = make_plan(benches, images=10_037, simulate=64, gpus=64, batch_size=1024, gpus_per_node=8)
    assert content["simulated"]["order"] == json.loads(json.dumps(vars(report)))


@pytest.mark.parametrize(
    ("batches", "faults"),
    [([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], ()),
     ([[[0, 1], [2, 3]], [[4, 5], [3, 7]]], ("epoch 0: 1 images more than once", "epoch 1: 1 images more than once")),
     ([[[0, 1], [2, 3]], [[4, 5]]],
      ("epoch 0: between 1 and 2 steps on a rank", "epoch 1: between 1 and 2 steps on a rank")),
     ([[[0, 1]], [[4, 5]]],
      ("epoch 0: 5 images omitted, a joint batch or more", "epoch 1: 5 images omitted, a joint batch or more")),
     ([[[0, 1], [2, 3]], [[4, 5], [6]]],
      ("epoch 0: a batch whose size is not 2", "epoch 1: a batch whose size is not 2"))],
)  # fmt: skip
def test_check_epochs_finds_each_fault(batches: list[list[list[int]]], faults: tuple[str, ...]) -> None:
    """Two ranks with batches of two, nine images, two epochs. The third epoch is not checked."""
    def rank(steps: list[list[int]]) -> Iterator[Batch]:
        for epoch in range(3):
            for number, samples in enumerate(steps):
                yield Batch(epoch, number, np.array(samples if epoch < 2 else [0]))

    report = check_epochs([rank(steps) for steps in batches], 9, 2, 2)
    assert report.faults == faults
    summary = f"FAULT: {faults[0]}" if faults else "no image twice, 2 steps on every rank, 1 omitted"
    assert summary in str(report)


def test_simulated_fault_fails_the_command_and_is_written(
    benches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = EpochReport(8, 10_000, 64, 19, (1, 1, 1), ("epoch 2: odd",))
    monkeypatch.setattr(bench_plan, "check_epoch_order", lambda *_: report)
    with pytest.raises(InputError, match=r"--simulate=8: the simulation found faults \(epoch 2: odd\)"):
        run_plan(benches=benches, simulate=8, json=tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["simulated"]["order"]["faults"] == ["epoch 2: odd"]


def test_loaders_of_many_ranks_run_in_one_process(benches: Path, shards: Shards) -> None:
    images, ranks = shards.manifest.images("train"), 8
    simulated = make_plan(benches, shards=shards.folder, simulate=ranks, size=32, gpus=1, batch_size=3)["simulated"]
    views, starts = simulated["views"], simulated["starts"]
    assert (views["ranks"], views["images"], views["batch_size"], views["faults"]) == (ranks, images, 3, [])
    assert views["steps"] == images // 24 and views["left_out"] == [images % 24] * 3
    assert len(starts["seconds"]) == ranks and min(starts["seconds"]) > 0
    assert ranks * len(shards.manifest.of_split("train")) <= starts["handles"] <= ranks * 64
    assert starts["threads"] >= ranks and starts["memory_mb"] > 0
    assert run_ranks(shards.folder, 64, 4, 1, 32)[0].batch_size == images // 4  # too few images for 64


def test_too_many_ranks_are_refused_before_they_start(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shards.manifest.images("train")
    with pytest.raises(InputError, match=f"--simulate=500: .* has {images} images .*; lower it to {images}"):
        run_ranks(shards.folder, 1, 500, 1, 32)
    monkeypatch.setattr("bench.plan.simulation.resource.getrlimit", lambda _: (100, 200))
    with pytest.raises(InputError, match=r"--simulate=64: one process may need .* at most 200 are allowed"):
        run_ranks(shards.folder, 1, 64, 1, 32)
