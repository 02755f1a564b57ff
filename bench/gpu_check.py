"""make gpu-check: what a machine with a GPU is wanted for, in 8 minutes and without a network, into docs/gpu.md.

The tests marked gpu, the views of GPU and CPU side by side, bench.io, bench.step, bench.memory, and a short fp16 run
that is killed and goes on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe_machine
from pipeline.loader import Maker, has_dali, make_views
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from shard.cli import run
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.files import write_bytes
from shard.manifest import read_manifest
from train.checkpoint import list_checkpoints, load_checkpoint
from train.journal import SPEED, read_journal

BUDGET_S = 480.0
DOCS = Path("docs")
IMAGES = 1500  # phantoms, where no shards are given


@dataclass
class Check:
    """One part of the page: what was run, how it ended, and what it printed or measured."""

    name: str
    command: str
    ok: bool
    seconds: float
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


def check(*, shards: Path | None = None, out: Path = DOCS, on_cpu: bool = False) -> None:
    """Run everything that wants a GPU, and write OUT/gpu.md and OUT/gpu.json.

    --shards: real ones; phantoms are made without. What does not end within its share of 8 minutes is ended, and the
    page says so. --on-cpu=true runs the same without a GPU, to see that the check itself works, and wants another OUT.
    """
    if on_cpu and out == DOCS:
        raise InputError(f"--on-cpu --out={out}: a page there is of a GPU; name another folder")
    if not torch.cuda.is_available() and not on_cpu:
        raise InputError("no GPU: PyTorch sees none here; run it where nvidia-smi shows one")
    until = time.monotonic() + BUDGET_S
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        place = Path(folder)
        made = shards or _make_shards(place)
        small = ["--arch=resnet18", "--size=96"] if on_cpu else []
        parts: list[tuple[str, float, Callable[[float], Check]]] = [
            ("tests", 0.3, partial(_module, "tests", ["pytest", "-q", "-m", "gpu", "tests"])),
            ("views", 0.1, partial(_compare_views, made)),
            ("killed and resumed", 0.15, partial(_kill_and_resume, made, place / "run", on_cpu)),
            ("bench.io", 0.4, partial(_bench, "bench.io", [str(made), "--rounds=3", "--seconds=1"], place / "io.json")),
            ("bench.step", 0.6, partial(_bench, "bench.step", [str(made), "--rounds=3", "--seconds=2", *small],
                                        place / "step.json")),
            ("bench.memory", 1.0, partial(_bench, "bench.memory", small, place / "memory.json")),
        ]  # fmt: skip
        checks = []
        for name, share, part in parts:
            seconds = (until - time.monotonic()) * share  # of what is left
            print(f"{name}, at most {seconds:.0f} s …", flush=True)
            checks.append(part(seconds))
            print(checks[-1].text, flush=True)
    machine = describe_machine()
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "checks": [vars(check) for check in checks]}
    write_bytes(out / "gpu.json", (json.dumps(content, indent=1) + "\n").encode())
    write_bytes(out / "gpu.md", page(checks, machine).encode())
    print(f"{out / 'gpu.md'} and {out / 'gpu.json'} written")
    if failed := [check.name for check in checks if not check.ok]:
        raise InputError(f"{', '.join(failed)} failed or did not end in time; {out / 'gpu.md'} says how")


def page(checks: list[Check], machine: dict[str, str | int]) -> str:
    """The page as Markdown: what it was measured on, then each check with its command and its output."""
    shown = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    parts = [f"## {check.name}: {'ok' if check.ok else 'FAILED'}\n\n`{check.command}`, {check.seconds:.0f} s\n\n"
             f"```\n{check.text.strip()}\n```\n" for check in checks]  # fmt: skip
    title = "The check of a GPU, without one" if machine["gpu"] == "none" else "On a GPU"
    return f"# {title}\n\nWritten by `make gpu-check`.\n\n{shown}\n\n" + "\n".join(parts)


def _make_shards(place: Path) -> Path:
    for command in (["phantom", str(place / "phantoms"), f"--images={IMAGES}"],
                    ["build", str(place / "phantoms"), str(place / "shards"), "--size=256"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", "shard", *command], check=True)
    return place / "shards"


def _module(name: str, words: list[str], seconds: float) -> Check:
    """Run python -m WORDS, for so many seconds at most."""
    begun = time.monotonic()
    try:
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=seconds)
        ok, text = done.returncode == 0, done.stdout + ("" if done.returncode == 0 else done.stderr[-3000:])
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        ok, text = False, f"{said}\nended after {seconds:.0f} s"
    return Check(name, f"python -m {' '.join(words)}", ok, time.monotonic() - begun, text)


def _bench(name: str, words: list[str], figures: Path, seconds: float) -> Check:
    done = _module(name, [name, *words, f"--json={figures}"], seconds)
    if figures.exists():
        done.figures = json.loads(figures.read_text())
    return done


def _compare_views(shards: Path, seconds: float) -> Check:
    """Both views of 64 images by the GPU's operators, or the CPU's copy of them, against the fused operator's."""
    begun, command = time.monotonic(), "make_views('dali-stock', …) against make_views('dali-fused', …)"
    if not has_dali():
        return Check("views", command, False, 0.0, "NVIDIA DALI is not installed")
    manifest = read_manifest(shards)
    recipe = Recipe(mean=manifest.pixel_mean, std=manifest.pixel_std)
    sizes = tuple(shard.samples for shard in manifest.of_split("train"))

    def views(maker: Maker, device: str) -> torch.Tensor:
        fetcher, batches = Fetcher(shards, manifest, "train"), Plan(sizes, 64).batches(0, 0)
        made = make_views(maker, fetcher, batches, recipe=recipe, seed=0, device=torch.device(device), workers=2)
        return torch.stack(next(iter(made))).cpu()

    here = "cuda" if torch.cuda.is_available() else "cpu"
    apart = (views("dali-stock", here) - views("dali-fused", "cpu")).abs() * recipe.std * 255
    figures = {"largest": float(apart.max()), "mean": float(apart.mean())}
    text = f"128 views: at most {figures['largest']:.4f} of 255 grey levels apart, {figures['mean']:.5f} on average"
    return Check("views", command, figures["largest"] < 1.0, time.monotonic() - begun, text, figures)


def _kill_and_resume(shards: Path, out: Path, on_cpu: bool, seconds: float) -> Check:
    """A run of two epochs killed with -9 in its first, and started again."""
    words = ["train", "--dali", f"--shards={shards}", f"--out={out}", "--arch=resnet18", "--size=96", "--epochs=2",
             "--lr=1e-3", "--log-every=2", "--checkpoint-minutes=0.02", "--online-every=0",
             *([] if on_cpu else ["--precision=fp16"])]  # fmt: skip
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and time.monotonic() - begun < seconds / 2 and not list_checkpoints(out):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stood = max((line["step"] for line in read_journal(out, SPEED)), default=0)
    done = _module("killed and resumed", words, max(1.0, seconds - (time.monotonic() - begun)))
    losses = [line["loss"] for line in read_journal(out) if line["kind"] == "epoch"]
    done.ok = done.ok and "resuming from" in done.text and len(losses) == 2 and losses[1] < losses[0]
    if done.ok:
        state = load_checkpoint(list_checkpoints(out)[0])
        done.figures = {"killed_after_step": stood, "steps": state["step"], "losses": losses,
                        "precision": state["config"]["precision"]}  # fmt: skip
    done.text += f"killed -9 after step {stood}; losses of the epochs: {', '.join(f'{loss:.4f}' for loss in losses)}"
    return done


if __name__ == "__main__":
    run("python -m bench.gpu_check", check)
