"""Run every step on a synthetic archive as large as CheXpert, and measure each: python -m bench.archive (make archive).

The archive has CheXpert's numbers of images, studies and patients, and complete tables, but few different pictures, so
that their files are in the page cache. Every step runs as a command in a process of its own.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from bench.archive import sharding, training, views
from bench.archive.command import adopt_orphans
from bench.archive.folders import Archive, Result
from bench.archive.page import format_table, write_section
from bench.archive.tree import LEAST_IMAGES
from bench.output import CHEXPERT_IMAGES, prepare_output_path, save_results
from shard.errors import PARSE_ERRORS, InputError
from shard.files import locked
from shard.flags import Flag, validate_call
from shard.machine import commit

SETTINGS = ("images", "parts", "ranks")  # a run that is continued must agree in them


def list_steps() -> dict[str, Callable[[Archive], Result]]:
    """Return the steps in their order: name → what runs it."""
    return {
        "source": sharding.write_source, "build": sharding.build_whole, "build-parts": sharding.build_in_parts,
        "verify-quick": sharding.verify_quickly, "verify": sharding.verify_whole, "info": sharding.describe,
        **views.backends(), "train": training.train, "resume": training.resume, "export": training.export,
        "report": training.report, "ranks": views.run_ranks,
    }  # fmt: skip


@validate_call
def bench_archive(
    *,
    images: Annotated[int, Flag("Images of the archive; by default CheXpert's.", low=LEAST_IMAGES,
                                high=10**6)] = CHEXPERT_IMAGES,
    out: Annotated[Path, Flag("Folder for the archive, the shards, the run and the report.",
                              metavar="DIR")] = Path("out/archive"),
    steps: Annotated[tuple[str, ...], Flag("Steps to run, by the names in the table; each needs those before it.",
                                           metavar="NAME,…", default="all")] = (),
    parts: Annotated[int, Flag("Parts of the build in parts, three of which are killed.", low=1, high=1000)] = 16,
    ranks: Annotated[int, Flag("Ranks whose loaders run in processes of their own.", low=1, high=4096)] = 64,
    at_once: Annotated[int, Flag("How many ranks run at the same time.", low=1, high=4096)] = 10,
    report_minutes: Annotated[float, Flag("Minutes after which the report is stopped.", low=0.01, high=10**4)] = 10.0,
    json: Annotated[Path | None, Flag("JSON file to write the figures to.", metavar="FILE",
                                      default="OUT/archive.json")] = None,
    page: Annotated[Path | None, Flag("Markdown file whose section on the archive is written anew.",
                                      metavar="FILE")] = None,
) -> None:  # fmt: skip
    """Run and measure every step on a synthetic archive of CheXpert's size, layout and tables.

    It builds shards at once and in parts of which three are killed, verifies them, makes the views of every image,
    trains, resumes a killed run, writes a report, exports, and runs the loaders of many ranks. The same command goes on
    with the steps that are missing in the JSON file. docs/performance.md has the figures.

        python -m bench.archive --images=5000 --out=out/small
        python -m bench.archive --page=docs/performance.md
    """
    json = json or out / "archive.json"
    archive = Archive(out, images, parts, ranks, at_once, report_minutes)
    available = list_steps()
    if unknown := [name for name in steps if name not in available]:
        raise InputError(f"--steps={','.join(steps)}: no step {unknown[0]!r} here; available: {', '.join(available)}")
    content = _read_earlier(json, {name: getattr(archive, name) for name in SETTINGS})
    for path in (json, page):
        if path:
            prepare_output_path(path)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "archive"), adopt_orphans():
        for name, step in available.items():
            done = {row["name"] for row in content["steps"]}
            if name in done or (steps and name not in steps):
                continue
            print(f"{name} …", flush=True)
            begun = time.perf_counter()
            result = step(archive)
            row = summarise_step(name, result, time.perf_counter() - begun)
            content["steps"] = sorted([*content["steps"], row], key=lambda one: list(available).index(one["name"]))
            content["machine"] = save_results(json, {key: value for key, value in content.items() if key != "machine"})
            print(format_table([row], header=False), flush=True)
    print("\n" + format_table(content["steps"]))
    print(f"{json} written")
    if page and content["steps"]:
        write_section(page, content)
        print(f"{page} written")


def summarise_step(name: str, result: Result, elapsed: float) -> dict[str, Any]:
    """Return the row of a step: the sums over its commands of times and MB, and their largest memory and open files.

    elapsed: seconds of the step, with its preparations and comparisons.
    """
    costs = result.costs
    seconds = result.seconds or sum(cost.seconds for cost in costs)
    return {
        "name": name, "commit": commit(), "images": result.images, "seconds": seconds, "elapsed_s": elapsed,
        "images_per_s": result.images / seconds if result.images and seconds else None,
        "cpu_s": sum(cost.cpu_s for cost in costs), "peak_mb": max(cost.peak_mb for cost in costs),
        "files": max(cost.files for cost in costs), "read_mb": sum(cost.read_mb for cost in costs),
        "from_disk_mb": sum(cost.from_disk_mb for cost in costs), "written_mb": sum(cost.written_mb for cost in costs),
        "checked": result.checked, "figures": result.figures, "commands": [asdict(cost) for cost in costs],
    }  # fmt: skip


def _read_earlier(path: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Read the steps that an earlier command measured. Raises InputError if it had other settings."""
    if not path.exists():
        return {"settings": settings, "steps": []}
    try:
        content: dict[str, Any] = json_module.loads(path.read_text())
        found = content["settings"]
        names = [row["name"] for row in content["steps"]]
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not written by python -m bench.archive ({type(error).__name__}: {error}); remove "
                         "it, or name another file as --json") from None  # fmt: skip
    if found != settings or len(set(names)) != len(names):
        differing = ", ".join(f"--{name}={found.get(name)}" for name in settings if found.get(name) != settings[name])
        raise InputError(f"{path}: its steps were measured with {differing}; give the same, or another --out")
    return content


