"""The parts of bench.gpu_check: each runs for at most some seconds and returns its outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.rows import LoaderSettings, write_raw_copy
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, has_dali, make_views
from shard.manifest import read_manifest
from train.checkpoint import list_checkpoints, load_checkpoint
from train.journal import CARD, SPEED, read_card, read_journal

COMPARED_IMAGES = 64  # two views each
MINUTES_PER_ROUND = 3  # bench.io and bench.step run a round for each three minutes, one to three
# Tolerances between a GPU view and a CPU view, in grey levels of 255. From raw images only the order of floating-point
# operations differs. nvJPEG and libjpeg-turbo also round differently, by about a level in a decoded pixel, which
# brightness and contrast can double; the JPEG standard allows that.
MOST_FROM_RAW, MEAN_FROM_JPEG, P999_FROM_JPEG = 0.1, 0.5, 4.0


@dataclass
class Check:
    """The outcome of one part: its command, whether it passed, its duration, output and figures."""

    name: str
    command: str
    ok: bool
    seconds: float
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


def list_parts(
    shards: Path, folder: Path, on_cpu: bool, minutes: float
) -> list[tuple[str, float, Callable[[float], Check]]]:
    """List the parts: name, share of the remaining time, and a function that runs it within some seconds."""
    rounds = f"--rounds={max(1, min(3, int(minutes / MINUTES_PER_ROUND)))}"
    small = ["--arch=resnet18", "--size=96"] if on_cpu else []
    # Each row starts a process, which takes 10 to 20 s on a machine that has just booted: no time for all baselines.
    loaders = "dali-fused" if on_cpu else "dali-gpu,dali-fused-to-gpu,dali-fused"
    rows = "ours,plain-amp" if on_cpu else "ours-gpu-views,ours-cpu-views,plain-amp"
    compiled = "ours-compiled" if on_cpu else "ours-gpu-views,ours-compiled"
    step = [str(shards), "--seconds=4", *small]
    return [
        ("views", 0.2, partial(_compare_views, shards, folder)),
        ("killed and resumed", 0.25, partial(_kill_and_resume, shards, folder / "run", on_cpu)),
        ("bench.io", 0.4, partial(_run_bench, "bench.io", [str(shards), rounds, "--seconds=1", f"--backends={loaders}"],
                                  folder / "io.json")),
        ("bench.step", 0.5, partial(_run_bench, "bench.step", [*step, rounds, f"--rows={rows}"], folder / "step.json")),
        ("--views=auto", 0.5, partial(_choose_views, shards, folder / "auto", small)),
        ("tests", 0.7, partial(_run_module, "tests", ["pytest", "-v", "--tb=short", "-m", "gpu", *_gpu_tests()])),
        ("bench.memory", 0.7, partial(_run_bench, "bench.memory", ["--batches=64,256,1024", *small],
                                      folder / "memory.json")),
        ("--compile", 1.0, partial(_run_bench, "bench.step", [*step, "--rounds=1", f"--rows={compiled}"],
                                   folder / "compiled.json")),
    ]  # fmt: skip


def _gpu_tests() -> list[str]:
    """List the files with tests for a GPU: to import the other files would take as long as to run these tests."""
    return [str(path) for path in sorted(Path("tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]


def _run_module(name: str, words: list[str], seconds: float) -> Check:
    """Run python -m WORDS for at most some seconds, then kill it and all its children."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-u", "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        text, errors = process.communicate(timeout=seconds)
        ok = process.returncode == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # SIGTERM would not end a benchmark's suspended processes
        text, errors = process.communicate()
        ok, text = False, f"{text}\nstopped after {seconds:.0f} s"
    return Check(name, f"python -m {' '.join(words)}", ok, time.monotonic() - begun,
                 text if ok else f"{text}\n{errors[-3000:]}")  # fmt: skip


def _run_bench(name: str, words: list[str], figures: Path, seconds: float) -> Check:
    outcome = _run_module(name, [name, *words, f"--json={figures}"], seconds)
    if figures.exists():
        outcome.figures = json.loads(figures.read_text())
    return outcome


