"""verify: compare shards with their manifest."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import simplejpeg

from shard.address import Address, Place
from shard.cache import AS_SET, CacheFlags, discard, open_shards, open_tar, wrong_sizes
from shard.errors import PARSE_ERRORS, InputError
from shard.files import hash_rest
from shard.flags import SHARDS, WORKERS, Flag, validate_call
from shard.machine import cores
from shard.manifest import Manifest, Shard, parse_manifest, quick_faults, wrong_hash
from shard.note import counted
from shard.plain_json import refuse_constant
from shard.pool import parallel_map, tick
from shard.read import read_index
from shard.tabular.demographics import Counts, add_counts, count_demographics
from shard.tar import ENDINGS, INDEX_VERSION, SampleHashes


@dataclass(frozen=True)
class Job:
    """One shard to check."""

    folder: Path
    shard: Shard
    findings: tuple[str, ...]
    encoding: str
    size: int
    decode: bool


@dataclass(frozen=True)
class Contents:
    """The contents of a shard, and the faults found in it."""

    split: str
    faults: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)  # (finding, label) → images
    demographics: list[Counts] = field(default_factory=list)  # empty, or a single sum over the samples


@validate_call
def verify(
    out: Annotated[Place, SHARDS], *,
    quick: Annotated[bool, Flag("Check only file sizes and index hashes, as every loader does.")] = False,
    decode: Annotated[bool, Flag("Decode every image too.")] = False,
    workers: Annotated[int, WORKERS] = 0,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Check shards against their manifest: sizes, hashes, tar members, index offsets, counts and labels.

    At an address the sizes of all tars are checked there; the rest in the cache, which fetches what it lacks.

    Raises InputError with the first fault and the number of faults.

        python -m shard verify shards --decode
    """
    if quick and decode:
        raise InputError("--quick --decode: give only one of them")
    folder = open_shards(out, cache)
    manifest = parse_manifest(folder)
    faults = [*(wrong_sizes(out, manifest.shards) if isinstance(out, Address) else ()),
              *quick_faults(folder, manifest.shards)]  # fmt: skip
    if not faults and not quick:
        faults = _deep_faults(folder, manifest, decode, workers or cores())
    if faults:
        number = counted(len(faults), "fault", "faults")
        raise InputError(f"{faults[0]} ({number} in all); copy the shards again or rebuild them")
    images = sum(shard.samples for shard in manifest.shards)
    checked = "sizes and indexes" if quick else "hashes, members, indexes and labels" + ", decoded" * decode
    print(f"{out}: {counted(len(manifest.shards), 'shard', 'shards')}, {images} images as written ({checked})")


def _deep_faults(out: Path, manifest: Manifest, decode: bool, workers: int) -> list[str]:
    settings = manifest.settings
    jobs = [Job(out, shard, manifest.findings, settings["encoding"], settings["size"], decode)
            for shard in manifest.shards]  # fmt: skip
    images = sum(shard.samples for shard in manifest.shards)
    shards = list(parallel_map(jobs, len(jobs), check_shard, images=images, label="verifying", workers=workers))
    faults = [fault for contents in shards for fault in contents.faults]
    if faults:  # they explain any difference in the totals
        return faults
    keys = Counter(key for contents in shards for key in contents.keys)
    faults = [f"{out}: key {key!r} occurs in the shards {count} times" for key, count in keys.items() if count > 1]
    if images + manifest.rejected != settings["rows"]:
        faults.append(f"{out}: {images} images and {manifest.rejected} rejects, not {settings['rows']} rows in all")
    return faults + _find_leaks(out, shards) + _wrong_counts(out, manifest, shards)


def check_shard(job: Job) -> Contents:
    """Read one shard completely: its hashes, its tar from end to end, its index, every sample."""
    shard, contents = job.shard, Contents(job.shard.split)
    tar, index, hashes = job.folder / shard.tar, job.folder / shard.index, SampleHashes()
    file, found = _open_hashed(job.folder, shard)
    with file:
        if found != shard.tar_sha256:
            contents.faults.append(wrong_hash(tar, found, shard.tar_sha256))
            tick(shard.samples)
            return contents
        try:
            members = _list_members(file)
        except (tarfile.TarError, ValueError) as error:
            contents.faults.append(f"{tar}: not a tar of samples ({error})")
            tick(shard.samples)
            return contents
        for key, locations in members.items():
            sample = {}
            for ending, (offset, size) in locations.items():
                file.seek(offset)
                sample[ending] = file.read(size)
            contents.faults.extend(f"{tar}: {key}: {fault}" for fault in _sample_faults(job, sample, contents))
            contents.keys.append(key)
            hashes.add(sample)
            tick()
    if len(members) != shard.samples:
        contents.faults.append(f"{tar}: {len(members)} samples, the manifest says {shard.samples}")
    if (shard.image_xxh3, shard.labels_xxh3) not in (("", ""), hashes.fields()):
        contents.faults.append(f"{tar}: its samples do not match their hashes in the manifest")
    if index.read_bytes().decode(errors="replace").splitlines() != _index_lines(members):
        read_index(index)  # raises if the file is not an index at all
        contents.faults.append(f"{index}: does not match the members of {shard.tar}")
    return contents


