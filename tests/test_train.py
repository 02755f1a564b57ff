"""The training command: it learns, stops, resumes exactly and writes the documented files."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shard.errors import InputError
from tests.conftest import DALI, ROOT, SMALL, Shards, newest, run_module, same_run, train_here
from train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, step_of
from train.config import Config
from train.device import resolve
from train.journal import METRICS, SPEED, Journal, read_journal
from train.setup import set_up
from train.signals import StopRequest, catch_stop_signals
from train.step import train_step


def test_run_writes_its_documented_files(shards: Shards, trained: Path) -> None:
    steps = shards.manifest.images("train") // 16
    lines = read_journal(trained)
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [steps, 2 * steps]
    assert [line["step"] for line in lines if line["kind"] == "step"] == sorted(logged_steps(steps))
    measured = {"positive_similarity", "negative_similarity", "alignment", "uniformity", "embedding_rank", "top1"}
    assert all(measured < line.keys() for line in lines if line["kind"] == "step")
    speed = read_journal(trained, SPEED)
    assert [line["kind"] for line in speed] == ["start", *["step"] * len(logged_steps(steps)), "stop"]
    assert all(line["images_per_s"] > 0 and 0 <= line["data_wait"] <= 1 for line in speed if line["kind"] == "step")
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((trained / "tensorboard").glob("events*"))
    kept = list_checkpoints(trained)
    assert [step_of(path) for path in kept] == [2 * steps, steps]
    state = load_checkpoint(kept[0])
    assert state["epoch"] == 2 and state["data"] == shards.manifest.counts and state["commit"]


def logged_steps(steps: int) -> set[int]:
    """Return every second step of an epoch and its last, in both epochs."""
    one = {*range(2, steps + 1, 2), steps}
    return one | {steps + step for step in one}


def test_log_has_a_line_in_time_when_steps_are_slow(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no time allowed without a line, each step gets one, though its loss is not read. The last one has it."""
    monkeypatch.setattr("train.run_log.QUIET_S", 0.0)
    train_here(shards, tmp_path / "run", epochs=1, log_every=1000)
    printed = capsys.readouterr().out
    lines = re.findall(r"epoch 1/1, step (\d) of 6: (loss [\d.]+, )?[\d.]+ images/s, .*\d\d:\d\d left", printed)
    assert lines[:5] == [(str(step), "") for step in range(1, 6)] and lines[5][0] == "6" and lines[5][1]


def test_epoch_loss_is_the_mean_of_its_steps(trained: Path) -> None:
    lines = read_journal(trained)
    steps = [line for line in lines if line["kind"] == "step"]
    sums = {1: 0.0, 2: 0.0}
    for before, line in zip([{"step": 0}, *steps], steps, strict=False):
        sums[math.ceil(line["epoch"])] += line["loss"] * (line["step"] - before["step"])
    total = lines[-1]["step"] // 2
    assert {line["epoch"]: pytest.approx(line["loss"]) for line in lines if line["kind"] == "epoch"} == {
        epoch: pytest.approx(value / total) for epoch, value in sums.items()}  # fmt: skip


@pytest.mark.parametrize("backend", [DALI, pytest.param("--nodali", marks=pytest.mark.long)])
def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    shards: Shards, tmp_path: Path, trained: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    steps, dali, whole = shards.manifest.images("train") // 16, backend == "--dali", trained
    if backend != DALI:
        whole = tmp_path / "whole"
        train_here(shards, whole, dali=dali)
    train_here(shards, tmp_path / "parts", dali=dali, epochs=1)
    train_here(shards, tmp_path / "parts", dali=dali, limit_steps=steps + 3)
    said = capfd.readouterr().out
    assert "resuming from" in said and f"stopped after {steps + 3} steps" in said
    assert newest(tmp_path / "parts")["step_in_epoch"] == 3
    train_here(shards, tmp_path / "parts", dali=dali)
    assert same_run(whole, tmp_path / "parts")


