"""Run everything that needs a GPU in ten minutes and without a network, and write out/gpu/gpu.md (make gpu-check).

The most important parts come first, in case the time runs out: GPU views against CPU views, an fp16 run that is killed
and resumed, bench.io, bench.step, a run with --views=auto, the tests marked gpu, bench.memory, and --compile. A part
that is stopped leaves what it measured until then.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch

from bench.gpu_parts import Check, list_parts
from bench.output import describe_machine, to_json
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.cli import run
from shard.errors import InputError
from shard.files import write_bytes
from shard.flags import Flag, validate_call
from shard.manifest import read_manifest
from train.usable_gpu import explain_missing_gpu

OUT = Path("out/gpu")
PHANTOM_IMAGES = 1500
LEAST_S = 5.0  # in less, no part can do anything


@validate_call
def check(
    *,
    shards: Annotated[Place | None, Flag("Folder of JPEG shards of real radiographs.", metavar="DIR",
                                        default="phantoms")] = None,
    out: Annotated[Path, Flag("Folder to write gpu.md and gpu.json to.", metavar="DIR")] = OUT,
    minutes: Annotated[float, Flag("Minutes for all parts. A part that exceeds its share is stopped.",
                                   low=0.1, high=600)] = 10.0,
    on_cpu: Annotated[bool, Flag("Run without a GPU, to test the check itself. It needs another --out.")] = False,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Run everything that needs a GPU, and write a page about it.

    The page is written again after each part, so that an interrupted check leaves what it measured.

        python -m bench.gpu_check --shards=shards
    """
    if on_cpu and out == OUT:
        raise InputError(f"--on-cpu --out={out}: the page there describes a GPU; name another folder")
    if not torch.cuda.is_available() and not on_cpu:
        raise InputError(f"no GPU: PyTorch finds none: {explain_missing_gpu()}")
    given = open_shards(shards, cache, complete=True) if shards else None
    if given and read_manifest(given).settings["encoding"] != "jpeg":
        raise InputError(f"--shards={shards}: contains raw images; give JPEG shards, of which a raw copy is made")
    until = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    machine, checks = describe_machine(), list[Check]()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        jpeg_shards = given or _build_phantom_shards(Path(folder))
        for name, share, part in list_parts(jpeg_shards, Path(folder), on_cpu, minutes):
            seconds = (until - time.monotonic()) * share
            print(f"{name}, at most {max(seconds, 0):.0f} s …", flush=True)
            checks.append(_run_part(name, part, seconds))
            print(checks[-1].text, flush=True)
            content = {"machine": machine, "checks": [vars(check) for check in checks]}
            write_bytes(out / "gpu.json", to_json(content))
            write_bytes(out / "gpu.md", render_page(checks, machine).encode())
    print(f"{out / 'gpu.md'} and {out / 'gpu.json'} written")
    if failed := [check.name for check in checks if not check.ok]:
        raise InputError(f"{', '.join(failed)} failed or did not end in time; see {out / 'gpu.md'}")


def _run_part(name: str, part: Callable[[float], Check], seconds: float) -> Check:
    """Run a part for at most some seconds. An error in it is recorded as its outcome, so that the others still run."""
    begun = time.monotonic()
    if seconds < LEAST_S:
        return Check(name, "not run", False, 0.0, "no time was left")
    try:
        outcome = part(seconds)
    except Exception as error:
        return Check(name, "stopped by an error", False, time.monotonic() - begun, f"{type(error).__name__}: {error}")
    outcome.name = name
    return outcome


def render_page(checks: list[Check], machine: dict[str, str | int]) -> str:
    """Render the page in Markdown: the machine, then each check with its command and output."""
    properties = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    parts = [f"## {check.name}: {'ok' if check.ok else 'FAILED'}\n\n`{check.command}`, {check.seconds:.0f} s\n\n"
             f"```\n{check.text.strip()}\n```\n" for check in checks]  # fmt: skip
    title = "The GPU check, run without a GPU" if machine["gpu"] == "none" else "On a GPU"
    about = "Written by `make gpu-check`. [gpu-readiness.md](gpu-readiness.md) says what is tested without a GPU."
    return f"# {title}\n\n{about}\n\n{properties}\n\n" + "\n".join(parts)


def _build_phantom_shards(folder: Path) -> Path:
    for command in (["phantom", str(folder / "phantoms"), f"--images={PHANTOM_IMAGES}"],
                    ["build", str(folder / "phantoms"), str(folder / "shards"), "--size=256"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", "shard", *command], check=True)
    return folder / "shards"


if __name__ == "__main__":
    run("python -m bench.gpu_check", check)
