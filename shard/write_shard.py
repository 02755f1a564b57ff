"""Write one shard: its tar, its index and its record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from shard.assignment import Row, ShardRows
from shard.conflicts import Reject
from shard.dicom import image as dicom
from shard.duplicates import Picture, describe_picture
from shard.errors import UnreadableImage
from shard.files import atomic_write, sha256_of, write_bytes
from shard.image import center_crop, compile_kernels, decode, encode_jpeg, read_file
from shard.machine import version_of
from shard.manifest import Shard
from shard.pool import tick
from shard.record import ShardRecord, read_record
from shard.tabular.demographics import count_demographics
from shard.tar import ENDINGS, TarWriter

Encoding = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class Job:
    """One shard to write, with the settings that it needs."""

    assigned: ShardRows
    findings: tuple[str, ...]
    src: Path
    out: Path
    size: int
    encoding: Encoding
    quality: int
    hide_paths: bool = False  # a path may contain the patient's name


def write_shard(job: Job) -> ShardRecord:
    """Write one tar, its index and its record. If the shard is already finished, only return its record."""
    compile_kernels()  # outside of `decode`, which attributes all errors to the image
    stem, split, rows = job.assigned
    done = read_record(job.out, stem)
    if done is not None and _is_current(done, job):
        tick(len(rows), len(done.rejects))
        return done
    tar, index = job.out / f"{stem}.tar", job.out / f"{stem}.idx"
    kept, rejects, pictures = [], [], dict[str, Picture]()
    readers: dict[str, str] = {}
    with atomic_write(tar) as file, TarWriter(file) as writer:
        for row in rows:
            try:
                source = read_file(job.src / row.path)
                readers = readers or (dicom_readers() if dicom.is_dicom(source) else {})
                grey, content, not_encoded = _encode(job, source)
            except UnreadableImage as error:
                rejects.append(_make_reject(job, row, error))
                tick(rejected=1)
                continue
            writer.add(row.key, {ENDINGS[job.encoding]: content, "json": _sample_json(job, row)})
            pictures[row.key] = describe_picture(grey, not_encoded, row.patient, "" if job.hide_paths else row.path)
            kept.append(row)
            tick()
    write_bytes(index, writer.index())
    if not kept:
        tar.unlink()
        index.unlink()
    record = ShardRecord(job.assigned.sha256(), _describe_shard(tar, index, split, writer, list(pictures.values())),
                         _count_labels(kept, job.findings), sorted({row.patient for row in kept}), rejects, readers,
                         count_demographics((row.sex, row.age, row.view) for row in kept),
                         {key: picture.pack() for key, picture in pictures.items()})  # fmt: skip
    record.write(job.out, stem)
    return record


def _describe_shard(tar: Path, index: Path, split: str, written: TarWriter, pictures: list[Picture]) -> Shard:
    """Describe a tar and its index. If no row had a usable image, neither file exists."""
    image_xxh3, labels_xxh3 = written.hashes()
    return Shard(
        tar=tar.name, index=index.name, split=split, samples=len(pictures),
        tar_bytes=tar.stat().st_size if pictures else 0, index_bytes=index.stat().st_size if pictures else 0,
        tar_sha256=sha256_of(tar) if pictures else "", index_sha256=sha256_of(index) if pictures else "",
        image_xxh3=image_xxh3, labels_xxh3=labels_xxh3,
        **{name: sum(getattr(picture, name) for picture in pictures)
           for name in ("pixels", "pixel_sum", "pixel_square_sum", "not_encoded")},
    )  # fmt: skip


def _encode(job: Job, source: bytes) -> tuple[npt.NDArray[np.uint8], bytes, bool]:
    """Return the pixels of a source file, their bytes in the shard, and whether these are the source's own JPEG.

    Raises UnreadableImage.
    """
    grey, original = decode(source, job.size)
    if job.encoding == "raw":
        grey = center_crop(grey, job.size)
        return grey, grey.tobytes(), False
    return grey, original or encode_jpeg(grey, job.quality), original is not None


def dicom_readers() -> dict[str, str]:
    """Return the versions of the libraries that read DICOM files."""
    return {name: version_of(name) for name in dicom.DECODER_PACKAGES}


def _make_reject(job: Job, row: Row, error: UnreadableImage) -> Reject:
    """Create a line of rejects.csv. Hides a reason's details with the path: a decoder may quote the file's header."""
    if job.hide_paths:
        return row.key, "", str(error).partition(":")[0]
    return row.key, row.path, str(error)


def _sample_json(job: Job, row: Row) -> bytes:
    labels = dict(zip(job.findings, row.labels, strict=True))
    date = {"date": row.date} if row.date else {}
    return json.dumps({"patient": row.patient, "split": job.assigned.split, "view": row.view, "sex": row.sex,
                       "age": row.age, **date, "labels": labels}, allow_nan=False).encode()  # fmt: skip


def _count_labels(rows: list[Row], findings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count labels: finding → label → rows."""
    counts = {}
    for number, finding in enumerate(findings):
        found = Counter(row.labels[number] for row in rows)
        counts[finding] = {"1": found[1], "0": found[0], "-1": found[-1], "blank": found[None]}
    return counts


def _is_current(done: ShardRecord, job: Job) -> bool:
    """Return whether a finished shard exists, has these rows and readers, and still has the same unusable images."""
    if done.readers not in ({}, dicom_readers()):
        return False
    shard = done.shard
    for name, size in ((shard.tar, shard.tar_bytes), (shard.index, shard.index_bytes)):
        file = job.out / name
        if size and not (file.is_file() and file.stat().st_size == size):
            return False
    return done.rows_sha256 == job.assigned.sha256() and done.rejects == list(_retry_rejects(done.rejects, job))


def _retry_rejects(rejects: list[Reject], job: Job) -> Iterator[Reject]:
    """Encode rejected rows again, and yield those that are still unusable."""
    rows = {row.key: row for row in job.assigned.rows}
    for key, _, _ in rejects:
        try:
            _encode(job, read_file(job.src / rows[key].path))
        except UnreadableImage as error:
            yield _make_reject(job, rows[key], error)
