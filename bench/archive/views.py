"""The steps that make views: an epoch by each backend, and the epochs of many ranks."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.archive.command import Cost
from bench.archive.folders import Archive, Result
from bench.output import spread
from pipeline.loader import has_dali
from shard.errors import InputError
from shard.manifest import read_manifest

BATCH, RANK_BATCH = 64, 32
SAMPLE_STEPS = 50  # of torchvision, which would take an hour for an epoch


def views_of_all(archive: Archive) -> Result:
    """Make the views of every image, by the loader's default."""
    return _epoch(archive, archive.shards, "default")


def views_on_gpu(archive: Archive) -> Result:
    """Make the views of every image on the GPU."""
    return _epoch(archive, archive.shards, "gpu", "--backend=dali-stock")


def views_by_torchvision(archive: Archive) -> Result:
    """Make the views of a sample by torchvision."""
    return _epoch(archive, archive.shards, "torchvision", "--backend=torchvision", f"--limit-steps={SAMPLE_STEPS}")


def views_of_raw(archive: Archive) -> Result:
    """Build raw shards of a smaller archive, and make its views."""
    raw = archive.out / "raw"
    built = archive.run("shard", "build", str(archive.out / "sample"), str(raw), "--encoding=raw",
                        f"--shard-size={archive.shard_size}", log="raw-build")  # fmt: skip
    made = _epoch(archive, raw, "raw")
    shutil.rmtree(raw)
    checked = f"{made.checked}; building these shards took {built.seconds:.0f} s"
    return Result([built, *made.costs], made.images, checked, made.figures, seconds=made.costs[0].seconds)


def backends() -> dict[str, Callable[[Archive], Result]]:
    """Return the steps that make views here: name → step."""
    steps: dict[str, Callable[[Archive], Result]] = {"views": views_of_all}
    if has_dali() and torch.cuda.is_available():
        steps["views-gpu"] = views_on_gpu
    if has_dali():  # else torchvision is the default, for raw images too
        steps |= {"views-raw": views_of_raw, "views-torchvision": views_by_torchvision}
    return steps


def _epoch(archive: Archive, shards: Path, name: str, *words: str) -> Result:
    figures = archive.out / f"epoch-{name}.json"
    batch = min(BATCH, read_manifest(shards).images("train"))
    cost = archive.run("bench.epoch", str(shards), f"--batch-size={batch}", f"--json={figures}", *words,
                       log=f"epoch-{name}")  # fmt: skip
    content = json.loads(figures.read_text())
    (row,) = content["epochs"]
    left_out = row["of"] - row["images"]
    extent = "no image twice" if row["twice"] == 0 else f"{row['twice']} images twice"
    if not any(word.startswith("--limit") for word in words):
        extent = f"every image once, but the {left_out} of an incomplete last batch" if not row["twice"] else extent
    return Result([cost], row["images"], f"{content['backend']}: {row['images_per_s']:,.0f} images/s, {extent}; the "
                  f"first batch {row['first_batch_since_start_s']:.1f} s after the command began", row)  # fmt: skip


def run_ranks(archive: Archive) -> Result:
    """Run two epochs of every rank in a process of its own, and join their images."""
    ranks = min(archive.ranks, archive.training_images)
    batch = max(1, min(RANK_BATCH, archive.training_images // ranks))
    folder = archive.out / "ranks"
    folder.mkdir(exist_ok=True)

    def run_rank(rank: int) -> Cost:
        return archive.run("bench.epoch", str(archive.shards), f"--rank={rank}", f"--world={ranks}", "--epochs=2",
                           f"--batch-size={batch}", "--threads=1", f"--order={folder / f'{rank}.npy'}",
                           f"--json={folder / f'{rank}.json'}", log=f"rank-{rank}")  # fmt: skip

    begun = time.perf_counter()
    with ThreadPoolExecutor(archive.at_once) as pool:
        costs = list(pool.map(run_rank, range(ranks)))
    seconds = time.perf_counter() - begun
    rows = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    left_out = join_epochs([np.load(folder / f"{rank}.npy") for rank in range(ranks)], archive.training_images, batch)
    figures = summarise_ranks(rows, costs)
    shutil.rmtree(folder)
    first, second = figures["epochs"]
    return Result(costs, 2 * ranks * batch * (archive.training_images // (ranks * batch)),
                  f"{ranks} ranks × {batch} images, {archive.at_once} at a time: together every image once an epoch, "
                  f"but {left_out} of an incomplete joint batch; a rank reads {first['read_mb']['median']:,.0f} MB in "
                  f"the first epoch, {second['read_mb']['median']:,.0f} in the second, of which "
                  f"{second['images_mb']['median']:,.0f} are its images",
                  {"ranks": ranks, "at_once": archive.at_once, "batch_size": batch, **figures}, seconds)  # fmt: skip


def join_epochs(orders: list[Any], images: int, batch: int) -> int:
    """Check the images of all ranks, [epochs, steps · B] each, and return how many no rank showed in an epoch.

    Raises InputError if an image was shown twice in an epoch, or a joint batch or more was left out.
    """
    left_out = 0
    for epoch, joint in enumerate(np.concatenate(orders, axis=1)):
        counts = np.bincount(joint, minlength=images)
        left_out = int((counts == 0).sum())
        if counts.max() > 1 or left_out >= batch * len(orders):
            raise InputError(f"epoch {epoch}: {int((counts > 1).sum())} images were shown twice and {left_out} not at "
                             f"all by {len(orders)} ranks; this is an error of the loader: please report it")
    return left_out


def summarise_ranks(rows: list[dict[str, Any]], costs: list[Cost]) -> dict[str, Any]:
    """Summarise the figures of all ranks: median, least and most."""
    names = ("first_batch_s", "first_batch_since_start_s", "read_mb", "images_mb", "tars", "cpu_s", "seconds")
    epochs = [{name: spread([row["epochs"][epoch][name] or 0.0 for row in rows]) for name in names}
              for epoch in range(len(rows[0]["epochs"]))]  # fmt: skip
    return {"open_files": spread([row["open_files"] for row in rows]),
            "peak_mb": spread([cost.peak_mb for cost in costs]), "epochs": epochs}  # fmt: skip
