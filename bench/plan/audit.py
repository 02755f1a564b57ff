"""The loader of many ranks in one process: are its epochs whole, how soon does it start, which handles does it hold?"""

from __future__ import annotations

import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from tqdm import tqdm

from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, default_backend, make_views
from pipeline.sampler import Batch, BatchSampler
from shard.errors import InputError
from shard.fetch import OPEN_TARS, Fetcher
from shard.manifest import read_manifest

SPARE_HANDLES = 16  # a rank's, beside its tars
SPARE_MB = 1024  # that must be left to the machine


@dataclass(frozen=True)
class Audit:
    """Some epochs over ranks. images: that there are; batch_size: of a rank; steps: of an epoch on the first; left_out:
    how many images no rank had, of each epoch; faults: what is wrong, in words."""

    ranks: int
    images: int
    batch_size: int
    steps: int
    left_out: tuple[int, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        left = " or ".join(f"{count:,}" for count in sorted(set(self.left_out)))
        said = "; ".join(f"FAULT: {fault}" for fault in self.faults) or (
            f"no image twice, {self.steps:,} steps on every rank, {left} left out of each, less than a joint batch of "
            f"{self.ranks * self.batch_size:,}")  # fmt: skip
        return f"{self.ranks} ranks × {self.batch_size} of {self.images:,} images, {len(self.left_out)} epochs: {said}"


@dataclass(frozen=True)
class Starts:
    """Ranks that were started one after another: seconds until each had its first batch; file handles, threads and MB
    of memory that all of them held at the most, those of the process before taken off."""

    maker: ViewBackend
    seconds: tuple[float, ...]
    handles: int
    threads: int
    memory_mb: float

    def __str__(self) -> str:
        ranks, (first, *others) = len(self.seconds), self.seconds
        later = (f", of each other after {statistics.median(others):.2f} s [{min(others):.2f}, {max(others):.2f}]"
                 if others else "")  # fmt: skip
        return (f"{self.maker}, {ranks} ranks started one after another: the first batch of the first after {first:.2f}"
                f" s, with what all share{later}; at the most {self.handles / ranks:.1f} file handles, "
                f"{self.threads / ranks:.1f} threads and {self.memory_mb / ranks:,.0f} MB a rank")  # fmt: skip


def audit(
    ranks: Sequence[Iterator[Batch]], images: int, batch_size: int, epochs: int, look: Callable[[], None] = lambda: None
) -> Audit:  # fmt: skip
    """Go through the first epochs of all ranks, a step of each in turn, and count who had which image.

    ranks: each rank's batches, from epoch 0 on. look: called after each step of all.
    """
    seen = np.zeros((epochs, images), np.int64)
    steps = np.zeros((epochs, len(ranks)), np.int64)
    odd = set[int]()
    own = [takewhile(lambda batch: batch.epoch < epochs, rank) for rank in ranks]
    for joint in tqdm(zip_longest(*own), desc="audited", unit=" steps", disable=None):
        for rank, batch in enumerate(joint):
            if batch is None:  # it has ended before others
                continue
            steps[batch.epoch, rank] += 1
            np.add.at(seen[batch.epoch], batch.indices, 1)
            if len(batch.indices) != batch_size:
                odd.add(batch.epoch)
        look()
    faults = [f"epoch {epoch}: a batch that is not of {batch_size}" for epoch in sorted(odd)]
    for epoch in range(epochs):
        faults += [f"epoch {epoch}: {fault}" for fault in _faults(seen[epoch], steps[epoch], batch_size * len(ranks))]
    left_out = tuple(int(left) for left in (seen == 0).sum(axis=1))
    return Audit(len(ranks), images, batch_size, int(steps[0, 0]), left_out, tuple(faults))


def _faults(seen: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], joint: int) -> Iterator[str]:
    """seen: [images] how often each was had in an epoch; steps: [ranks]; joint: the images of a step of all."""
    if twice := int((seen > 1).sum()):
        yield f"{twice} images more than once"
    if steps.min() < steps.max():
        yield f"from {steps.min()} to {steps.max()} steps on a rank"
    if (left := int((seen == 0).sum())) >= joint:
        yield f"{left} images left out, a joint batch or more"


