"""Training by the command a user gives: it learns, stops, resumes exactly, and leaves what it promises."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shard.errors import InputError
from tests.conftest import DALI, ROOT, SMALL, Shards, run_module
from train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from train.config import Config
from train.journal import Journal, read_journal
from train.setup import set_up
from train.step import train_step


def train(shards: Shards, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module("train", f"--shards={shards.folder}", f"--out={out}", *SMALL, *arguments)


def same_weights(one: Path, other: Path) -> bool:
    states = [load_checkpoint(path) for run in (one, other) if (path := newest_checkpoint(run))]
    assert len(states) == 2 and states[0]["step"] == states[1]["step"]
    return all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in states[0]["model"]) and all(
        torch.equal(states[0]["optimizer"]["state"][key][name], states[1]["optimizer"]["state"][key][name])
        for key in states[0]["optimizer"]["state"] for name in ("exp_avg", "exp_avg_sq", "step"))  # fmt: skip


def losses(run: Path) -> list[tuple[str, int, float]]:
    return [(line["kind"], line["step"], line["loss"]) for line in read_journal(run)]


def test_a_run_leaves_what_it_promises(shards: Shards, trained: Path) -> None:
    steps = shards.manifest.images("train") // 16
    lines = read_journal(trained)
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [steps, 2 * steps]
    assert [line["step"] for line in lines if line["kind"] == "step"] == sorted(_intervals(steps))
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((trained / "tensorboard").glob("events*"))
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == [f"step-{steps:09d}.pt", f"step-{2 * steps:09d}.pt"]
    assert load_checkpoint(trained / "checkpoints" / names[-1])["epoch"] == 2


def _intervals(steps: int) -> set[int]:
    """Every second step of an epoch and its last, in both epochs."""
    one = {*range(2, steps + 1, 2), steps}
    return one | {steps + step for step in one}


@pytest.mark.parametrize("backend", sorted({DALI, "--nodali"}))
def test_stopped_at_an_epoch_and_resumed_equals_never_stopped(
    shards: Shards, tmp_path: Path, trained: Path, backend: str
) -> None:
    whole = trained
    if backend != DALI:
        whole = tmp_path / "whole"
        assert train(shards, whole, backend, "--epochs=2").returncode == 0
    parts = tmp_path / "parts"
    assert train(shards, parts, backend, "--epochs=1").returncode == 0
    done = train(shards, parts, backend, "--epochs=2")
    assert done.returncode == 0 and "resuming from" in done.stdout
    assert same_weights(whole, parts)
    assert losses(whole) == losses(parts)


def test_stopped_within_an_epoch_and_resumed_equals_never_stopped(
    shards: Shards, tmp_path: Path, trained: Path
) -> None:
    steps = shards.manifest.images("train") // 16
    done = train(shards, tmp_path / "parts", DALI, "--epochs=2", f"--limit-steps={steps + 3}")
    assert done.returncode == 0 and f"stopped after {steps + 3} steps" in done.stdout
    assert train(shards, tmp_path / "parts", DALI, "--epochs=2").returncode == 0
    assert same_weights(trained, tmp_path / "parts")
    assert losses(trained) == losses(tmp_path / "parts")


def test_a_limit_at_an_epochs_last_step_ends_that_epoch(shards: Shards, tmp_path: Path, trained: Path) -> None:
    steps = shards.manifest.images("train") // 16
    for limit in (steps, 2 * steps):
        done = train(shards, tmp_path, DALI, "--epochs=2", f"--limit-steps={limit}")
        assert done.returncode == 0, done.stderr
    assert same_weights(trained, tmp_path) and losses(trained) == losses(tmp_path)


def test_killed_and_started_again_equals_never_stopped(shards: Shards, tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "killed"
    flags = [f"--shards={shards.folder}", f"--out={out}", DALI, "--epochs=2", *SMALL]
    command = [sys.executable, "-m", "train", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while newest_checkpoint(out) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_checkpoint(out) is not None
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode == 0
    assert same_weights(trained, out)
    assert losses(trained) == losses(out)


def test_a_finished_run_is_left_alone(shards: Shards, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    done = train(shards, trained, DALI, "--epochs=2")
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_steps_on_one_batch_learn_to_tell_its_images_apart(shards: Shards, tmp_path: Path) -> None:
    run = set_up(Config(shards=shards.folder, out=tmp_path, arch="resnet18", size=32, batch_size=16, lr=1e-3,
                        temperature=0.1, precision="fp32", device="cpu"))  # fmt: skip
    view1, view2 = next(iter(run.loader))
    run.model.train()
    losses = [train_step(run, view1, view2).item() for _ in range(25)]
    assert run.step == 25
    assert losses[-1] < 0.5 * math.log(31) and losses[-1] < 0.5 * losses[0]


def test_a_run_under_other_settings_is_refused_with_what_differs(shards: Shards, trained: Path) -> None:
    flags = [DALI, "--arch=resnet34", *(flag for flag in SMALL if "arch" not in flag)]
    done = run_module("train", f"--shards={shards.folder}", f"--out={trained}", *flags)
    assert done.returncode == 1 and "arch resnet18 there, resnet34 now" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_is_whole_or_not_there_and_only_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9):
        save_checkpoint(tmp_path, step, {"step": step})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000000005.pt", "step-000000009.pt"]
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 10, {"step": (line for line in ())})  # a generator can't be saved
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest)["step"] == 9


def test_a_damaged_checkpoint_and_one_with_code_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"step": 1, "weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"format": "cxr-simclr-checkpoint/1", "code": Path("x")}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_the_journal_drops_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.write("step", step=step, epoch=step / 4, loss=float(step))
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # what a kill leaves
    Journal(tmp_path, 2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_auto_precision_is_settled_and_fp16_needs_a_gpu(tmp_path: Path) -> None:
    config = Config(shards=tmp_path, out=tmp_path, device="cpu")
    assert config.precision in ("bf16", "fp32")
    with pytest.raises(InputError, match="fp16: wants a GPU"):
        Config(shards=tmp_path, out=tmp_path, device="cpu", precision="fp16")


def test_the_published_recipe_is_the_default(tmp_path: Path) -> None:
    config = Config(shards=tmp_path, out=tmp_path)
    assert (config.arch, config.size, config.epochs, config.batch_size) == ("resnet50", 224, 100, 64)
    assert (config.lr, config.temperature) == (3e-4, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_fp16_on_a_gpu_learns_and_resumes(shards: Shards, tmp_path: Path) -> None:
    flags = ["--dali", *(flag for flag in SMALL if not flag.startswith(("--precision", "--device")))]
    for epochs in (1, 3):
        done = run_module("train", f"--shards={shards.folder}", f"--out={tmp_path}", *flags, f"--epochs={epochs}")
        assert done.returncode == 0, done.stderr
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest)["config"]["precision"] == "fp16"
    epochs_done = [line["loss"] for line in read_journal(tmp_path) if line["kind"] == "epoch"]
    assert len(epochs_done) == 3 and epochs_done[-1] < epochs_done[0]
