"""make gpu-check: everything that needs a GPU, in ten minutes at most and without a network, into docs/gpu.md.

In this order, so that a run that is cut short has what matters most: views of the GPU against those of the CPU, an fp16
run that is killed and resumed, bench.io, bench.step, the tests marked gpu, bench.memory.
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
from typing import Any

import torch

from bench.figures import describe_machine
from bench.rows import Setting, write_raw
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, has_dali, make_views
from shard.cli import check_numbers, run
from shard.errors import InputError
from shard.files import write_bytes
from shard.manifest import read_manifest
from shard.plain_json import without_nan
from train.checkpoint import list_checkpoints, load_checkpoint
from train.journal import SPEED, read_journal

DOCS = Path("docs")
IMAGES = 1500  # phantoms, if no shards are given
VIEWS_COMPARED = 64  # images; two views each
# Grey levels of 255 between a view made on the GPU and one made on the CPU. From raw images only the order of
# floating-point operations differs. nvJPEG and libjpeg-turbo also round differently: a level or so in a decoded
# pixel, which brightness and contrast can double; no JPEG standard asks for more.
MOST_FROM_RAW, MEAN_FROM_JPEG, P999_FROM_JPEG = 0.1, 0.5, 4.0


@dataclass
class Check:
    """One part of the page: what was run, how it ended, and what it printed or measured."""

    name: str
    command: str
    ok: bool
    seconds: float
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


def check(*, shards: Path | None = None, out: Path = DOCS, minutes: float = 10.0, on_cpu: bool = False) -> None:
    """Run everything that needs a GPU, and write OUT/gpu.md and OUT/gpu.json, anew after each part.

    --shards: JPEG shards of real radiographs; without them phantoms are made. --minutes: a part that does not end
    within its share of them is stopped, and the page says so. --on-cpu=true runs the same without a GPU, to test the
    check itself; it needs another --out.
    """
    check_numbers(minutes=(minutes, 0.1, 600))
    if on_cpu and out == DOCS:
        raise InputError(f"--on-cpu --out={out}: the page there is of a GPU; name another folder")
    if not torch.cuda.is_available() and not on_cpu:
        raise InputError("no GPU: PyTorch sees none here; run it where nvidia-smi shows one")
    if shards and read_manifest(shards).settings["encoding"] != "jpeg":
        raise InputError(f"--shards={shards}: raw images; name JPEG shards, from which raw ones are made too")
    until = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    machine, checks = describe_machine(), list[Check]()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        made = shards or _make_shards(Path(folder))
        for name, share, part in _parts(made, Path(folder), on_cpu):
            seconds = max(1.0, (until - time.monotonic()) * share)  # of what is left
            print(f"{name}, at most {seconds:.0f} s …", flush=True)
            checks.append(part(seconds))
            print(checks[-1].text, flush=True)
            content = {"machine": machine, "checks": [vars(check) for check in checks]}
            write_bytes(out / "gpu.json", (json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n").encode())
            write_bytes(out / "gpu.md", page(checks, machine).encode())
    print(f"{out / 'gpu.md'} and {out / 'gpu.json'} written")
    if failed := [check.name for check in checks if not check.ok]:
        raise InputError(f"{', '.join(failed)} failed or did not end in time; {out / 'gpu.md'} says how")


def _parts(shards: Path, place: Path, on_cpu: bool) -> list[tuple[str, float, Callable[[float], Check]]]:
    """Name of each part, its share of the time left, and what runs it in so many seconds."""
    small = ["--arch=resnet18", "--size=96"] if on_cpu else []
    return [
        ("views", 0.2, partial(_compare_views, shards, place)),
        ("killed and resumed", 0.2, partial(_kill_and_resume, shards, place / "run", on_cpu)),
        ("bench.io", 0.5, partial(_bench, "bench.io", [str(shards), "--rounds=3", "--seconds=1"], place / "io.json")),
        ("bench.step", 0.6, partial(_bench, "bench.step", [str(shards), "--rounds=3", "--seconds=2", *small],
                                    place / "step.json")),
        ("tests", 0.6, partial(_module, "tests", ["pytest", "-q", "-m", "gpu", "tests"])),
        ("bench.memory", 1.0, partial(_bench, "bench.memory", small, place / "memory.json")),
    ]  # fmt: skip


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
    """Run python -m WORDS, for so many seconds at most; whatever it started ends with it."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        text, errors = process.communicate(timeout=seconds)
        ok = process.returncode == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a bench's processes are suspended between turns: nothing gentler ends
        text, errors = process.communicate()
        ok, text = False, f"{text}\nstopped after {seconds:.0f} s"
    return Check(name, f"python -m {' '.join(words)}", ok, time.monotonic() - begun,
                 text if ok else f"{text}\n{errors[-3000:]}")  # fmt: skip


def _bench(name: str, words: list[str], figures: Path, seconds: float) -> Check:
    done = _module(name, [name, *words, f"--json={figures}"], seconds)
    if figures.exists():
        done.figures = json.loads(figures.read_text())
    return done


def _compare_views(shards: Path, place: Path, seconds: float) -> Check:
    """Both views of some images by the GPU's operators, or the CPU's copy of them, against the fused operator's."""
    begun, command = time.monotonic(), "make_views('dali-stock', …) against make_views('dali-fused', …)"
    if not has_dali():
        return Check("views", command, False, 0.0, "NVIDIA DALI is not installed")
    manifest = read_manifest(shards)
    augmentation = Augmentation(mean=manifest.pixel_mean, std=manifest.pixel_std)
    jpeg = Setting(shards, manifest, augmentation, VIEWS_COMPARED, 2)
    (place / "compared").mkdir()
    here, figures, text = "cuda" if torch.cuda.is_available() else "cpu", dict[str, float](), list[str]()
    for name, setting in (("raw", write_raw(jpeg, place / "compared")), ("jpeg", jpeg)):
        apart = (_views(setting, "dali-stock", here) - _views(setting, "dali-fused",
                                                              "cpu")).abs() * augmentation.std * 255
        found = {"largest": apart.max(), "p999": apart.flatten().kthvalue(int(0.999 * apart.numel())).values,
                 "mean": apart.mean()}  # fmt: skip
        figures |= {f"{name}_{figure}": float(value) for figure, value in found.items()}
        text.append(f"{2 * VIEWS_COMPARED} views of {name} images, grey levels of 255 apart: mean {found['mean']:.5f}, "
                    f"99.9th percentile {found['p999']:.4f}, largest {found['largest']:.4f}")  # fmt: skip
    ok = (figures["raw_largest"] <= MOST_FROM_RAW and figures["jpeg_mean"] <= MEAN_FROM_JPEG
          and figures["jpeg_p999"] <= P999_FROM_JPEG)  # fmt: skip
    return Check("views", command, ok, time.monotonic() - begun, "\n".join(text), figures)


def _views(setting: Setting, maker: ViewBackend, device: str) -> torch.Tensor:
    """Both views of the first batch, on the CPU."""
    made = make_views(maker, setting.fetcher(), setting.batches(), augmentation=setting.augmentation, seed=0,
                      device=torch.device(device), workers=setting.threads)  # fmt: skip
    return torch.stack(next(iter(made))).float().cpu()


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
