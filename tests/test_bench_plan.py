"""bench.plan: its estimates from measured rates against the same by hand, what it does not know, the simulation."""

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
from bench.plan.audit import Audit, audit, audit_plan, run_ranks
from bench.plan.needs import LEARNING_H
from bench.plan.plan import plan
from bench.plan.request import SHARD_SIZE, SHORT_SIDE
from bench.runner import Turn
from pipeline.sampler import Batch, BatchSampler
from shard.errors import InputError
from shard.write import build
from tests.conftest import ROOT, Shards
from train.checkpoint import list_checkpoints, save_checkpoint, step_of
from train.config import Config
from train.model import SimCLR
from train.optim import make_optimizer

GPU = "NVIDIA H100 80GB HBM3"
# The plan that the figures below are worked out for by hand: ten shards of 1,000 images of 2 megapixels.
WISH: dict[str, Any] = {
    "images": 10_000, "source": "1000x2000", "tasks": 3, "cores": 2, "gpus": 4, "gpus_per_node": 2, "epochs": 50,
    "arch": "resnet18", "safety": 2.0,
}  # fmt: skip


def machine(gpu: str) -> dict[str, Any]:
    return {"cpu": "a CPU", "cores": 2, "gpu": gpu, "python": "3.11", "torch": "2", "torchvision": "0", "dali": "2",
            "commit": "0123456"}  # fmt: skip


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the benches leave on a machine with a GPU: their own functions make it, of figures that are given."""
    folder = tmp_path / "benches"
    folder.mkdir()
    write_benches(folder, monkeypatch, GPU)
    return folder


def write_benches(folder: Path, monkeypatch: pytest.MonkeyPatch, gpu: str) -> None:
    monkeypatch.setattr("bench.figures.describe_machine", lambda: machine(gpu))
    sources = {"390x320": 900.0, "1000x800 smooth": 120.0, "1000x800 grain": 100.0}
    bench_shard._report(
        {name: {"plain Pillow loop": [9.0], "decode + encode": [2 * rate], "sharder, 1 worker": [0.75 * rate],
                "sharder, 2 workers": [rate]} for name, rate in sources.items()},
        {name: [b"jpeg"] for name in sources},
        [{"rows": 2000, "process_mb": 86, "largest_worker_mb": 60, "seconds": 3},
         {"rows": 100_000, "process_mb": 150, "largest_worker_mb": 70, "seconds": 9}], 256, folder / "bench-shard.json",
    )  # fmt: skip

    def loader(name: str, cpu_ms: float, memory_mb: float) -> bench_io.Row:
        return bench_io.Row(name, lambda: iter(()), (), turns=[Turn(180.0, cpu_ms, [1.0], memory_mb, None)], cold=1.0)

    to_gpu = [loader("dali-fused-to-gpu", 13.0, 3000.0)] if gpu != "none" else []
    rows = [loader("decode", 5.0, 500.0), loader("dali-fused", 11.0, 800.0), loader("dali-fused-raw", 1.0, 900.0),
            *to_gpu]  # fmt: skip
    keep(folder, "io", gpu, {"size": 224, "batch_size": 64, "threads": 2, "rounds": 1, "seconds": 2.0},
         bench_io._table(rows), shards="0123456789abcdef")  # fmt: skip
    steps = {"published": 50.0, "ours": 500.0, "ours-compiled": 5000.0}
    keep(folder, "step", gpu, {"arch": "resnet18", "size": 224, "batch_size": 64, "workers": 2, "rounds": 1,
                               "seconds": 5.0},
         [bench_step._summarise(name, [([bench_step.Step(64, 0.0, 64 / rate, 0.0)], None)], None)
          for name, rate in steps.items()])  # fmt: skip
    peaks = {("plain", 32): 5000.0, ("plain", 128): 17_000.0, ("plain", 256): None, ("recompute", 64): 1.0}
    keep(folder, "memory", gpu, {"arch": "resnet18", "size": 224, "micro_batch": 64},
         [{"mode": mode, "batch": batch, "peak_mb": peak, "images_per_s": peak and 1.0, "estimate_mb": 0.0,
           "there_mb": 20_000.0} for (mode, batch), peak in peaks.items()])  # fmt: skip


def keep(folder: Path, name: str, gpu: str, settings: Any, rows: Any, **more: Any) -> None:
    content = {"machine": machine(gpu), **more, "settings": settings, "rows": rows}
    (folder / f"bench-{name}.json").write_text(json.dumps(content))


def planned(benches: Path, **changed: Any) -> dict[str, Any]:
    """What `plan` keeps, its needs by name."""
    out = benches.parent / "plan" / "plan.json"
    plan(benches=benches, json=out, **{**WISH, **changed})
    content: dict[str, Any] = json.loads(out.read_text())
    content["needs"] = {need["name"]: need for need in content["needs"]}
    return content


def test_figures_follow_from_measured_rates(benches: Path) -> None:
    """Each worked out here by hand."""
    needs = planned(benches)["needs"]
    shard, train, probe = needs["shard"], needs["pre-train"], needs["probe"]
    assert list(needs) == ["shard", "pre-train", "probe"]
    # 1000x800 grain: 100/s on 2 cores, 50 on one; 0.8 megapixels there, 2 here: 20. Shards 0, 3, 6 and 9 are a task's.
    assert shard["hours"] == pytest.approx(4000 / (2 * 20) / 3600)
    assert shard["core_hours"] == pytest.approx(10_000 / 20 / 3600)
    assert shard["gpu_hours"] == 0 and shard["cores"] == 2
    assert shard["memory_mb"] == 86 * 5 + 2 * 60  # a table five times as long as that of 2,000 rows
    # 500 images/s a GPU, 4 GPUs, 50 epochs; 11 ms an image: 5.5 cores busy, 6, and one more.
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


def test_of_sources_alike_in_size_the_slowest_is_taken_and_it_is_said(
    benches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(benches, source="1000x800")
    said = capsys.readouterr().out
    assert re.search(r"50\.0 images/s a core: 50\.0 of 1000x800 grain .* from 0\.80 to 0\.80", said)
    planned(benches, source="320x390")
    assert re.search(r"450\.0 images/s a core: 450\.0 of 390x320", capsys.readouterr().out)


def test_a_cpus_rate_gives_no_gpu_hours(
    benches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_benches(benches, monkeypatch, "none")
    content = planned(benches)
    train, on_cpu, probe = (content["needs"][name] for name in ("pre-train", "pre-train on a CPU", "probe"))
    for need in (train, probe):
        assert need["hours"] is need["gpu_hours"] is need["core_hours"] is None
    assert train["memory_mb"] is None
    assert on_cpu["hours"] == pytest.approx(10_000 * 50 / 500 / 3600) and on_cpu["gpu_hours"] == 0
    assert on_cpu["core_hours"] == pytest.approx(2 * on_cpu["hours"])
    assert on_cpu["memory_mb"] == 9000
    said = capsys.readouterr().out
    assert "bench-step.json is of a CPU, which tells nothing of a GPU" in said and "--gpu-rate=IMAGES_PER_S" in said
    assert "bench-memory.json is of a CPU" in said and "bench-io.json is of a machine without a GPU" in said
    assert not re.search(r"--time|--mem", content["sbatch"][2])


def test_a_rate_that_is_stated_is_taken_and_said_to_be_stated(
    benches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before one that was measured, too."""
    for gpu in ("none", GPU):
        write_benches(benches, monkeypatch, gpu)
        needs = planned(benches, gpu_rate=100.0)["needs"]
        assert needs["pre-train"]["gpu_hours"] == pytest.approx(10_000 * 50 / 100 / 3600)
        assert needs["pre-train"]["cores"] == 4  # 1.1 and one are 3; with fewer than 4 training makes views on the GPU
        assert needs["probe"]["hours"] == pytest.approx(3 * 10_000 / 100 / 3600)
        assert "100.0 images/s a GPU: stated by --gpu-rate, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "step", "figure", "command"),
    [("shard", "shard", "core_hours", "python -m bench.shard --json="),
     ("io", "pre-train", "cores", "python -m bench.io SHARDS --json="),
     ("step", "pre-train", "gpu_hours", "python -m bench.step SHARDS --rows=ours --arch=resnet18 --json="),
     ("memory", "pre-train", "", "python -m bench.memory --arch=resnet18 --json=")],
)  # fmt: skip
@pytest.mark.parametrize("fault", ["absent", "cut short", "no rows", "no key", "a list", "no number",
                                   "other settings"])