def _compare_views(shards: Path, folder: Path, seconds: float) -> Check:
    """Compare views made by the GPU's operators, or their CPU versions, with those of the fused operator."""
    begun, command = time.monotonic(), "make_views('dali-stock', …) against make_views('dali-fused', …)"
    if not has_dali():
        return Check("views", command, False, 0.0, "NVIDIA DALI is not installed")
    manifest = read_manifest(shards)
    augmentation = Augmentation(mean=manifest.pixel_mean, std=manifest.pixel_std)
    jpeg = LoaderSettings(shards, manifest, augmentation, COMPARED_IMAGES, 2)
    (folder / "compared").mkdir()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures, text = dict[str, float](), list[str]()
    for name, settings in (("raw", write_raw_copy(jpeg, folder / "compared")), ("jpeg", jpeg)):
        difference = _first_views(settings, "dali-stock", device) - _first_views(settings, "dali-fused", "cpu")
        levels = difference.abs() * augmentation.std * 255
        found = {"largest": levels.max(), "p999": levels.flatten().kthvalue(int(0.999 * levels.numel())).values,
                 "mean": levels.mean()}  # fmt: skip
        figures |= {f"{name}_{figure}": float(value) for figure, value in found.items()}
        text.append(f"{2 * COMPARED_IMAGES} views of {name} images, difference in grey levels of 255: mean "
                    f"{found['mean']:.5f}, 99.9th percentile {found['p999']:.4f}, "
                    f"largest {found['largest']:.4f}")  # fmt: skip
    ok = (figures["raw_largest"] <= MOST_FROM_RAW and figures["jpeg_mean"] <= MEAN_FROM_JPEG
          and figures["jpeg_p999"] <= P999_FROM_JPEG)  # fmt: skip
    return Check("views", command, ok, time.monotonic() - begun, "\n".join(text), figures)


def _first_views(settings: LoaderSettings, backend: ViewBackend, device: str) -> torch.Tensor:
    """Return both views of the first batch on the CPU, [2, B, 1, S, S]."""
    views = make_views(backend, settings.fetcher(), settings.batches(), augmentation=settings.augmentation, seed=0,
                       device=torch.device(device), workers=settings.threads)  # fmt: skip
    return torch.stack(next(iter(views))).float().cpu()


def _choose_views(shards: Path, out: Path, small: list[str], seconds: float) -> Check:
    """Start a run with --views=auto, and return both rates that it measured and its own afterwards."""
    words = ["train", "--dali", f"--shards={shards}", f"--out={out}", "--views=auto", "--epochs=100", "--log-every=20",
             "--limit-steps=60", "--online-every=0", *small]  # fmt: skip
    outcome = _run_module("--views=auto", words, seconds)
    if (out / CARD).exists():
        rates = [line["images_per_s"] for line in read_journal(out, SPEED) if line["kind"] == "step"]
        outcome.figures = {**read_card(out)["views"], "then_images_per_s": rates}
    return outcome


def _kill_and_resume(shards: Path, out: Path, on_cpu: bool, seconds: float) -> Check:
    """Kill a run of two epochs with SIGKILL in its first epoch, and resume it."""
    words = ["train", "--dali", f"--shards={shards}", f"--out={out}", "--arch=resnet18", "--size=96", "--epochs=2",
             "--lr=1e-3", "--log-every=2", "--checkpoint-minutes=0.02", "--online-every=0",
             *([] if on_cpu else ["--precision=fp16"])]  # fmt: skip
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and time.monotonic() - begun < seconds / 2 and not list_checkpoints(out):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last_step = max((line["step"] for line in read_journal(out, SPEED)), default=0)
    outcome = _run_module("killed and resumed", words, max(1.0, seconds - (time.monotonic() - begun)))
    losses = [line["loss"] for line in read_journal(out) if line["kind"] == "epoch"]
    outcome.ok = outcome.ok and "resuming from" in outcome.text and len(losses) == 2 and losses[1] < losses[0]
    if outcome.ok:
        state = load_checkpoint(list_checkpoints(out)[0])
        outcome.figures = {"killed_after_step": last_step, "steps": state["step"], "losses": losses,
                           "precision": state["config"]["precision"]}  # fmt: skip
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    outcome.text += f"killed with SIGKILL after step {last_step}; losses by epoch: {shown}"
    return outcome
