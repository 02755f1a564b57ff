"""Manifest: what is in the shards, and their hashes. It is written last: no manifest, no shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.errors import PARSE_ERRORS, InputError
from shard.files import sha256_of, write_bytes
from shard.formats import SPLITS
from shard.plain_json import refuse_constant
from shard.tabular.demographics import COLUMNS, Counts, are_counts

MANIFEST = "manifest.json"
FORMAT = "cxr-simclr-shards/2"
DUPLICATES = {"policy", "pictures", "images", "across_splits", "dropped"}
LARGEST_SIZE = 4096  # pixels, of --size


@dataclass(frozen=True)
class Shard:
    """One tar and its index: names, sizes in bytes, sha256; pixel sums for the mean and standard deviation.

    not_encoded: how many samples hold their source's own JPEG; none did before this was counted.
    """

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
    not_encoded: int = 0


@dataclass(frozen=True)
class Manifest:
    """What is in a folder of shards.

    settings: what decides which bytes are written; software: the versions of what wrote them.
    counts: split → {"images", "patients"}. labels: split → finding → {"1", "0", "-1", "blank"} → images.
    rejected: rows left out; with the images they make settings["rows"]. pixel_mean, pixel_std: over the training
    split, in grey levels divided by 255. notes: what the build said of the table; no ids where it hid them.
    demographics: split → "sex", "age" (in groups), "view" → value or "blank" → images; {} of builds before there were.
    tables: of each that was read, name, sha256 and rows; NIH, for one, has changed its labels.
    duplicates: duplicates.Summary of pictures in two splits or under two patients; {} where there are none.
    """

    settings: dict[str, Any]
    software: dict[str, str]
    findings: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    labels: dict[str, dict[str, dict[str, int]]]
    rejected: int
    pixel_mean: float
    pixel_std: float
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    demographics: dict[str, Counts] = field(default_factory=dict)
    tables: tuple[dict[str, Any], ...] = ()
    duplicates: dict[str, Any] = field(default_factory=dict)
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
        write_bytes(folder / MANIFEST, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and make sure, in milliseconds a shard, that its files are those it was written with.

    Done before anything is read: a stale index gives garbage, and a tar cut short kills a process that maps it.
    Raises InputError naming the file, what is wrong with it and what to run.
    """
    manifest = parse_manifest(folder)
    for fault in quick_faults(folder, manifest.shards):
        raise InputError(f"{fault}; copy it again or rebuild the shards")
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest without a look at what it describes. Raises InputError as read_manifest does."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make shards with: python -m shard build SRC {folder}")
    path = folder / MANIFEST
    if not path.exists():
        parts = len(list(folder.glob("part-*.json")))
        cure = f"merge its {parts} parts with: python -m shard merge {folder}" if parts else (
            f"it holds no finished shards; make them with: python -m shard build SRC {folder}")
        raise InputError(f"{path}: no such file; {cure}")
    try:
        content = json.loads(path.read_text("utf-8-sig"), parse_constant=refuse_constant)
        found = content.get("format")
        if found != FORMAT:
            raise InputError(f"{path}: format {found!r}, this version reads {FORMAT!r}; build into a new folder")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        findings, notes = tuple(content["findings"]), tuple(content.get("notes", ()))
        tables = tuple(content.get("tables", ()))
        manifest = Manifest(**{**content, "shards": shards, "findings": findings, "notes": notes, "tables": tables})
        _check(manifest)
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not a manifest ({type(error).__name__}: {error}); build the shards again") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError, TypeError, KeyError or AttributeError where a value is not what a build writes.

    A manifest may come from anybody: its names are those of files in its own folder, its numbers are such as sizes are.
    """
    settings, counts, labels = manifest.settings, manifest.counts, manifest.labels
    splits = {shard.split for shard in manifest.shards}
    names = [name for shard in manifest.shards for name in (shard.tar, shard.index)]
    wanted = {
        "shards": bool(names) and len(set(names)) == len(names) and all(map(_is_as_built, manifest.shards)),
        "settings": _is_count(settings["rows"]) and 1 <= settings["size"] <= LARGEST_SIZE
        and isinstance(settings["size"], int) and settings["encoding"] in ("jpeg", "raw"),
        "findings": _are_texts(manifest.findings) and len(set(manifest.findings)) == len(manifest.findings),
        "counts": set(counts) == splits and all(set(of) == {"images", "patients"} for of in counts.values())
        and all(_is_count(count) for of in counts.values() for count in of.values()),
        "labels": set(labels) == splits and all(
            list(of) == list(manifest.findings) and all(set(by) == {"1", "0", "-1", "blank"} for by in of.values())
            and all(_is_count(count) for by in of.values() for count in by.values()) for of in labels.values()),
        "rejected": _is_count(manifest.rejected),
        "pixel_mean": _is_share(manifest.pixel_mean),
        "pixel_std": _is_share(manifest.pixel_std) and (manifest.pixel_std > 0 or "train" not in splits),
        "notes": _are_texts(manifest.notes),
        "demographics": set(manifest.demographics) in (set(), splits) and all(
            set(of) == set(COLUMNS) and are_counts(of) for of in manifest.demographics.values()),
        "tables": all(set(table) == {"name", "sha256", "rows"} and _are_texts((table["name"], table["sha256"]))
                      and _is_count(table["rows"]) for table in manifest.tables),
        "software": _are_texts([*manifest.software, *manifest.software.values()]),
        "duplicates": manifest.duplicates == {} or (
            set(manifest.duplicates) == DUPLICATES and manifest.duplicates["policy"] in ("drop", "keep")
            and all(_is_count(count) for name, count in manifest.duplicates.items() if name != "policy")),
    }  # fmt: skip
    for name, fits in wanted.items():
        if not fits:
            raise ValueError(f"its {name} are not what a build writes")


def _is_as_built(shard: Shard) -> bool:
    numbers = (shard.samples, shard.tar_bytes, shard.index_bytes, shard.pixels, shard.pixel_sum, shard.pixel_square_sum,
               shard.not_encoded)  # fmt: skip
    hashes = (shard.tar_sha256, shard.index_sha256)
    return (shard.split in SPLITS and all(map(_is_count, numbers)) and shard.samples > 0
            and shard.not_encoded <= shard.samples
            and all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)
            and all(re.fullmatch(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.{ending}", name)
                    for name, ending in ((shard.tar, "tar"), (shard.index, "idx"))))  # fmt: skip


def _is_share(value: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_texts(values: Iterable[object]) -> bool:
    return all(type(value) is str for value in values)


def quick_faults(folder: Path, shards: Iterable[Shard]) -> Iterator[str]:
    """Each tar or index that is missing or has another size, and each index whose bytes are not those written."""
    for shard in shards:
        whole = True
        for name, expected in ((shard.tar, shard.tar_bytes), (shard.index, shard.index_bytes)):
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                whole = False
                yield f"{file}: " + (
                    "missing" if found is None else f"{found} bytes, the manifest says {expected}")
        if whole and (found_hash := sha256_of(folder / shard.index)) != shard.index_sha256:
            yield wrong_hash(folder / shard.index, found_hash, shard.index_sha256)


def wrong_hash(file: Path, found: str, expected: str) -> str:
    """What to say of a file whose bytes are not those it was written with."""
    return f"{file}: sha256 {found[:12]}…, the manifest says {expected[:12]}…"
