"""The manifest: contents and hashes of the shards. It is written last; a folder without one has no finished shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.address import is_copy
from shard.errors import PARSE_ERRORS, InputError
from shard.files import sha256_of, write_bytes
from shard.formats import SPLITS
from shard.plain_json import refuse_constant
from shard.tabular.demographics import COLUMNS, Counts, are_counts
from shard.tar import HASH_DIGITS

MANIFEST = "manifest.json"
FORMAT = "cxr-simclr-shards/3"
READS = (FORMAT, "cxr-simclr-shards/2")  # 2: before version 0.1.0, may lack fields that were added to it
DUPLICATES = {"policy", "pictures", "images", "across_splits", "dropped"}
LARGEST_SIZE = 4096  # the maximum of --size, in pixels


@dataclass(frozen=True)
class Shard:
    """A tar and its index: names, sizes in bytes, sha256, and pixel sums for the mean and standard deviation.

    not_encoded: how many samples are their source's JPEG, not encoded again; always 0 in shards of older versions.
    image_xxh3: the xxh3 of each image's bytes, in order, 16 hex digits each. labels_xxh3: the xxh3 of the JSON of all
    samples, in order. Both are empty in shards of older versions.
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
    image_xxh3: str = ""
    labels_xxh3: str = ""


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards.

    settings: what decides the bytes of the shards. software: the versions of the sharder and its libraries.
    counts: split → {"images", "patients"}. labels: split → finding → {"1", "0", "-1", "blank"} → images.
    rejected: the number of rows without an image; images and rejected rows add up to settings["rows"].
    pixel_mean, pixel_std: of the training split (of all images if there is none), in grey levels divided by 255.
    notes: the build's notes on the table, without ids if it was de-identified.
    demographics: split → "sex", "age" (in groups), "view" → value or "blank" → images; {} in older versions.
    tables: name, sha256 and rows of each source table, since an archive may revise its labels, as NIH did.
    duplicates: duplicates.Summary of pictures in two splits or under two patients; {} if there are none.
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
        """Return the shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def shard_sizes(self, split: str) -> tuple[int, ...]:
        """Return the number of images in each shard of one split, in order."""
        return tuple(shard.samples for shard in self.of_split(split))

    def images(self, split: str) -> int:
        """Return the number of images in a split; 0 if the split does not exist."""
        return sum(self.shard_sizes(split))

    def fingerprint(self) -> str:
        """Hash the contents of all tars, 16 hex digits: equal for equal shards in any folder."""
        return hashlib.sha256("".join(shard.tar_sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write manifest.json atomically."""
        write_bytes(folder / MANIFEST, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and check file sizes and index hashes, which takes milliseconds per shard.

    Every reader does this first: a stale index yields garbage, and a truncated tar kills a process that maps it.
    Raises InputError that names the file, the fault and the command to run.
    """
    manifest = parse_manifest(folder)
    for fault in quick_faults(folder, manifest.shards):
        raise InputError(f"{fault}; copy it again or rebuild the shards")
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest without checking the shards. Raises InputError as read_manifest does."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; build shards with: python -m shard build SRC {folder}")
    path = folder / MANIFEST
    if not path.exists():
        parts = len(list(folder.glob("part-*.json")))
        cure = f"merge its {parts} parts with: python -m shard merge {folder}" if parts else (
            f"the folder has no finished shards; build them with: python -m shard build SRC {folder}")
        raise InputError(f"{path}: no such file; {cure}")
    return parse_manifest_text(path.read_bytes(), path)


def parse_manifest_text(text: bytes, path: Path | str) -> Manifest:
    """Parse the content of a manifest. path: where it was read, for messages. Raises InputError."""
    try:
        content = json.loads(text.decode("utf-8-sig"), parse_constant=refuse_constant)
        found = content.get("format")
        if found not in READS:
            raise InputError(f"{path}: format {found!r}, this version reads {' and '.join(READS)}; build into a new "
                             "folder, or use the version that wrote it")  # fmt: skip
        shards = tuple(Shard(**shard) for shard in content["shards"])
        findings, notes = tuple(content["findings"]), tuple(content.get("notes", ()))
        tables = tuple(content.get("tables", ()))
        manifest = Manifest(**{**content, "shards": shards, "findings": findings, "notes": notes, "tables": tables})
        _check(manifest)
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not a manifest ({type(error).__name__}: {error}); build the shards again") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError, TypeError, KeyError or AttributeError if a value is not what a build writes.

    A manifest may come from an untrusted source, so file names must stay within its folder and numbers within range.
    """
    settings, counts, labels = manifest.settings, manifest.counts, manifest.labels
    splits = {shard.split for shard in manifest.shards}
    names = [name for shard in manifest.shards for name in (shard.tar, shard.index)]
    checks = {
        "shards": bool(names) and len(set(names)) == len(names) and all(map(_is_valid_shard, manifest.shards)),
        "settings": _is_count(settings["rows"]) and 1 <= settings["size"] <= LARGEST_SIZE
        and isinstance(settings["size"], int) and settings["encoding"] in ("jpeg", "raw"),
        "findings": _are_strings(manifest.findings) and len(set(manifest.findings)) == len(manifest.findings),
        "counts": set(counts) == splits and all(set(own) == {"images", "patients"} for own in counts.values())
        and all(_is_count(count) for own in counts.values() for count in own.values()),
        "labels": set(labels) == splits and all(
            list(own) == list(manifest.findings) and all(set(by) == {"1", "0", "-1", "blank"} for by in own.values())
            and all(_is_count(count) for by in own.values() for count in by.values()) for own in labels.values()),
        "rejected": _is_count(manifest.rejected),
        "pixel_mean": _is_fraction(manifest.pixel_mean),
        "pixel_std": _is_fraction(manifest.pixel_std) and (manifest.pixel_std > 0 or "train" not in splits),
        "notes": _are_strings(manifest.notes),
        "demographics": set(manifest.demographics) in (set(), splits) and all(
            set(own) == set(COLUMNS) and are_counts(own) for own in manifest.demographics.values()),
        "tables": all(set(table) == {"name", "sha256", "rows"} and _are_strings((table["name"], table["sha256"]))
                      and _is_count(table["rows"]) for table in manifest.tables),
        "software": _are_strings([*manifest.software, *manifest.software.values()]),
        "duplicates": manifest.duplicates == {} or (
            set(manifest.duplicates) == DUPLICATES and manifest.duplicates["policy"] in ("drop", "keep")
            and all(_is_count(count) for name, count in manifest.duplicates.items() if name != "policy")),
    }  # fmt: skip
    for name, valid in checks.items():
        if not valid:
            raise ValueError(f"its {name} are invalid")


def _is_valid_shard(shard: Shard) -> bool:
    numbers = (shard.samples, shard.tar_bytes, shard.index_bytes, shard.pixels, shard.pixel_sum, shard.pixel_square_sum,
               shard.not_encoded)  # fmt: skip
    hashes = (shard.tar_sha256, shard.index_sha256)
    return bool(shard.split in SPLITS and all(map(_is_count, numbers)) and shard.samples > 0
            and shard.not_encoded <= shard.samples
            and len(shard.image_xxh3) in (0, HASH_DIGITS * shard.samples)
            and re.fullmatch("[0-9a-f]*", shard.image_xxh3 + shard.labels_xxh3)
            and len(shard.labels_xxh3) in (0, HASH_DIGITS)
            and all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)
            and all(re.fullmatch(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.{ending}", name)
                    for name, ending in ((shard.tar, "tar"), (shard.index, "idx"))))  # fmt: skip


def _is_fraction(value: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_strings(values: Iterable[object]) -> bool:
    return all(type(value) is str for value in values)


def quick_faults(folder: Path, shards: Iterable[Shard]) -> Iterator[str]:
    """Describe each tar or index that is missing or differs in size, and each index that differs in hash.

    In the cache, tars are checked when they are opened, since they are fetched only then.
    """
    cached = is_copy(folder)
    for shard in shards:
        complete = True
        files = [(shard.tar, shard.tar_bytes)] * (not cached) + [(shard.index, shard.index_bytes)]
        for name, expected in files:
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                complete = False
                yield f"{file}: " + (
                    "missing" if found is None else f"{found} bytes, the manifest says {expected}")
        if complete and (found_hash := sha256_of(folder / shard.index)) != shard.index_sha256:
            yield wrong_hash(folder / shard.index, found_hash, shard.index_sha256)


def wrong_hash(file: Path, found: str, expected: str) -> str:
    """Describe a file whose hash is not the expected one."""
    return f"{file}: sha256 {found[:12]}…, the manifest says {expected[:12]}…"
