"""Run everything that needs a GPU in ten minutes and without a network, and write docs/gpu.md (make gpu-check).

The most important parts come first, in case the time runs out: GPU views against CPU views, an fp16 run that is killed
and resumed, bench.io, bench.step, the tests marked gpu, bench.memory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from bench.output import describe_machine, to_json
from bench.rows import LoaderSettings, write_raw_copy
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, has_dali, make_views
from shard.cli import run
from shard.errors import InputError
from shard.files import write_bytes
from shard.flags import Flag, validate_call
from shard.manifest import read_manifest
from train.checkpoint import list_checkpoints, load_checkpoint
from train.journal import SPEED, read_journal
from train.usable_gpu import explain_missing_gpu

DOCS = Path("docs")
PHANTOM_IMAGES = 1500
COMPARED_IMAGES = 64  # two views each
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


@validate_call
def check(
    *,
    shards: Annotated[Path | None, Flag("Folder of JPEG shards of real radiographs.", metavar="DIR",
                                        default="phantoms")] = None,
    out: Annotated[Path, Flag("Folder to write gpu.md and gpu.json to.", metavar="DIR")] = DOCS,
    minutes: Annotated[float, Flag("Minutes for all parts. A part that exceeds its share is stopped.",
                                   low=0.1, high=600)] = 10.0,
    on_cpu: Annotated[bool, Flag("Run without a GPU, to test the check itself. It needs another --out.")] = False,
) -> None:  # fmt: skip
    """Run everything that needs a GPU, and write a page about it.

    The page is written again after each part, so that an interrupted check leaves what it measured.

        python -m bench.gpu_check --shards=shards
    """
    if on_cpu and out == DOCS:
        raise InputError(f"--on-cpu --out={out}: the page there describes a GPU; name another folder")
    if not torch.cuda.is_available() and not on_cpu:
        raise InputError(f"no GPU: PyTorch finds none: {explain_missing_gpu()}")
    if shards and read_manifest(shards).settings["encoding"] != "jpeg":
        raise InputError(f"--shards={shards}: contains raw images; give JPEG shards, of which a raw copy is made")
    until = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    machine, checks = describe_machine(), list[Check]()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        jpeg_shards = shards or _build_phantom_shards(Path(folder))
        for name, share, part in _parts(jpeg_shards, Path(folder), on_cpu):
            seconds = max(1.0, (until - time.monotonic()) * share)
            print(f"{name}, at most {seconds:.0f} s …", flush=True)
            checks.append(part(seconds))
            print(checks[-1].text, flush=True)
            content = {"machine": machine, "checks": [vars(check) for check in checks]}
            write_bytes(out / "gpu.json", to_json(content))
            write_bytes(out / "gpu.md", render_page(checks, machine).encode())
    print(f"{out / 'gpu.md'} and {out / 'gpu.json'} written")
    if failed := [check.name for check in checks if not check.ok]:
        raise InputError(f"{', '.join(failed)} failed or did not end in time; see {out / 'gpu.md'}")


def _parts(shards: Path, folder: Path, on_cpu: bool) -> list[tuple[str, float, Callable[[float], Check]]]:
    """List the parts: name, share of the remaining time, and a function that runs it within some seconds."""
    small = ["--arch=resnet18", "--size=96"] if on_cpu else []
    # Each row starts a process, which takes 10 to 20 s on a machine that has just booted: no time for all baselines.
    rows = [] if on_cpu else ["--backends=dali-fused,dali-gpu,dali-fused-to-gpu"]
    return [
        ("views", 0.2, partial(_compare_views, shards, folder)),
        ("killed and resumed", 0.2, partial(_kill_and_resume, shards, folder / "run", on_cpu)),
        ("bench.io", 0.5, partial(_run_bench, "bench.io", [str(shards), "--rounds=3", "--seconds=1", *rows],
                                  folder / "io.json")),
        ("bench.step", 0.6, partial(_run_bench, "bench.step", [str(shards), "--rounds=3", "--seconds=4", *small],
                                    folder / "step.json")),
        ("tests", 0.6, partial(_run_module, "tests", ["pytest", "-q", "-m", "gpu", "tests"])),
        ("bench.memory", 1.0, partial(_run_bench, "bench.memory", small, folder / "memory.json")),
    ]  # fmt: skip


def render_page(checks: list[Check], machine: dict[str, str | int]) -> str:
    """Render the page in Markdown: the machine, then each check with its command and output."""
    properties = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    parts = [f"## {check.name}: {'ok' if check.ok else 'FAILED'}\n\n`{check.command}`, {check.seconds:.0f} s\n\n"
             f"```\n{check.text.strip()}\n```\n" for check in checks]  # fmt: skip
    title = "The GPU check, run without a GPU" if machine["gpu"] == "none" else "On a GPU"
    return f"# {title}\n\nWritten by `make gpu-check`.\n\n{properties}\n\n" + "\n".join(parts)


def _build_phantom_shards(folder: Path) -> Path:
    for command in (["phantom", str(folder / "phantoms"), f"--images={PHANTOM_IMAGES}"],
                    ["build", str(folder / "phantoms"), str(folder / "shards"), "--size=256"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", "shard", *command], check=True)
    return folder / "shards"


def _run_module(name: str, words: list[str], seconds: float) -> Check:
    """Run python -m WORDS for at most some seconds, then kill it and all its children."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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


if __name__ == "__main__":
    run("python -m bench.gpu_check", check)
