"""The steps that train: a run, the same run killed and resumed, its report and its export."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bench.archive.folders import Archive, Result
from pipeline.loader import has_dali
from shard.errors import InputError
from train.checkpoint import list_checkpoints, load_checkpoint
from train.journal import METRICS, SPEED, read_journal

STEPS, LOG_EVERY = 50, 5  # epochs of CheXpert have 3,490 steps
BATCH = 64
CHECKPOINT_MINUTES = 0.02  # so that there is a checkpoint within the epoch when the run is killed
FEW_IMAGES = 5000  # with fewer, there are too few labels for the default numbers of shots


def _words(archive: Archive, run: Path, checkpoint_minutes: float) -> list[str]:
    """Return the training command. On a CPU, whose results are reproducible."""
    batch = min(BATCH, archive.training_images // 20)  # 20 steps in an epoch at least
    return ["train", *(["--dali"] if has_dali() else []), f"--shards={archive.shards}", f"--out={run}", "--device=cpu",
            "--arch=resnet18", "--size=64", f"--batch-size={batch}", f"--limit-steps={STEPS}",
            f"--log-every={LOG_EVERY}", "--online-every=0",
            f"--checkpoint-minutes={checkpoint_minutes}"]  # fmt: skip


def train(archive: Archive) -> Result:
    """Train for some steps."""
    run = archive.out / "run"
    shutil.rmtree(run, ignore_errors=True)  # of an interrupted step
    cost = archive.run(*_words(archive, run, 0), log="train")
    lines = read_journal(run, SPEED)
    rates = [line["images_per_s"] for line in lines if line["kind"] == "step"]
    return Result([cost], _images(run), f"{lines[-1]['step']} steps of a ResNet-18 at 64 px; the last ones at "
                  f"{rates[-1]:,.0f} images/s", {"images_per_s": rates})  # fmt: skip


def _images(run: Path) -> int:
    state = load_checkpoint(list_checkpoints(run)[0])
    return int(state["step"]) * int(state["config"]["batch_size"])


def resume(archive: Archive) -> Result:
    """Kill the same run with SIGKILL within an epoch, resume it, and compare metrics and weights."""
    whole, run = archive.out / "run", archive.out / "run-killed"
    shutil.rmtree(run, ignore_errors=True)
    words = _words(archive, run, CHECKPOINT_MINUTES)
    killed = archive.run(*words, log="train-killed",
                         until=lambda: bool(list_checkpoints(run)) and _steps(run) >= STEPS // 2)  # fmt: skip
    at, saved = _steps(run), int(load_checkpoint(list_checkpoints(run)[0])["step"])
    if killed.status is not None:
        raise InputError(f"{run}: the run ended before it could be killed; run the same command again")
    resumed = archive.run(*words, log="train-killed")
    metrics = [(folder / METRICS).read_bytes() for folder in (whole, run)]
    weights = [load_checkpoint(list_checkpoints(folder)[0])["model"] for folder in (whole, run)]
    if metrics[0] != metrics[1] or not all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()):
        raise InputError(f"{run}: its metrics or weights differ from those of {whole}, which was not killed; resuming "
                         "must be exact on a CPU, so please report it")  # fmt: skip
    return Result([killed, resumed], _images(run), f"killed with SIGKILL after step {at}, resumed from step {saved}: "
                  "metrics and weights equal those of the run that was not killed",
                  {"killed_after": at, "saved": saved})  # fmt: skip


def _steps(run: Path) -> int:
    return max((int(line["step"]) for line in read_journal(run, SPEED)), default=0)


def report(archive: Archive) -> Result:
    """Probe the run's encoder, within some minutes."""
    few = ["--shots=1,2", "--draws=5"] if archive.images < FEW_IMAGES else []
    cost = archive.run("probe", "report", str(archive.out / "run"), f"--shards={archive.shards}",
                       f"--out={archive.out / 'report'}", "--device=cpu", "--baselines=scratch,thumbnail", *few,
                       timeout_s=60 * archive.report_minutes)  # fmt: skip
    if cost.status is None:
        return Result([cost], archive.images, f"not finished after {cost.seconds:.0f} s", {"finished": False})
    page = (archive.out / "report" / "report.html").stat().st_size / 2**20
    return Result([cost], archive.images, f"finished, the page has {page:.1f} MB", {"finished": True})


def export(archive: Archive) -> Result:
    """Export the run's encoder."""
    out = archive.out / "exported.pth"
    cost = archive.run("train", "export", str(archive.out / "run"), "--format=torchvision", f"--out={out}")
    return Result([cost], 0, f"a state dict for torchvision, {out.stat().st_size / 2**20:.0f} MB")