def audit_plan(shard_samples: tuple[int, ...], batch_size: int, ranks: int, epochs: int) -> Audit:
    """The same of the plan alone, for shards of so many images: nothing is read."""
    plan = BatchSampler(shard_samples, batch_size, world=ranks)
    assert plan.steps, plan  # or its epochs would follow one another without end
    return audit([replace(plan, rank=rank).batches(0, 0) for rank in range(ranks)], sum(shard_samples), batch_size,
                 epochs)  # fmt: skip


def run_ranks(folder: Path, batch_size: int, ranks: int, epochs: int, size: int) -> tuple[Audit, Starts]:
    """Start the loaders of all ranks here, on real shards, a thread each, and go through some epochs of views.

    What is audited are the batches that views came of. Fewer images a rank where the shards have too few. Raises
    InputError where there are fewer images than ranks, or too little memory, or too few file handles.
    """
    manifest = read_manifest(folder)
    images, tars = manifest.images("train"), len(manifest.of_split("train"))
    if images < ranks:
        raise InputError(f"--simulate={ranks}: {folder} has {images} images in split 'train'; lower it to {images}")
    batch_size = min(batch_size, images // ranks)
    process = psutil.Process()
    _allow_handles(process.num_fds() + ranks * (min(tars, OPEN_TARS) + SPARE_HANDLES), ranks)
    maker: ViewBackend = "dali-fused" if default_backend() == "dali" else "torchvision"
    augmentation = Augmentation(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    plan = BatchSampler(tuple(shard.samples for shard in manifest.of_split("train")), batch_size, world=ranks)
    assert plan.steps, plan
    before, most = _held(process), np.zeros(3)

    def look() -> None:
        np.maximum(most, _held(process) - before, out=most)

    started, seconds = list[Iterator[Batch]](), list[float]()
    for rank in tqdm(range(ranks), desc="started", unit=" ranks", disable=None):
        begun = time.perf_counter()
        batches = _with_views(maker, Fetcher(folder, manifest, "train"), replace(plan, rank=rank), augmentation)
        first = next(batches)
        seconds.append(time.perf_counter() - begun)
        started.append(chain([first], batches))
        look()
        if (left := psutil.virtual_memory().available / 2**20) < SPARE_MB:
            raise InputError(f"--simulate={ranks}: {left:,.0f} MB of memory are left after {rank + 1} ranks; lower it, "
                             "or --batch-size")  # fmt: skip
    found = audit(started, images, batch_size, epochs, look)
    handles, threads, memory = most.tolist()
    return found, Starts(maker, tuple(seconds), int(handles), int(threads), memory)


def _with_views(maker: ViewBackend, fetcher: Fetcher, plan: BatchSampler,
                augmentation: Augmentation) -> Iterator[Batch]:
    """A rank's batches, each once its views are made."""
    asked = deque[Batch]()  # makers are ahead of what they have given

    def note(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            asked.append(batch)
            yield batch

    for view1, _ in make_views(maker, fetcher, note(plan.batches(0, 0)), augmentation=augmentation, seed=plan.seed,
                               device=torch.device("cpu"), workers=1):  # fmt: skip
        batch = asked.popleft()
        assert len(view1) == len(batch.indices), (len(view1), batch)
        yield batch


def _held(process: psutil.Process) -> npt.NDArray[np.float64]:
    """File handles, threads and MB of memory of this process and those that it started, [3]."""
    held = [(one.num_fds(), one.num_threads(), one.memory_info().rss / 2**20)
            for one in (process, *process.children(recursive=True))]  # fmt: skip
    total: npt.NDArray[np.float64] = np.sum(held, axis=0)
    return total


def _allow_handles(wanted: int, ranks: int) -> None:
    """Raise this process's limit of open files where it is below `wanted`: by default it is meant for one rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard < wanted and hard != resource.RLIM_INFINITY:
        raise InputError(f"--simulate={ranks}: in one process that may take {wanted} file handles, and no more than "
                         f"{hard} are allowed; lower it, or raise them with ulimit -n")  # fmt: skip
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
