"""The rows of bench.io: every loader and every limit that can be measured here, and what each is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import rivals
from bench.runner import Runner, Turn
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewBackend, decode_batches, has_dali, make_views
from pipeline.prefetch import prefetch
from pipeline.sampler import Batch, BatchSampler
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.machine import version_of
from shard.manifest import Manifest, read_manifest
from shard.write import build

RAW_IMAGES = 2000  # as many, at most, are written anew for the raw row: a set of 224,316 would take 23 GB


@dataclass(frozen=True)
class Setting:
    """What every row is given."""

    shards: Path
    manifest: Manifest
    augmentation: Augmentation
    batch_size: int
    threads: int

    def fetcher(self) -> Fetcher:
        """The training images."""
        return Fetcher(self.shards, self.manifest, "train")

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch of them."""
        return BatchSampler(tuple(shard.samples for shard in self.manifest.of_split("train")),
                            self.batch_size).batches(0, 0)


@dataclass
class Row:
    """A loader and its turns; `limit` is the row it is a share of."""

    name: str
    start: Callable[..., Iterator[int]]
    arguments: tuple[Any, ...]
    limit: str = "decode"
    runner: Runner | None = None
    cold: float | None = None
    turns: list[Turn] | None = None


def choose_rows(setting: Setting, scratch: Path, wanted: tuple[str, ...]) -> list[Row]:
    """The rows that were asked for and can run here, all where none is named; scratch: for a copy of raw images.

    Raises InputError where one is asked for that there is not.
    """
    rows = jpeg_rows(setting) if setting.manifest.settings["encoding"] == "jpeg" else raw_rows(setting)
    known = [row.name for row in rows]
    known += ["dali-fused-raw"] if has_dali() and "dali-fused-raw" not in known else []
    strange = [name for name in wanted if name not in known]
    if strange:
        raise InputError(f"--backends={','.join(wanted)}: no row {strange[0]!r} here; there are {', '.join(known)}")
    rows = [row for row in rows if not wanted or row.name in (*wanted, "decode", "decode-gpu")]
    names = [row.name for row in rows]
    if has_dali() and "dali-fused-raw" not in names and (not wanted or "dali-fused-raw" in wanted):
        raw = write_raw(setting, scratch)
        beside = names.index("dali-fused") + 1 if "dali-fused" in names else len(rows)
        rows.insert(beside, Row("dali-fused-raw", _views, (raw, "dali-fused", "cpu")))
    return rows


def jpeg_rows(setting: Setting) -> list[Row]:
    """All of them, of JPEGs, that the libraries and the hardware here allow; what is left out is said on stderr."""
    rows = [
        Row("decode", _decode, (setting, "cpu")), Row("decode-turbojpeg", _turbojpeg, (setting,)),
        Row("read", _read, (setting,)), Row("dali-fused", _views, (setting, "dali-fused", "cpu")),
        Row("dali-stock", _stock_dali, (setting,)), Row("opencv", _opencv, (setting,)),
        Row("torchvision", _views, (setting, "torchvision", "cpu")), Row("published", _published, (setting,)),
    ]  # fmt: skip
    if version_of("opencv-python-headless") == "not installed":
        print("no row opencv: it is not installed; pip install '.[bench]'", file=sys.stderr)
        rows = [row for row in rows if row.name != "opencv"]
    if not has_dali():
        print("no DALI rows, and no limit: NVIDIA DALI is not installed (Linux only)", file=sys.stderr)
        return [row for row in rows if row.name != "decode" and not row.name.startswith("dali")]
    if torch.cuda.is_available():
        rows += [Row("decode-gpu", _decode, (setting, "cuda"), "decode-gpu"),
                 Row("dali-gpu", _views, (setting, "dali-stock", "cuda"), "decode-gpu"),
                 Row("dali-fused-to-gpu", _views, (setting, "dali-fused", "cuda"))]  # fmt: skip
    return rows


def raw_rows(setting: Setting) -> list[Row]:
    """Those of raw images, which need no decoder; the rivals read JPEG."""
    print(f"{setting.shards}: raw images; no limit of decoding, and no rivals, which read JPEG", file=sys.stderr)
    rows = [Row("read", _read, (setting,)), Row("torchvision", _views, (setting, "torchvision", "cpu"))]
    if has_dali():
        rows.insert(0, Row("dali-fused-raw", _views, (setting, "dali-fused", "cpu")))
    return rows


def write_raw(setting: Setting, scratch: Path) -> Setting:
    """Some of the images in shards of raw ones."""
    fetcher, source = setting.fetcher(), scratch / "jpeg"
    source.mkdir()
    count = min(len(fetcher), max(RAW_IMAGES, setting.batch_size))
    lines = ["path,patient,split"]
    for number in range(count):
        (source / f"{number}.jpg").write_bytes(fetcher.read(number))
        lines.append(f"{number}.jpg,{number},train")
    (scratch / "table.csv").write_text("\n".join(lines) + "\n")
    build(source, scratch / "raw", dataset="csv", table=scratch / "table.csv", encoding="raw",
          size=setting.manifest.settings["size"])  # fmt: skip
    return replace(setting, shards=scratch / "raw", manifest=read_manifest(scratch / "raw"))


def _decode(setting: Setting, device: str) -> Iterator[int]:
    return decode_batches(setting.fetcher(), setting.batches(), device=torch.device(device), threads=setting.threads)


def _views(setting: Setting, maker: ViewBackend, device: str) -> Iterator[int]:
    made = make_views(maker, setting.fetcher(), setting.batches(), augmentation=setting.augmentation, seed=0,
                      device=torch.device(device), workers=setting.threads)  # fmt: skip
    for view1, _ in made:
        if device == "cuda":
            torch.cuda.synchronize()
        yield len(view1)


def _read(setting: Setting) -> Iterator[int]:
    return (len(contents) for _, contents in prefetch(setting.fetcher(), setting.batches()))


def _turbojpeg(setting: Setting) -> Iterator[int]:
    return rivals.turbojpeg(setting.fetcher(), setting.batches(), setting.threads)


def _opencv(setting: Setting) -> Iterator[int]:
    return rivals.opencv(setting.fetcher(), setting.batches(), setting.augmentation, setting.threads)


def _published(setting: Setting) -> Iterator[int]:
    return rivals.published(setting.fetcher(), setting.augmentation, setting.batch_size, setting.threads)


def _stock_dali(setting: Setting) -> Iterator[int]:
    return rivals.stock_dali(setting.shards, setting.manifest, setting.augmentation, setting.batch_size,
                             setting.threads)