def test_limit_at_the_last_step_completes_the_epoch(shards: Shards, tmp_path: Path, trained: Path) -> None:
    steps = shards.manifest.images("train") // 16
    for limit in (steps, 2 * steps):
        train_here(shards, tmp_path, limit_steps=limit)
        assert newest(tmp_path)["step_in_epoch"] == 0
    assert same_run(trained, tmp_path)


@pytest.mark.parametrize(("number", "backend"), [
    pytest.param(signal.SIGUSR1, "--nodali", marks=pytest.mark.long), (signal.SIGINT, DALI)
])  # fmt: skip
def test_stop_signal_saves_and_exits_with_the_requeue_status(
    shards: Shards, tmp_path: Path, trained: Path, number: signal.Signals, backend: str
) -> None:
    """Slurm sends the signal to the loader's processes too."""
    whole = trained
    if backend != DALI:
        whole = tmp_path / "whole"
        train_here(shards, whole, dali=False)
    out = tmp_path / "parts"
    flags = [f"--shards={shards.folder}", f"--out={out}", backend, "--epochs=2", *SMALL]
    process = subprocess.Popen([sys.executable, "-m", "train", *flags], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    while process.poll() is None and not any(line["kind"] == "step" for line in read_journal(out, SPEED)):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 75), complaint
    assert f"saved after step {newest(out)['step']}, as requested by {number.name}" in said
    assert "Traceback" not in complaint
    assert 0 < newest(out)["step"] < newest(whole)["step"]
    assert read_journal(out, SPEED)[-1]["kind"] == "stop"
    train_here(shards, out, dali=backend == "--dali")
    assert same_run(whole, out)


def test_signal_handlers_are_restored_after_the_block() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    with catch_stop_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested and stop.signal == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
    assert StopRequest().requested is False


def test_finished_run_is_not_changed(shards: Shards, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    train_here(shards, trained)
    assert "nothing to do" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_more_epochs_continue_the_journal(shards: Shards, trained: Path, tmp_path: Path) -> None:
    """Start from a finished run's checkpoint in another folder: its journal lines are copied."""
    train_here(shards, tmp_path / "more", epochs=3, resume=str(trained))
    lines = read_journal(tmp_path / "more")
    assert lines[: len(read_journal(trained))] == read_journal(trained) and lines[-1]["epoch"] == 3
    train_here(shards, tmp_path / "whole", epochs=3)
    assert same_run(tmp_path / "more", tmp_path / "whole")
    train_here(shards, tmp_path / "more", epochs=4, resume=str(trained))  # requeued: resumes from its own
    assert newest(tmp_path / "more")["epoch"] == 4
    train_here(shards, tmp_path / "third", epochs=5, resume=str(tmp_path / "more"))
    list_checkpoints(tmp_path / "more")[0].unlink()  # it resumes anyway, because it has started
    train_here(shards, tmp_path / "third", epochs=6, resume=str(tmp_path / "more"))
    assert newest(tmp_path / "third")["epoch"] == 6
    with pytest.raises(InputError, match="contains a run that did not begin there, up to step 18; choose another"):
        train_here(shards, tmp_path / "whole", epochs=4, resume=str(list_checkpoints(trained)[1]))


def test_impossible_resume_is_refused(shards: Shards, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume=never: .* contains checkpoints, up to step 12; choose another"):
        train_here(shards, trained, resume="never")
    with pytest.raises(InputError, match=r"--resume=/nowhere/at-all: no checkpoint there; give a run's folder"):
        train_here(shards, tmp_path / "new", resume="/nowhere/at-all")
    with pytest.raises(InputError, match="no checkpoint there"):
        train_here(shards, tmp_path / "new", resume=str(tmp_path))
    assert not list_checkpoints(tmp_path / "new")
    train_here(shards, tmp_path / "new", resume="never", limit_steps=1)
    assert newest(tmp_path / "new")["step"] == 1


def test_second_process_on_one_folder_is_refused(shards: Shards, trained: Path) -> None:
    code = ("import sys, time; from pathlib import Path; from shard.files import locked\n"
            "with locked(Path(sys.argv[1]), 'train'): print('held', flush=True); time.sleep(60)")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, str(trained)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="another process is writing there"):
        patch.setattr("train.loop.LOCK_TIMEOUT_S", 0.3)
        train_here(shards, trained)
    process.kill()
    process.wait()
    train_here(shards, trained)  # the other process has released the lock


def test_steps_on_one_batch_reduce_its_loss(shards: Shards, tmp_path: Path) -> None:
    loader, state = set_up(Config(shards=shards.folder, out=tmp_path, arch="resnet18", size=32, batch_size=16,
                                  precision="fp32", device="cpu"))[-2:]  # fmt: skip
    view1, view2 = next(iter(loader))
    state.model.train()
    losses = [train_step(state, view1, view2, lr=1e-3, temperature=0.1)[0].item() for _ in range(25)]
    assert state.step == 25
    assert losses[-1] < 0.5 * math.log(31) and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "lars", "lr": 0.5, "schedule": "cosine", "warmup_epochs": 0.5, "weight_decay": 1e-6, "clip": 1.0},
     {"recompute": True, "micro_batch": 4, "optimizer": "adamw", "weight_decay": 0.01, "precision": "bf16"},
     {"arch": "timm/mobilenetv3_small_050", "recompute": True, "precision": "bf16"}],
)  # fmt: skip
def test_other_settings_resume_exactly(shards: Shards, tmp_path: Path, settings: dict[str, object]) -> None:
    train_here(shards, tmp_path / "whole", epochs=1, **settings)
    for limit in (4, 0):
        train_here(shards, tmp_path / "parts", epochs=1, limit_steps=limit, **settings)
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    rates = [line["lr"] for line in read_journal(tmp_path / "whole") if line["kind"] == "step"]
    assert len(set(rates)) == (len(rates) if "schedule" in settings else 1)


