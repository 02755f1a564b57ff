"""The rows of bench.io: every loader that can be measured here. To add a loader, add it to JPEG_LOADERS."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from bench import baselines
from bench.process import LoaderMeasurement, MeasuredProcess
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, decode_batches, has_dali, make_views
from pipeline.prefetch import prefetch
from pipeline.sampler import Batch, BatchSampler
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.machine import version_of
from shard.manifest import Manifest, read_manifest
from shard.write import build

RAW_COPY_IMAGES = 2000  # at most: a raw copy of 224,316 images would take 23 GB
LIMITS = ("decode", "decode-gpu")  # measured whichever rows --backends selects


@dataclass(frozen=True)
class LoaderSettings:
    """The inputs of every loader."""

    shards: Path
    manifest: Manifest
    augmentation: Augmentation
    batch_size: int
    threads: int

    def fetcher(self) -> Fetcher:
        """Open the training images."""
        return Fetcher(self.shards, self.manifest, "train")

    def batches(self) -> Iterator[Batch]:
        """Iterate over the training batches of epoch after epoch."""
        return BatchSampler(self.manifest.shard_sizes("train"), self.batch_size).batches(0, 0)


@dataclass(frozen=True)
class Loader:
    """A loader to measure.

    start: returns an endless iterator over the number of images in each batch. It is called in a spawned process and
    must be picklable: a function of a module, or a partial of one. limit: the row that bounds its rate. requires: any
    of "dali", "opencv" and "gpu". raw_copy: whether it reads a copy of the images in raw shards.
    """

    start: Callable[[LoaderSettings], Iterator[int]]
    limit: str = "decode"
    requires: tuple[str, ...] = ()
    raw_copy: bool = False


@dataclass
class Row:
    """One row of the table: a loader, its inputs and its measurements."""

    name: str
    loader: Loader
    settings: LoaderSettings
    process: MeasuredProcess | None = None
    measurements: list[LoaderMeasurement] = field(default_factory=list)
    cold_images_per_s: float | None = None


def choose_rows(settings: LoaderSettings, scratch: Path, names: tuple[str, ...]) -> list[Row]:
    """Select the rows named by --backends and their limits, or all rows. Raw copies are written to `scratch`.

    Raises InputError if a name is unknown or its loader can't run here.
    """
    encoding = settings.manifest.settings["encoding"]
    if encoding == "raw":
        print(f"{settings.shards}: raw images; the decoding limit and the baselines read JPEG and are omitted",
              file=sys.stderr)  # fmt: skip
    loaders = available_loaders(encoding)
    unknown = [name for name in names if name not in loaders]
    if unknown:
        raise InputError(f"--backends={','.join(names)}: no row {unknown[0]!r} here; available: {', '.join(loaders)}")
    chosen = {name: loader for name, loader in loaders.items() if not names or name in (*names, *LIMITS)}
    copied = any(loader.raw_copy for loader in chosen.values())
    raw = write_raw_copy(settings, scratch) if copied else settings
    return [Row(name, loader, raw if loader.raw_copy else settings) for name, loader in chosen.items()]


def available_loaders(encoding: str) -> dict[str, Loader]:
    """Return the loaders for "jpeg" or "raw" shards that can run here. Reports missing libraries on stderr."""
    available = {"dali": has_dali(), "opencv": version_of("opencv-python-headless") != "not installed",
                 "gpu": torch.cuda.is_available()}  # fmt: skip
    if encoding == "jpeg" and not available["opencv"]:
        print("no row opencv: OpenCV is not installed; pip install '.[bench]'", file=sys.stderr)
    if encoding == "jpeg" and not available["dali"]:
        print("no DALI rows and no decoding limit: NVIDIA DALI is not installed (Linux only)", file=sys.stderr)
    loaders = JPEG_LOADERS if encoding == "jpeg" else RAW_LOADERS
    return {name: loader for name, loader in loaders.items() if all(available[need] for need in loader.requires)}


def write_raw_copy(settings: LoaderSettings, scratch: Path) -> LoaderSettings:
    """Write the first training images as raw shards, and return the settings that read them."""
    fetcher, source = settings.fetcher(), scratch / "jpeg"
    source.mkdir()
    count = min(len(fetcher), max(RAW_COPY_IMAGES, settings.batch_size))
    lines = ["path,patient,split"]
    for number in range(count):
        (source / f"{number}.jpg").write_bytes(fetcher.read(number))
        lines.append(f"{number}.jpg,{number},train")
    (scratch / "table.csv").write_text("\n".join(lines) + "\n")
    build(source, scratch / "raw", dataset="csv", table=scratch / "table.csv", encoding="raw",
          size=settings.manifest.settings["size"])  # fmt: skip
    return replace(settings, shards=scratch / "raw", manifest=read_manifest(scratch / "raw"))


def _views(settings: LoaderSettings, backend: ViewBackend, device: str) -> Iterator[int]:
    views = make_views(backend, settings.fetcher(), settings.batches(), augmentation=settings.augmentation, seed=0,
                       device=torch.device(device), workers=settings.threads)  # fmt: skip
    for view1, _ in views:
        if device == "cuda":
            torch.cuda.synchronize()
        yield len(view1)


def _decode(settings: LoaderSettings, device: str) -> Iterator[int]:
    return decode_batches(settings.fetcher(), settings.batches(), device=torch.device(device), threads=settings.threads)


def _read(settings: LoaderSettings) -> Iterator[int]:
    return (len(contents) for _, contents in prefetch(settings.fetcher(), settings.batches()))


def _turbojpeg(settings: LoaderSettings) -> Iterator[int]:
    return baselines.turbojpeg(settings.fetcher(), settings.batches(), settings.threads)


def _opencv(settings: LoaderSettings) -> Iterator[int]:
    return baselines.opencv(settings.fetcher(), settings.batches(), settings.augmentation, settings.threads)


def _published(settings: LoaderSettings) -> Iterator[int]:
    return baselines.published(settings.fetcher(), settings.augmentation, settings.batch_size, settings.threads)


def _stock_dali(settings: LoaderSettings) -> Iterator[int]:
    return baselines.stock_dali(settings.shards, settings.manifest, settings.augmentation, settings.batch_size,
                                settings.threads)


_FUSED = partial(_views, backend="dali-fused", device="cpu")
_TORCHVISION = partial(_views, backend="torchvision", device="cpu")
# In the order of the printed table.
JPEG_LOADERS: dict[str, Loader] = {
    "decode": Loader(partial(_decode, device="cpu"), requires=("dali",)),
    "decode-turbojpeg": Loader(_turbojpeg),
    "read": Loader(_read),
    "dali-fused": Loader(_FUSED, requires=("dali",)),
    "dali-fused-raw": Loader(_FUSED, requires=("dali",), raw_copy=True),
    "dali-stock": Loader(_stock_dali, requires=("dali",)),
    "opencv": Loader(_opencv, requires=("opencv",)),
    "torchvision": Loader(_TORCHVISION),
    "published": Loader(_published),
    "decode-gpu": Loader(partial(_decode, device="cuda"), "decode-gpu", ("dali", "gpu")),
    "dali-gpu": Loader(partial(_views, backend="dali-stock", device="cuda"), "decode-gpu", ("dali", "gpu")),
    "dali-fused-to-gpu": Loader(partial(_views, backend="dali-fused", device="cuda"), requires=("dali", "gpu")),
}
RAW_LOADERS: dict[str, Loader] = {
    "dali-fused-raw": Loader(_FUSED, requires=("dali",)),
    "read": Loader(_read),
    "torchvision": Loader(_TORCHVISION),
}
