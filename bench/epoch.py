"""Make the views of whole epochs, check that no image comes twice, and measure what one rank reads and takes.

python -m bench.epoch SHARDS. The loader is that of python -m train, on any one of several ranks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch

from bench.output import prepare_output_path, save_results
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, has_dali, make_views
from pipeline.sampler import Batch, BatchSampler
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.cli import run
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.files import atomic_write
from shard.flags import SHARDS, Flag, check_numbers, validate_call
from shard.machine import cores
from shard.manifest import read_manifest
from shard.progress import Progress

Backend = Literal["auto", "dali-fused", "dali-stock", "torchvision"]


class CountingFetcher(Fetcher):
    """A fetcher that counts the bytes of the images that this process reads."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.image_bytes = 0
        self._count = threading.Lock()

    def read(self, number: int) -> bytes:
        """Read an image as Fetcher does."""
        content = super().read(number)
        with self._count:
            self.image_bytes += len(content)
        return content


@validate_call
def bench_epoch(
    shards: Annotated[Place, SHARDS], *,
    backend: Annotated[Backend, Flag("Where views are made: dali-fused on the CPU, dali-stock on the GPU, torchvision; "
                                     "auto is dali-fused if DALI is installed.", "views")] = "auto",
    size: Annotated[int, Flag("Side of a view in pixels.", "views", 32, 4096)] = 224,
    batch_size: Annotated[int, Flag("Images per batch of this rank.", "views", 1, 10**5)] = 64,
    threads: Annotated[int, Flag("Loader threads; 0 starts one per core.", "views", 0, 4096)] = 0,
    epochs: Annotated[int, Flag("Number of epochs.", "extent", 1, 10**5)] = 1,
    limit_steps: Annotated[int, Flag("Stop after this many batches of the first epoch, for a sample; 0 makes all of "
                                     "them.", "extent", 0, 10**9)] = 0,
    rank: Annotated[int, Flag("Rank whose batches to make, counted from 0.", "extent", 0, 10**5)] = 0,
    world: Annotated[int, Flag("Number of ranks.", "extent", 1, 10**5)] = 1,
    order: Annotated[Path | None, Flag("NumPy file to write the images of all batches to.", "output",
                                       metavar="FILE")] = None,
    json: Annotated[Path | None, Flag("JSON file to write the figures to.", "output", metavar="FILE")] = None,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Make both views of every training image, as python -m train does, and check that none comes twice.

    It prints for each epoch the images/s, what was read, from how many tars, and how long the first batch took. With
    --rank and --world it is one of several ranks, none of which needs the others.

        python -m bench.epoch shards
        python -m bench.epoch shards --rank=3 --world=64 --batch-size=32
    """
    folder = open_shards(shards, cache)
    manifest = read_manifest(folder)
    images = manifest.images("train")
    check_numbers(rank=(rank, 0, world - 1), batch_size=(batch_size, 1, max(1, images // world)))
    for path in (order, json):
        if path:
            prepare_output_path(path)
    chosen: ViewBackend = ("dali-fused" if has_dali() else "torchvision") if backend == "auto" else backend
    if chosen == "dali-stock" and not torch.cuda.is_available():
        raise InputError("--backend=dali-stock: makes views on a GPU, and PyTorch finds none; use dali-fused")
    sampler = BatchSampler(manifest.shard_sizes("train"), batch_size, rank=rank, world=world)
    fetcher = CountingFetcher(folder, manifest, "train")
    views = batches_of_views(
        chosen, fetcher, sampler, Augmentation(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std),
        torch.device("cuda" if chosen == "dali-stock" else "cpu"), threads or cores())  # fmt: skip
    steps, epochs = (min(limit_steps, sampler.steps), 1) if limit_steps else (sampler.steps, epochs)
    rows, seen = list[dict[str, Any]](), list[npt.NDArray[np.int64]]()
    with Progress("views", epochs * steps * batch_size) as progress:
        for epoch in range(epochs):
            figures, indices = _measure_epoch(views, fetcher, steps, progress, epoch * steps * batch_size)
            tars = np.searchsorted(np.cumsum(sampler.shard_samples), indices, side="right")
            rows.append({"epoch": epoch, "of": images, **figures, "tars": len(np.unique(tars))})
            seen.append(indices)
            print(_line(rows[-1], len(sampler.shard_samples)), flush=True)
    if order:
        with atomic_write(order) as file:
            np.save(file, np.stack(seen))
    if json:
        save_results(json, {"backend": chosen, "rank": rank, "world": world, "batch_size": batch_size, "size": size,
                            "open_files": psutil.Process().num_fds(), "epochs": rows})  # fmt: skip
    if twice := [row["epoch"] for row in rows if row["twice"]]:
        raise InputError(f"{shards}: epoch {twice[0]} showed images twice; this is an error of the loader, please "
                         "report it")  # fmt: skip


def _measure_epoch(
    views: Iterator[Batch], fetcher: CountingFetcher, steps: int, progress: Progress, done: int
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Make the views of an epoch; return its figures, and the images of its batches in order.

    first_batch_since_start_s: since this process was started. read_mb: all that this process and its workers read;
    images_mb: of that, the images, None if workers read them.
    """
    begun, cpu, read, image_bytes = time.perf_counter(), _cpu_s(), _read_mb(), fetcher.image_bytes
    parts = [next(views).indices]
    first_batch_s = time.perf_counter() - begun
    since_start_s = time.time() - psutil.Process().create_time()
    for batch in islice(views, steps - 1):
        parts.append(batch.indices)
        progress.show(done + len(parts) * len(batch.indices))
    seconds, indices = time.perf_counter() - begun, np.concatenate(parts)
    return {"images": len(indices), "twice": len(indices) - len(np.unique(indices)), "seconds": seconds,
            "images_per_s": len(indices) / seconds, "cpu_s": _cpu_s() - cpu, "first_batch_s": first_batch_s,
            "first_batch_since_start_s": since_start_s, "read_mb": _read_mb() - read,
            "images_mb": (fetcher.image_bytes - image_bytes) / 2**20 or None}, indices  # fmt: skip


def _line(row: dict[str, Any], tars: int) -> str:
    return (f"epoch {row['epoch']}: {row['images']:,} of {row['of']:,} images, {row['twice']} twice, "
            f"{row['seconds']:.1f} s, {row['images_per_s']:,.0f} images/s, first batch after "
            f"{row['first_batch_s']:.1f} s; read {row['read_mb']:,.0f} MB from {row['tars']} of {tars} tars")


def _read_mb() -> float:
    """Return the MB that this process and its workers have read, from a disk or the page cache."""
    own = psutil.Process()
    return sum(one.io_counters().read_chars for one in (own, *own.children(recursive=True))) / 2**20


def _cpu_s() -> float:
    own = psutil.Process()
    return float(sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True))))


def batches_of_views(
    backend: ViewBackend, fetcher: Fetcher, sampler: BatchSampler, augmentation: Augmentation, device: torch.device,
    workers: int,
) -> Iterator[Batch]:  # fmt: skip
    """Yield each batch of a rank, from epoch 0 on, once its views have been made."""
    pending = deque[Batch]()  # backends request batches ahead of the views they return

    def record(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            pending.append(batch)
            yield batch

    for view1, _ in make_views(backend, fetcher, record(sampler.batches(0, 0)), augmentation=augmentation,
                               seed=sampler.seed, device=device, workers=workers):  # fmt: skip
        batch = pending.popleft()
        assert len(view1) == len(batch.indices), (len(view1), batch)
        yield batch


if __name__ == "__main__":
    run("python -m bench.epoch", bench_epoch)
