"""Manifest: what is in the shards, and their hashes. It is written last: no manifest, no shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.errors import InputError
from shard.files import write_bytes

NAME = "manifest.json"
FORMAT = "cxr-simclr-shards/1"


@dataclass(frozen=True)
class Shard:
    """One tar and its index: names, sizes in bytes, sha256; pixel sums for the mean and standard deviation."""

    tar: str
    index: str
    split: str
    samples: int
    tar_bytes: int
    index_bytes: int
    tar_sha256: str
    index_sha256: str
    pixels: int
    pixel_sum: int
    pixel_square_sum: int


@dataclass(frozen=True)
class Manifest:
    """What is in a folder of shards.

    counts: split → {"images", "patients"}. labels: split → finding → {"1", "0", "-1", "blank"} → images.
    pixel_mean, pixel_std: over the training split, in grey levels divided by 255.
    """

    settings: dict[str, Any]
    findings: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    labels: dict[str, dict[str, dict[str, int]]]
    rejected: int
    pixel_mean: float
    pixel_std: float
    shards: tuple[Shard, ...]
    format: str = field(default=FORMAT)

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def images(self, split: str) -> int:
        """How many images the split has; 0 where there is no such split."""
        return sum(shard.samples for shard in self.of_split(split))

    def fingerprint(self) -> str:
        """A hash of the content of every tar: equal for equal shards wherever they lie."""
        return hashlib.sha256("".join(shard.tar_sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write manifest.json, whole or not at all."""
        write_bytes(folder / NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and check that every tar and index is there in its full size.

    Sizes are checked before any reader maps a file: a tar cut short under mmap kills the process.
    Raises InputError naming the file, what is wrong with it and what to run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make shards with: python -m shard build SRC {folder}")
    path = folder / NAME
    if not path.exists():
        parts = len(list(folder.glob("part-*.json")))
        cure = f"merge its {parts} parts with: python -m shard merge {folder}" if parts else (
            f"it holds no finished shards; make them with: python -m shard build SRC {folder}")
        raise InputError(f"{path}: no such file; {cure}")
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise InputError(f"{path}: format {content.get('format')!r}, this version reads {FORMAT!r}; build it again")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        manifest = Manifest(**{**content, "shards": shards, "findings": tuple(content["findings"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest ({type(error).__name__}: {error}); build the shards again") from None
    check_sizes(folder, manifest.shards)
    return manifest


def check_sizes(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Raise InputError for the first tar or index that is missing or has another size than it was written with."""
    for shard in shards:
        for name, expected in ((shard.tar, shard.tar_bytes), (shard.index, shard.index_bytes)):
            file = folder / name
            found = file.stat().st_size if file.exists() else None
            if found != expected:
                state = "missing" if found is None else f"{found} bytes, the manifest says {expected}"
                raise InputError(f"{file}: {state}; copy it again or rebuild the shards")