def _open_hashed(folder: Path, shard: Shard) -> tuple[IO[bytes], str]:
    """Open a tar, and return its sha256 too. One in the cache whose content is wrong is fetched once more.

    The file stays open until the shard is checked, since other processes may remove its name from the cache.
    """
    file = open_tar(folder, shard)
    found = hash_rest(file)
    if found != shard.tar_sha256 and discard(folder, shard):
        file.close()
        file = open_tar(folder, shard)
        found = hash_rest(file)
    return file, found


def _list_members(tar: IO[bytes]) -> dict[str, dict[str, tuple[int, int]]]:
    """List key → extension → (offset, size) of every member, from the headers of the tar."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    tar.seek(0)
    with tarfile.open(fileobj=tar) as archive:
        for member in archive:
            key, dot, ending = member.name.partition(".")
            if not member.isreg() or not dot or "/" in member.name:
                raise ValueError(f"member {member.name!r} is not KEY.ENDING")
            if ending in members.setdefault(key, {}):
                raise ValueError(f"member {member.name!r} occurs twice")
            members[key][ending] = member.offset_data, member.size
    return members


def _index_lines(members: dict[str, dict[str, tuple[int, int]]]) -> list[str]:
    """Return the lines of the index of a tar with these members."""
    samples = [" ".join(f"{ending} {offset} {size} {key}.{ending}" for ending, (offset, size) in locations.items())
               for key, locations in members.items()]  # fmt: skip
    return [f"{INDEX_VERSION} {len(members)}", *samples]


def _sample_faults(job: Job, sample: dict[str, bytes], contents: Contents) -> list[str]:
    """Check a sample, extension → bytes, and add its labels to the contents of the shard."""
    ending = ENDINGS[job.encoding]
    if set(sample) != {ending, "json"}:
        return [f"has {sorted(sample)}, not {ending} and json"]
    return _image_faults(job, sample[ending]) + _label_faults(job, sample["json"], contents)


def _image_faults(job: Job, image: bytes) -> list[str]:
    if job.encoding == "raw":
        expected = job.size * job.size
        return [] if len(image) == expected else [f"has {len(image)} raw bytes, not {expected}"]
    try:
        if not job.decode:
            simplejpeg.decode_jpeg_header(image)
        elif min(simplejpeg.decode_jpeg(image, "GRAY").shape[:2]) > job.size:
            return [f"its short side is longer than {job.size} pixels"]
    except ValueError as error:
        return [f"its JPEG can't be decoded ({error})"]
    return []


def _label_faults(job: Job, text: bytes, contents: Contents) -> list[str]:
    try:
        described: dict[str, Any] = json.loads(text, parse_constant=refuse_constant)
        patient, split, labels = described["patient"], described["split"], described["labels"]
        sex, age, view = described.get("sex", ""), described.get("age"), described["view"]
        if list(labels) != list(job.findings) or not all(label in (1, 0, -1, None) for label in labels.values()):
            return [f"has invalid labels: {labels}"]
        if sex not in ("F", "M", "") or type(age) not in (int, float, type(None)) or type(view) is not str:
            return [f"has an invalid sex, age or view: {sex!r}, {age!r}, {view!r}"]
        demographics = count_demographics([(sex, age, view)])
    except PARSE_ERRORS as error:
        return [f"its json can't be read ({type(error).__name__}: {error})"]
    contents.patients.add(patient)
    for finding, label in labels.items():
        contents.labels[finding, "blank" if label is None else str(label)] += 1
    contents.demographics[:] = [add_counts([*contents.demographics, demographics])]
    return [] if split == job.shard.split else [f"belongs to split {split!r}, but is in a shard of {job.shard.split!r}"]


def _wrong_counts(out: Path, manifest: Manifest, shards: list[Contents]) -> list[str]:
    """Describe each total of images, patients, labels and demographics that differs from the manifest."""
    faults = []
    for split, counts in manifest.counts.items():
        own = [contents for contents in shards if contents.split == split]
        labels = sum((contents.labels for contents in own), Counter[tuple[str, str]]())
        found = {"images": sum(len(contents.keys) for contents in own),
                 "patients": len(set().union(*(contents.patients for contents in own)))}  # fmt: skip
        faults += [f"{out}: {found[name]} {name} in {split}, the manifest says {count}"
                   for name, count in counts.items() if found[name] != count]  # fmt: skip
        faults += [f"{out}: {labels[name, label]} images in {split} have {name} {label}, the manifest says {count}"
                   for name, expected in manifest.labels[split].items()
                   for label, count in expected.items() if labels[name, label] != count]  # fmt: skip
        demographics = add_counts(part for contents in own for part in contents.demographics)
        faults += [f"{out}: {name} in {split} is {demographics[name]}, the manifest says {expected}"
                   for name, expected in manifest.demographics.get(split, {}).items()
                   if demographics[name] != expected]  # fmt: skip
    return faults


def _find_leaks(out: Path, shards: list[Contents]) -> list[str]:
    """Describe each patient that is in more than one split."""
    splits: dict[str, set[str]] = {}
    for contents in shards:
        for patient in contents.patients:
            splits.setdefault(patient, set()).add(contents.split)
    return [f"{out}: patient {patient!r} is in {' and '.join(sorted(names))}" for patient, names in splits.items()
            if len(names) > 1]  # fmt: skip