def test_nan_loss_error_names_step_keys_and_last_good_checkpoint(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path, epochs=1, limit_steps=3)
    state = newest(tmp_path)
    state["model"]["projector.2.weight"][0, 0] = math.inf  # as after a much too large step
    good = save_checkpoint(tmp_path, 4, {**state, "step": 4})
    with pytest.raises(InputError) as raised:
        train_here(shards, tmp_path, log_every=2, checkpoint_minutes=1e-9)
    assert re.match(r"step 5: the loss is nan, on images (\w+, ){2}\w+ and 13 more, all in ", str(raised.value))
    assert f"the last good checkpoint, {good}, with a --lr below 0.001 and --accept=lr" in str(raised.value)
    assert list_checkpoints(tmp_path)[0] == good
    loader = set_up(Config(shards=shards.folder, out=tmp_path, batch_size=16, size=32, arch="resnet18",
                           device="cpu")).loader  # fmt: skip
    assert (tmp_path / "bad-batch.txt").read_text().split() == loader.keys(0, 3)


def test_views_larger_than_the_images_are_warned_about(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, size=128, limit_steps=1)
    assert "warning: --size=128: views are larger than the images in" in capfd.readouterr().err
    train_here(shards, tmp_path / "small", limit_steps=1)
    assert "warning" not in capfd.readouterr().err


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "compiler-of-nowhere")
    with pytest.raises(InputError, match="--compile: PyTorch needs the compiler compiler-of-nowhere, which is not"):
        Config(shards=tmp_path, out=tmp_path, compile=True)


def test_journal_drops_lines_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 0)
    for step in (1, 2, 3):
        journal.write("step", step=step, epoch=step / 4, loss=float(step))
    journal.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "step", "st')  # left by a killed process
    journal = Journal(tmp_path, 2, 2)
    journal.close()
    assert journal.lines == 2
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2]