def test_what_is_not_measured_is_said_and_never_guessed(
    benches: Path, capsys: pytest.CaptureFixture[str], name: str, step: str, figure: str, command: str, fault: str
) -> None:
    before = planned(benches)["needs"]
    path = benches / f"bench-{name}.json"
    spoil(path, fault)
    capsys.readouterr()
    after = planned(benches)["needs"]
    said = capsys.readouterr().out.split("\nmissing:\n")[1]
    reason = {"absent": "is not there", "other settings": "is of --size=99, and "}.get(fault, "")
    assert f"- {step}: " in said and f"not measured ({path} {reason}" in said and f"run: {command}{path}" in said
    assert before[step]["missing"] == [] and len(after[step]["missing"]) == 1
    if figure:
        assert before[step][figure] is not None and after[step][figure] is None
    untouched = {"shard": ("pre-train", "probe"), "memory": ("shard", "probe")}.get(name, ("shard",))
    assert all(after[other] == before[other] for other in untouched)


def spoil(path: Path, fault: str) -> None:
    content = json.loads(path.read_text())
    if fault == "absent":
        path.unlink()
    elif fault == "cut short":
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


def test_an_image_weighs_what_it_does_in_the_shards(benches: Path, shards: Shards) -> None:
    """By the sizes of the files themselves; shards of another size by area."""
    files = [file for file in shards.folder.iterdir() if file.suffix in (".tar", ".idx")]
    mean = sum(file.stat().st_size for file in files) / 121
    need = planned(benches, shards=shards.folder, short_side=96)["needs"]["shard"]
    assert need["disk_gb"] == pytest.approx(10_000 * mean / 1e9) and need["at_most"] == []
    need = planned(benches, shards=shards.folder, short_side=192)["needs"]["shard"]
    assert need["disk_gb"] == pytest.approx(4 * 10_000 * mean / 1e9)


