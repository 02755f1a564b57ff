"""Simulate the loaders of many ranks in one process: check their epochs, and measure start-up and resources."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from tqdm import tqdm

from bench.epoch import batches_of_views
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, default_backend
from pipeline.sampler import Batch, BatchSampler
from shard.errors import InputError
from shard.fetch import OPEN_TARS, Fetcher
from shard.manifest import read_manifest

SPARE_FILES = 16  # file descriptors that a rank needs besides its tars
SPARE_MB = 1024  # memory that must stay available


@dataclass(frozen=True)
class EpochReport:
    """The outcome of checking some epochs.

    images: in total; batch_size: of each rank; steps: of the first epoch on rank 0; left_out: for each epoch, the
    number of images that no rank read; faults: descriptions of what is wrong.
    """

    ranks: int
    images: int
    batch_size: int
    steps: int
    left_out: tuple[int, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        omitted = " or ".join(f"{count:,}" for count in sorted(set(self.left_out)))
        outcome = "; ".join(f"FAULT: {fault}" for fault in self.faults) or (
            f"no image twice, {self.steps:,} steps on every rank, {omitted} omitted from each, less than a joint batch "
            f"of {self.ranks * self.batch_size:,}")  # fmt: skip
        return (f"{self.ranks} ranks × {self.batch_size} of {self.images:,} images, {len(self.left_out)} epochs: "
                f"{outcome}")  # fmt: skip


@dataclass(frozen=True)
class StartupReport:
    """The cost of starting the ranks one after another.

    seconds: until each rank's first batch. handles, threads, memory_mb: the most that all ranks together used.
    """

    maker: ViewBackend
    seconds: tuple[float, ...]
    handles: int
    threads: int
    memory_mb: float

    def __str__(self) -> str:
        ranks, (first, *others) = len(self.seconds), self.seconds
        later = (f", on each other rank after {statistics.median(others):.2f} s [{min(others):.2f}, {max(others):.2f}]"
                 if others else "")  # fmt: skip
        return (f"{self.maker}, {ranks} ranks started one after another: first batch on the first rank after "
                f"{first:.2f} s, including shared start-up{later}; at most {self.handles / ranks:.1f} file descriptors"
                f", {self.threads / ranks:.1f} threads and {self.memory_mb / ranks:,.0f} MB per rank")  # fmt: skip


def check_epochs(
    ranks: Sequence[Iterator[Batch]], images: int, batch_size: int, epochs: int,
    after_step: Callable[[], None] = lambda: None,
) -> EpochReport:  # fmt: skip
    """Read the first epochs of all ranks in lockstep, and count how often each image occurs.

    ranks: the batches of each rank, from epoch 0. after_step: called after each step of all ranks.
    """
    seen = np.zeros((epochs, images), np.int64)
    steps = np.zeros((epochs, len(ranks)), np.int64)
    odd_epochs = set[int]()
    limited = [takewhile(lambda batch: batch.epoch < epochs, rank) for rank in ranks]
    for joint in tqdm(zip_longest(*limited), desc="checked", unit=" steps", disable=None):
        for rank, batch in enumerate(joint):
            if batch is None:  # this rank has fewer steps than others
                continue
            steps[batch.epoch, rank] += 1
            np.add.at(seen[batch.epoch], batch.indices, 1)
            if len(batch.indices) != batch_size:
                odd_epochs.add(batch.epoch)
        after_step()
    faults = [f"epoch {epoch}: a batch whose size is not {batch_size}" for epoch in sorted(odd_epochs)]
    for epoch in range(epochs):
        found = _find_faults(seen[epoch], steps[epoch], batch_size * len(ranks))
        faults += [f"epoch {epoch}: {fault}" for fault in found]
    left_out = tuple(int(count) for count in (seen == 0).sum(axis=1))
    return EpochReport(len(ranks), images, batch_size, int(steps[0, 0]), left_out, tuple(faults))


def _find_faults(seen: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], joint_batch: int) -> Iterator[str]:
    """Check one epoch. seen: how often each image occurred, [images]; steps: of each rank, [ranks]."""
    if repeated := int((seen > 1).sum()):
        yield f"{repeated} images more than once"
    if steps.min() < steps.max():
        yield f"between {steps.min()} and {steps.max()} steps on a rank"
    if (omitted := int((seen == 0).sum())) >= joint_batch:
        yield f"{omitted} images omitted, a joint batch or more"


def check_epoch_order(shard_samples: tuple[int, ...], batch_size: int, ranks: int, epochs: int) -> EpochReport:
    """Check the sampler's epochs for shards of the given sizes. No image is read."""
    sampler = _sampler(shard_samples, batch_size, ranks)
    return check_epochs([replace(sampler, rank=rank).batches(0, 0) for rank in range(ranks)], sum(shard_samples),
                        batch_size, epochs)  # fmt: skip


