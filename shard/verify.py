"""verify: are the shards what the manifest says?"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simplejpeg

from shard.cli import check_numbers
from shard.errors import PARSE_ERRORS, InputError
from shard.files import sha256_of
from shard.machine import cores
from shard.manifest import Manifest, Shard, parse_manifest, quick_faults, wrong_hash
from shard.plain_json import refuse_constant
from shard.pool import parallel_map, tick
from shard.read import read_index
from shard.tabular.demographics import Counts, add_counts, count_demographics
from shard.tar import ENDINGS, INDEX_VERSION


@dataclass(frozen=True)
class Job:
    """One shard to look at."""

    folder: Path
    shard: Shard
    findings: tuple[str, ...]
    encoding: str
    size: int
    decode: bool


@dataclass(frozen=True)
class Seen:
    """What is in one shard, and what is wrong with it."""

    split: str
    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)  # (finding, label) → images
    people: list[Counts] = field(default_factory=list)  # of sex, age and view


def verify(out: Path, *, quick: bool = False, decode: bool = False, workers: int = 0) -> None:
    """Check the shards in OUT against their manifest: sizes, hashes, members, index offsets, counts and labels.

    --decode decodes every image too. --quick looks at sizes and at the indexes' hashes alone, as every loader does
    before it starts.

    Raises InputError with the first fault and the number of faults.
    """
    if quick and decode:
        raise InputError("--quick --decode: give one of them")
    check_numbers(workers=(workers, 0, 4096))
    manifest = parse_manifest(out)
    faults = list(quick_faults(out, manifest.shards))
    if not faults and not quick:
        faults = _deep_faults(out, manifest, decode, workers or cores())
    if faults:
        number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(f"{faults[0]} ({number} in all); copy the shards again or rebuild them")
    images = sum(shard.samples for shard in manifest.shards)
    checked = "sizes and indexes" if quick else "hashes, members, indexes and labels" + ", decoded" * decode
    print(f"{out}: {len(manifest.shards)} shards, {images} images as written ({checked})")


def _deep_faults(out: Path, manifest: Manifest, decode: bool, workers: int) -> list[str]:
    settings = manifest.settings
    jobs = [Job(out, shard, manifest.findings, settings["encoding"], settings["size"], decode)
            for shard in manifest.shards]  # fmt: skip
    images = sum(shard.samples for shard in manifest.shards)
    seen = list(parallel_map(jobs, len(jobs), look_at, images=images, label="verifying", workers=workers))
    faults = [fault for one in seen for fault in one.faults]
    if faults:  # they explain whatever the totals lack
        return faults
    keys = Counter(key for one in seen for key in one.keys)
    faults = [f"{out}: key {key!r} is in the shards {count} times" for key, count in keys.items() if count > 1]
    if images + manifest.rejected != settings["rows"]:
        faults.append(f"{out}: {images} images and {manifest.rejected} rejects are not its {settings['rows']} rows")
    return faults + _leaks(out, seen) + _wrong_counts(out, manifest, seen)


def look_at(job: Job) -> Seen:
    """Read one shard whole: its hashes, its tar from end to end, its index, every sample."""
    shard, seen = job.shard, Seen(job.shard.split)
    tar = job.folder / shard.tar
    found = sha256_of(tar)
    if found != shard.tar_sha256:
        seen.faults.append(wrong_hash(tar, found, shard.tar_sha256))
        tick(shard.samples)
        return seen
    try:
        members = _walk(tar)
    except (tarfile.TarError, ValueError) as error:
        seen.faults.append(f"{tar}: not a tar of samples ({error})")
        tick(shard.samples)
        return seen
    lines = [f"{INDEX_VERSION} {len(members)}"]
    with tar.open("rb") as file:
        for key, places in members.items():
            contents = {}
            for ending, (offset, size) in places.items():
                file.seek(offset)
                contents[ending] = file.read(size)
            lines.append(" ".join(f"{ending} {offset} {size} {key}.{ending}"
                                  for ending, (offset, size) in places.items()))  # fmt: skip
            seen.faults.extend(f"{tar}: {key}: {fault}" for fault in _sample_faults(job, contents, seen))
            seen.keys.append(key)
            tick()
    if len(members) != shard.samples:
        seen.faults.append(f"{tar}: {len(members)} samples, the manifest says {shard.samples}")
    if (job.folder / shard.index).read_bytes().decode(errors="replace").splitlines() != lines:
        read_index(job.folder / shard.index)  # says so where it is none at all
        seen.faults.append(f"{job.folder / shard.index}: does not point at the members of {shard.tar}")
    return seen


def _walk(tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key → ending → (offset, size) of every member, as the tar itself has them."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, dot, ending = member.name.partition(".")
            if not member.isreg() or not dot or "/" in member.name:
                raise ValueError(f"member {member.name!r} is not KEY.ENDING")
            if ending in members.setdefault(key, {}):
                raise ValueError(f"member {member.name!r} is there twice")
            members[key][ending] = member.offset_data, member.size
    return members


def _sample_faults(job: Job, contents: dict[str, bytes], seen: Seen) -> list[str]:
    ending = ENDINGS[job.encoding]
    if set(contents) != {ending, "json"}:
        return [f"has {sorted(contents)}, not {ending} and json"]
    return _image_faults(job, contents[ending]) + _label_faults(job, contents["json"], seen)


def _image_faults(job: Job, content: bytes) -> list[str]:
    if job.encoding == "raw":
        wanted = job.size * job.size
        return [] if len(content) == wanted else [f"{len(content)} raw bytes, not {wanted}"]
    try:
        if not job.decode:
            simplejpeg.decode_jpeg_header(content)
        elif min(simplejpeg.decode_jpeg(content, "GRAY").shape[:2]) > job.size:
            return [f"its short side is longer than {job.size} pixels"]
    except ValueError as error:
        return [f"its JPEG does not decode ({error})"]
    return []


def _label_faults(job: Job, content: bytes, seen: Seen) -> list[str]:
    try:
        described: dict[str, Any] = json.loads(content, parse_constant=refuse_constant)
        patient, split, labels = described["patient"], described["split"], described["labels"]
        sex, age, view = described.get("sex", ""), described.get("age"), described["view"]
        if list(labels) != list(job.findings) or not all(label in (1, 0, -1, None) for label in labels.values()):
            return [f"its labels are {labels}"]
        if sex not in ("F", "M", "") or type(age) not in (int, float, type(None)) or type(view) is not str:
            return [f"its sex, age and view are {sex!r}, {age!r} and {view!r}"]
        people = count_demographics([(sex, age, view)])
    except PARSE_ERRORS as error:
        return [f"its json can't be read ({type(error).__name__}: {error})"]
    seen.patients.add(patient)
    for finding, label in labels.items():
        seen.labels[finding, "blank" if label is None else str(label)] += 1
    seen.people[:] = [add_counts([*seen.people, people])]
    return [] if split == job.shard.split else [f"is of split {split!r} in a shard of {job.shard.split!r}"]


def _wrong_counts(out: Path, manifest: Manifest, seen: list[Seen]) -> list[str]:
    faults = []
    for split, counts in manifest.counts.items():
        own = [one for one in seen if one.split == split]
        labels = sum((one.labels for one in own), Counter[tuple[str, str]]())
        found = {"images": sum(len(one.keys) for one in own),
                 "patients": len(set().union(*(one.patients for one in own)))}  # fmt: skip
        faults += [f"{out}: {found[name]} {name} in {split}, the manifest says {count}"
                   for name, count in counts.items() if found[name] != count]  # fmt: skip
        faults += [f"{out}: {labels[name, label]} images in {split} have {name} {label}, the manifest says {count}"
                   for name, known in manifest.labels[split].items()
                   for label, count in known.items() if labels[name, label] != count]  # fmt: skip
        people, known_people = add_counts(part for one in own for part in one.people), manifest.demographics.get(split)
        faults += [f"{out}: {name} in {split} is {people[name]}, the manifest says {known}"
                   for name, known in (known_people or {}).items() if people[name] != known]  # fmt: skip
    return faults


def _leaks(out: Path, seen: list[Seen]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for one in seen:
        for patient in one.patients:
            splits.setdefault(patient, set()).add(one.split)
    return [f"{out}: patient {patient!r} is in {' and '.join(sorted(of))}" for patient, of in splits.items()
            if len(of) > 1]  # fmt: skip