def test_without_shards_an_image_weighs_at_most_what_it_would_uncompressed(
    benches: Path, shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    need = planned(benches, short_side=96, source="320x390")["needs"]["shard"]
    assert need["disk_gb"] == pytest.approx(10_000 * (96 * 96 * 390 / 320 + 3072) / 1e9)
    assert need["at_most"] == ["disk_gb"] and f"≤ {need['disk_gb']:.2f}" in capsys.readouterr().out
    assert planned(benches, shards=shards.folder, short_side=96)["needs"]["shard"]["disk_gb"] < need["disk_gb"]


def test_disk_for_checkpoints_is_what_they_take(benches: Path, tmp_path: Path) -> None:
    """One is weighed; and they are counted while a run saves twice an epoch, with its best one early."""
    model = SimCLR("resnet18")
    optimizer = make_optimizer("adam", model, lr=1e-3, weight_decay=0.0)
    model(torch.zeros(2, 1, 32, 32)).sum().backward()
    optimizer.step()
    content = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    most, milestones = 0, list[int]()
    for step in range(1, 65):  # 32 epochs
        most = max(most, len(list_checkpoints(tmp_path)) + 1)  # one is being written
        if step % 20 == 0:
            milestones.append(step)
        save_checkpoint(tmp_path, step, {}, [*milestones, 7])
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [64, 63, 60, 40, 20, 7]
    need = planned(benches, epochs=32)["needs"]["pre-train"]
    assert need["disk_gb"] == pytest.approx(most * len(content.getbuffer()) / 1e9, rel=0.005)


def test_the_lines_submit_all_of_it(benches: Path, tmp_path: Path) -> None:
    """They are run, with an sbatch that only writes down what it was given."""
    content = planned(benches, gpus=64, gpus_per_node=8, images=10_000_000, short_side=320, epochs=200, batch_size=1024)
    jobs = submit(content["sbatch"], tmp_path)
    assert [job["script"] for job in jobs] == [
        "slurm/shard.sbatch", "slurm/shard.sbatch", "slurm/pretrain.sbatch", "slurm/probe.sbatch"]  # fmt: skip
    for job in jobs:
        script = (ROOT / job["script"]).read_text()
        wanted = set(re.findall(r'^(?!\[\[ -n).*: "\$\{(\w+):\?', script, re.M)) - {"SLURM_ARRAY_TASK_ID"}
        assert wanted <= set(job["given"])
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


def test_the_last_line_has_submit_sh_ask_for_the_same(benches: Path, tmp_path: Path) -> None:
    """It sets out the same jobs with the same options, beside its own."""
    content = planned(benches, gpus=64, gpus_per_node=8, images=10_000_000, short_side=320, batch_size=1024)
    by_hand = submit(content["sbatch"], tmp_path)
    by_script = [job for job in submit([content["submit"]], tmp_path) if "test-only" not in job["asked"]]
    assert len(by_script) == len(by_hand) + 1  # chain.sbatch, which watches over the others
    for one, other in zip(by_hand, by_script, strict=False):
        assert other["script"].endswith(one["script"])
        options = {name: value for name, value in one["asked"].items() if name != "dependency"}
        assert options.items() <= other["asked"].items() and one["given"].items() <= other["given"].items()


def test_steps_are_submitted_once_and_in_their_order(tmp_path: Path) -> None:
    jobs = submit(['SRC="$SRC" SHARDS="$SHARDS" RUN="$RUN" slurm/submit.sh probe shard pretrain probe'], tmp_path)
    names = [Path(job["script"]).name for job in jobs if "test-only" not in job["asked"]]
    assert names == ["shard.sbatch", "shard.sbatch", "pretrain.sbatch", "probe.sbatch", "chain.sbatch"]


def test_the_lines_ask_for_what_is_needed(benches: Path, tmp_path: Path) -> None:
    """Twice the hours, as --safety says, and a quarter, up to the next; twice the memory, up to a GiB."""
    content = planned(benches, gpus=64, gpus_per_node=8, images=10_000_000, epochs=200)
    shard, _, train, probe = (job["asked"] for job in submit(content["sbatch"], tmp_path))
    assert shard["array"] == "0-2" and shard["cpus-per-task"] == "2"
    assert shard["time"] == "1-22:45:00"  # 3,334,000 images / 40 / 3600 = 23.15 hours
    assert shard["mem"] == f"{-(-2 * (150 * 100 + 140) // 1024)}G"
    assert (train["nodes"], train["ntasks-per-node"], train["gres"], train["cpus-per-task"]) == ("8", "8", "gpu:8", "7")
    assert train["time"] == "1-11:00:00"  # 10,000,000 × 200 / (500 × 64) / 3600 = 17.36 hours
    assert "gres" not in probe and probe["time"] == "1-13:30:00"  # 16.67 hours, twice, and 4
    quick = planned(benches)
    assert [job["asked"]["time"] for job in submit(quick["sbatch"], tmp_path)] == [
        "00:30:00", "01:00:00", "00:30:00", "04:15:00"]  # fmt: skip
    assert "--nodes=2 --ntasks-per-node=2 --gres=gpu:2" in quick["sbatch"][2]
    alone = planned(benches, gpus=1, batch_size=64, epochs=100, arch="resnet50", gpu_rate=1.0)["sbatch"][2]
    assert "--nodes=1 --ntasks-per-node=1 --" in alone and "gres" not in alone and "FLAGS" not in alone


def submit(lines: list[str], place: Path) -> list[dict[str, Any]]:
    """What sbatch is given where one in its place only writes that down: script, options, variables.

    The lines are run with SRC, SHARDS and RUN in a folder whose name has a blank.
    """
    tools, log = place / "tools", place / "jobs"
    tools.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    names = ("SRC", "SHARDS", "RUN", "FLAGS", "MERGE", "PARTS", "OUT")
    notes = [f'[[ -z ${{{name}:-}} ]] || printf "%s\\0" "{name}=${name}" >> "{log}"' for name in names]
    notes += [f'printf "%s\\0" -- "$@" end >> "{log}"', f"echo $((100 + $(tr '\\0' '\\n' < '{log}' | grep -cx end)))"]
    for tool, content in (("sbatch", notes), ("squeue", [])):
        (tools / tool).write_text("\n".join(["#!/usr/bin/env bash", *content, ""]))
        (tools / tool).chmod(0o755)
    folders = [f"{name}='{place / f'my {name}'}'" for name in ("SRC", "SHARDS", "RUN")]
    (place / "my SRC").mkdir(exist_ok=True)
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


def test_defaults_are_those_of_the_commands_that_are_planned() -> None:
    defaults = inspect.signature(build).parameters
    assert (defaults["size"].default, defaults["shard_size"].default) == (SHORT_SIDE, SHARD_SIZE)
    own = inspect.signature(plan).parameters
    assert own["short_side"].default == SHORT_SIDE
    assert all(own[name].default == getattr(Config, name) for name in ("arch", "size", "epochs"))
    hours = re.search(r"--time=(\d+):00:00", (ROOT / "slurm" / "probe.sbatch").read_text())
    assert hours and int(hours[1]) == LEARNING_H


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"images": 0}, "--images=0: wants a number from 1 to"), ({"safety": 0.5}, "--safety=0.5: wants a number from 1"),
     ({"safety": float("nan")}, "--safety=nan: wants"), ({"source": "2320"}, r"--source=2320: .* --source=2320x2828"),
     ({"source": "0x99"}, "--source=0x99: wants"), ({"gpu_rate": -1.0}, "--gpu-rate=-1.0: wants images/s"),
     ({"gpus": 12, "gpus_per_node": 8}, "--gpus=12: does not fill nodes of --gpus-per-node=8; use 8"),
     ({"gpus": 0}, "--gpus=0: wants a number from 1 to"),
     ({"batch_size": 30}, "--batch-size=30: .* 4 can't share it; use 28"),
     ({"images": 100}, "--batch-size=256: more than --images=100"),
     ({"simulate": -1}, "--simulate=-1: wants a number from 0"),
     ({"simulate_epochs": 0}, "--simulate-epochs=0: wants a number from 1"),
     ({"simulate": 200}, "--simulate=200: ranks of 64 images a step want more than --images=10000"),
     ({"shards": Path("no-such")}, "no-such: no such folder"), ({"benches": Path("no-such")}, "--benches=no-such: ")],
)  # fmt: skip
def test_bad_input_is_told_in_a_line(benches: Path, tmp_path: Path, changed: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan(**{**WISH, "benches": benches, "json": tmp_path / "plan.json", **changed})
    assert not (tmp_path / "plan.json").exists()


def test_many_ranks_are_audited_in_their_order(benches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 nodes of 8 GPUs; against sets, by hand."""
    sizes, ranks, batch = (1000,) * 10 + (37,), 64, 16
    found = audit_plan(sizes, batch, ranks, 3)
    seen = [[number for rank in range(ranks) for one in islice(BatchSampler(sizes, batch, 0, rank,
                                                                            ranks).batches(epoch, 0), 9)
             for number in one.indices.tolist()] for epoch in range(3)]  # fmt: skip
    assert all(len(epoch) == len(set(epoch)) == 9 * ranks * batch for epoch in seen)
    assert found == Audit(ranks, 10_037, batch, 9, (10_037 - 9 * ranks * batch,) * 3, ())
    content = planned(benches, images=10_037, simulate=64, gpus=64, batch_size=1024, gpus_per_node=8)
    assert content["simulated"]["order"] == json.loads(json.dumps(vars(found)))
    said = capsys.readouterr().out
    assert "64 ranks × 16 of 10,037 images, 3 epochs: no image twice, 9 steps on every rank, 821 left out" in said
    assert "start-up and file handles: not measured; give --shards=SHARDS" in said


@pytest.mark.parametrize(
    ("batches", "told"),
    [([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], ()),
     ([[[0, 1], [2, 3]], [[4, 5], [3, 7]]], ("epoch 0: 1 images more than once", "epoch 1: 1 images more than once")),
     ([[[0, 1], [2, 3]], [[4, 5]]], ("epoch 0: from 1 to 2 steps on a rank", "epoch 1: from 1 to 2 steps on a rank")),
     ([[[0, 1]], [[4, 5]]], ("epoch 0: 5 images left out, a joint batch or more",
                             "epoch 1: 5 images left out, a joint batch or more")),
     ([[[0, 1], [2, 3]], [[4, 5], [6]]], ("epoch 0: a batch that is not of 2", "epoch 1: a batch that is not of 2"))],
)  # fmt: skip
def test_an_audit_finds_each_fault(batches: list[list[list[int]]], told: tuple[str, ...]) -> None:
    """Two ranks of two, nine images, two epochs; a third is not looked at."""
    def rank(steps: list[list[int]]) -> Iterator[Batch]:
        for epoch in range(3):
            for number, samples in enumerate(steps):
                yield Batch(epoch, number, np.array(samples if epoch < 2 else [0]))

    found = audit([rank(steps) for steps in batches], 9, 2, 2)
    assert found.faults == told
    assert ("FAULT: " + told[0] if told else "no image twice, 2 steps on every rank, 1 left out") in str(found)


def test_a_fault_ends_the_command_and_is_kept(benches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plan, "audit_plan", lambda *_: Audit(8, 10_000, 64, 19, (1, 1, 1), ("epoch 2: odd",)))
    with pytest.raises(InputError, match=r"--simulate=8: the audit failed \(epoch 2: odd\)"):
        plan(**WISH, benches=benches, simulate=8, json=tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["simulated"]["order"]["faults"] == ["epoch 2: odd"]


def test_loaders_of_many_ranks_run_in_one_process(benches: Path, shards: Shards) -> None:
    """Views of real shards; the audit is of what they were made of, the handles are those that the system counts."""
    images, ranks = shards.manifest.images("train"), 8
    simulated = planned(benches, shards=shards.folder, simulate=ranks, size=32, gpus=1, batch_size=3)["simulated"]
    views, starts = simulated["views"], simulated["starts"]
    assert (views["ranks"], views["images"], views["batch_size"], views["faults"]) == (ranks, images, 3, [])
    assert views["steps"] == images // 24 and views["left_out"] == [images % 24] * 3
    assert len(starts["seconds"]) == ranks and min(starts["seconds"]) > 0
    assert ranks * len(shards.manifest.of_split("train")) <= starts["handles"] <= ranks * 64
    assert starts["threads"] >= ranks and starts["memory_mb"] > 0
    assert run_ranks(shards.folder, 64, 4, 1, 32)[0].batch_size == images // 4  # of which there are too few for 64


def test_ranks_that_are_too_many_are_told_before_they_start(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shards.manifest.images("train")
    with pytest.raises(InputError, match=f"--simulate=500: .* has {images} images .*; lower it to {images}"):
        run_ranks(shards.folder, 1, 500, 1, 32)
    monkeypatch.setattr("bench.plan.audit.resource.getrlimit", lambda _: (100, 200))
    with pytest.raises(InputError, match=r"--simulate=64: in one process that may take .* no more than 200 are"):
        run_ranks(shards.folder, 1, 64, 1, 32)