def _sampler(shard_samples: tuple[int, ...], batch_size: int, ranks: int) -> BatchSampler:
    sampler = BatchSampler(shard_samples, batch_size, world=ranks)
    assert sampler.steps, sampler  # empty epochs would follow each other for ever
    return sampler


def run_ranks(
    folder: Path, batch_size: int, ranks: int, epochs: int, size: int
) -> tuple[EpochReport, StartupReport]:
    """Start the loaders of all ranks on real shards, one thread each, and check the batches that their views come from.

    The batch size is lowered if the shards have too few images. Raises InputError if there are fewer images than ranks,
    or too little memory or too few file descriptors.
    """
    manifest = read_manifest(folder)
    images, tars = manifest.images("train"), len(manifest.of_split("train"))
    if images < ranks:
        raise InputError(f"--simulate={ranks}: {folder} has {images} images in split 'train'; lower it to {images}")
    batch_size = min(batch_size, images // ranks)
    usage = _Usage()
    _allow_open_files(usage.open_files() + ranks * (min(tars, OPEN_TARS) + SPARE_FILES), ranks)
    backend: ViewBackend = "dali-fused" if default_backend() == "dali" else "torchvision"
    augmentation = Augmentation(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    sampler = _sampler(manifest.shard_sizes("train"), batch_size, ranks)
    started, seconds = list[Iterator[Batch]](), list[float]()
    for rank in tqdm(range(ranks), desc="started", unit=" ranks", disable=None):
        begun = time.perf_counter()
        batches = batches_of_views(backend, Fetcher(folder, manifest, "train"), replace(sampler, rank=rank),
                                   augmentation, torch.device("cpu"), workers=1)  # fmt: skip
        first = next(batches)
        seconds.append(time.perf_counter() - begun)
        started.append(chain([first], batches))
        usage.update()
        if (available := psutil.virtual_memory().available / 2**20) < SPARE_MB:
            raise InputError(f"--simulate={ranks}: {available:,.0f} MB of memory are left after {rank + 1} ranks; "
                             "lower it, or --batch-size")  # fmt: skip
    report = check_epochs(started, images, batch_size, epochs, usage.update)
    files, threads, memory_mb = usage.peak.tolist()
    return report, StartupReport(backend, tuple(seconds), int(files), int(threads), memory_mb)


class _Usage:
    """The peak use of file descriptors, threads and MB of memory, [3], above that at construction."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._baseline, self.peak = self._current(), np.zeros(3)

    def open_files(self) -> int:
        return int(self._process.num_fds())

    def update(self) -> None:
        np.maximum(self.peak, self._current() - self._baseline, out=self.peak)

    def _current(self) -> npt.NDArray[np.float64]:
        """Sum over this process and its descendants."""
        processes = (self._process, *self._process.children(recursive=True))
        used = [(one.num_fds(), one.num_threads(), one.memory_info().rss / 2**20) for one in processes]
        total: npt.NDArray[np.float64] = np.sum(used, axis=0)
        return total


def _allow_open_files(count: int, ranks: int) -> None:
    """Raise this process's limit of open files to `count` if it is lower: the default is meant for one rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard < count and hard != resource.RLIM_INFINITY:
        raise InputError(f"--simulate={ranks}: one process may need {count} file descriptors, and at most {hard} are "
                         "allowed; lower it, or raise the limit with ulimit -n")  # fmt: skip
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