def test_nan_metrics_are_null_in_the_journal(tmp_path: Path) -> None:
    for lines in (0, 1):  # the second run keeps the first one's line
        journal = Journal(tmp_path, lines, lines)
        journal.write("online", step=1 + lines, epoch=1.0, knn_auroc=math.nan, linear_auroc=math.inf)
        journal.close()
    written = (tmp_path / METRICS).read_text().splitlines()
    assert len(written) == 2 and all('"knn_auroc": null, "linear_auroc": null' in line for line in written)
    assert all(math.isnan(line["knn_auroc"]) for line in read_journal(tmp_path))


def test_journal_with_lost_lines_is_warned_about(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, epochs=1)
    (tmp_path / METRICS).write_text("")
    train_here(shards, tmp_path, epochs=2)
    output = capfd.readouterr().out
    assert "has 0 lines, but the checkpoint was written after line 4; the loss curve will have a gap" in output


def test_auto_precision_is_resolved_and_fp16_requires_a_gpu(tmp_path: Path) -> None:
    config = resolve(Config(shards=tmp_path, out=tmp_path, device="cpu"))
    assert config.precision in ("bf16", "fp32")
    with pytest.raises(InputError, match="fp16: needs a GPU"):
        Config(shards=tmp_path, out=tmp_path, device="cpu", precision="fp16")


def test_published_recipe_is_the_default(tmp_path: Path) -> None:
    config = Config(shards=tmp_path, out=tmp_path)
    assert (config.arch, config.size, config.epochs, config.batch_size) == ("resnet50", 224, 100, 64)
    assert (config.lr, config.temperature, config.optimizer, config.schedule) == (3e-4, 0.5, "adam", "constant")
    assert (config.weight_decay, config.clip, config.warmup_epochs, config.micro_batch) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--micro-batch=5",), "--micro-batch=5: does not divide --batch-size=16; 1, 2, 4, 8 do"),
     (("--precision=fp16", "--device=cpu"), "--precision=fp16: needs a GPU"),
     (("--batch-size=1000",), "--batch-size=1000: .* has 97 images in split 'train'.*lower it to 97 or less"),
     (("--warmup-epochs=200",), "--warmup-epochs=200: more than --epochs=100"),
     (("--lr=nan",), "--lr=nan: must be a number from"),
     (("--compile", "--recompute"), "--compile --recompute: the compiler itself decides"),
     (("--optimizer=sgd",), "--optimizer=sgd: not one of adam, adamw, lars"),
     (("--clip=-1",), "--clip=-1.0: must be a number from 0"),
     (("--epoch=3",), "unknown flag --epoch=3 .did you mean --epochs")],
)  # fmt: skip
def test_bad_flags_fail_before_pytorch_is_imported(
    shards: Shards, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    code = ("import sys; sys.argv[0] = 'train'; from train.__main__ import COMMANDS; from shard.cli import run\n"
            "try: run('python -m train', COMMANDS)\nfinally: print('torch' in sys.modules)")  # fmt: skip
    given = [f"--shards={shards.folder}", f"--out={tmp_path / 'run'}", "--batch-size=16"]
    if any(flag.startswith("--batch") for flag in flags):
        given.pop()
    done = subprocess.run([sys.executable, "-c", code, *given, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stdout == "False\n"
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_fp16_on_a_gpu_learns_and_resumes(shards: Shards, tmp_path: Path) -> None:
    flags = ["--dali", *(flag for flag in SMALL if not flag.startswith(("--precision", "--device")))]
    for epochs in (1, 3):
        done = run_module("train", f"--shards={shards.folder}", f"--out={tmp_path}", *flags, f"--epochs={epochs}")
        assert done.returncode == 0, done.stderr
    assert newest(tmp_path)["config"]["precision"] == "fp16"
    epochs_done = [line["loss"] for line in read_journal(tmp_path) if line["kind"] == "epoch"]
    assert len(epochs_done) == 3 and epochs_done[-1] < epochs_done[0]
