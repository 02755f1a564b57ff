"""build: a table and its images → tars, indexes, and the record of what is in them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shard.assignment import Assignment, Row, ShardRows
from shard.cli import check_numbers
from shard.deidentify import Pseudonyms, read_secret
from shard.dicom import image as dicom
from shard.duplicates import Picture, Policy, describe_picture
from shard.errors import InputError, UnreadableImage
from shard.files import atomic_write, locked, sha256_of, write_bytes
from shard.finish import check_max_rejects, clear_away, finish, part_name
from shard.formats import Votes
from shard.image import center_crop, encode_jpeg, histogram, load_grey_and_bytes
from shard.jpeg.metadata import strip_metadata
from shard.machine import choose_part, cores, version_of
from shard.manifest import LARGEST_SIZE, MANIFEST, Shard, read_manifest
from shard.phantom.archive import is_phantom
from shard.pool import parallel_map, tick
from shard.record import SHARDER, UNFINISHED, ShardRecord, begin, first_difference, read_record
from shard.table import Dataset, Reject, Table, read_table
from shard.tabular.demographics import count_demographics
from shard.tar import ENDINGS, TarWriter

Encoding = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class Job:
    """One shard to write, and how."""

    planned: ShardRows
    findings: tuple[str, ...]
    src: Path
    out: Path
    size: int
    encoding: Encoding
    quality: int
    hide_paths: bool = False  # which may name the patient


def build(
    src: Path, out: Path, *, dataset: Dataset = "auto", table: Path | None = None, size: int = 256,
    encoding: Encoding = "jpeg", quality: int = 95, shard_size: int = 1000, seed: int = 0, workers: int = 0,
    partners: int = 0, part: int | None = None, parts: int | None = None, max_rejects: float = 0.01,
    duplicates: Policy = "keep", deidentify: Path | None = None, allow_outside: bool = False,
    patient_from: str | None = None, findings: str | None = None, votes: Votes | None = None,
) -> None:  # fmt: skip
    """Write the radiographs of folder SRC as shuffled tar shards with DALI indexes and a manifest into OUT.

    Images become grey, their short side --size pixels (never enlarged): KEY.jpg of --quality or, with --encoding=raw,
    KEY.raw, --size × --size bytes, the centre of the image, black where it is smaller. A source that is such a JPEG
    already (grey, baseline, upright, no larger than --size) is not compressed again: KEY.jpg has its very pixels,
    whatever --quality says, and none of its metadata. Beside each lies KEY.json. Rows
    without a usable image are listed in rejects.csv with the reason; where they are more than --max-rejects (a share of
    all rows), no manifest is written. A build that was stopped goes on where it was, with the same command.

    --dataset: which archive SRC is; auto tells by the columns of its tables, or of --table=FILE; csv is a --table=FILE
    of your own, with the columns path, patient, maybe split, key, view, sex and age, and one a finding.
    docs/archives.md has a line for each archive.
    --dataset=folder: every image and DICOM file under SRC; patient, view, sex, age and date from DICOM's tags, no
    labels, splits by a hash of patients. --table=FILE then gives labels of some: a column path or key, and findings.
    --patient-from=parent or REGEX: whose the images are that no tag names: of the patient that the folder they lie in
    is called after, or that the one group of REGEX finds in the path. Without it each counts as its own patient.
    --findings=A,B: which columns of --table are findings. Without it those are whose every cell is 1, 0, -1 or blank
    and whose name may be a finding's; the build says which it does not take.
    --votes=majority, any or all: how labels of several readers of one image become one, of VinDr or of a table of your
    own: 1 where most, one or all of them say so; majority leaves a tie uncertain. The build says how they disagree.
    --shard-size: images in a shard. --seed: of their order. --workers: processes, 0 for one a core.
    --duplicates: what becomes of a picture (equal pixels, as they go into the shards) that is in two splits or under
    two patients. keep, the default, keeps them, so that counts and official splits are the archive's; drop leaves out
    all copies but one, test's before valid's before train's; error ends the build. In each case they are counted and
    listed in duplicates.csv.
    --partners=K: keep up to K + 1 images of a patient together in one shard, for python -m train
    --patient-positive. It takes no room, and makes other shards than without.
    --deidentify=FILE: name images and patients by hashes keyed with the secret in FILE, which is made where it is not
    there; in tars, indexes and rejects.csv, and so in all that is made of them. Ages over 90 become 90, dates are left
    out. What is written in the pixels stays. python -m shard names lists which is which.
    --allow-outside=true: paths of the table may lead out of SRC.
    --part=K --parts=N: build a part, 0 to N - 1, on any machine; then: python -m shard merge OUT. In a Slurm job array
    both come from the array; --part=0 --parts=1 builds all.
    """
    part, parts = choose_part(part, parts)
    check_numbers(size=(size, 16, LARGEST_SIZE), quality=(quality, 1, 100), shard_size=(shard_size, 1, 10**7),
                  parts=(parts, 1, 10**5), part=(part, 0, parts - 1), workers=(workers, 0, 4096),
                  partners=(partners, 0, shard_size - 1), seed=(seed, 0, 2**63))  # fmt: skip
    content = read_table(src, dataset, table, allow_outside, patient_from, workers, findings, votes)
    rows = len(content.rows) + len(content.rejects)
    check_max_rejects(content.rejects, rows, max_rejects, place=f"the table of {src}")
    pseudonyms = Pseudonyms(read_secret(deidentify, out)) if deidentify else None
    if pseudonyms:
        content = pseudonyms.hide(content)
    # Neither of the first and last has a name where there is none: shards of before they had one are still those.
    settings = {
        **({"deidentified": pseudonyms.fingerprint()} if pseudonyms else {}), "dataset": content.dataset, "size": size,
        "encoding": encoding, "quality": quality, "shard_size": shard_size, "seed": seed, "rows": rows,
        "table": _table_hash(content), "synthetic": is_phantom(src), **({"partners": partners} if partners else {}),
    }  # fmt: skip
    software = {"sharder": SHARDER, **{name: version_of(name) for name in ("pillow", "simplejpeg")}}
    if dicom.any_dicom_suffix(content.rows["path"]):
        software |= _dicom_readers()
    if _is_built(out, settings, duplicates):
        return
    (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    with locked(out / UNFINISHED, "whole", shared=parts > 1), locked(out / UNFINISHED, f"part-{part}-of-{parts}"):
        begin(out, settings, software)
        notes = [note.text if pseudonyms else str(note) for note in content.notes]
        for note in notes if part == 0 else ():
            print(f"{src if content.dataset == 'folder' else table or src}: {note}")
        plan = Assignment(content, shard_size, seed, partners)
        if partners and part == 0:
            _say_partners(plan, len(content.rows))
        jobs = (Job(planned, content.findings, src, out, size, encoding, quality, pseudonyms is not None)
                for planned in plan.part(part, parts))  # fmt: skip
        shards, images = plan.count(part, parts)
        records = list(parallel_map(jobs, shards, write_shard, images=images, label="sharding",
                                    workers=workers or cores()))
        for record in records:  # those of DICOM files with any other ending
            software |= record.readers
        whole = {"settings": settings, "software": software, "findings": content.findings, "part": part,
                 "parts": parts, "duplicates": duplicates, "rejects": content.rejects if part == 0 else [],
                 "shards": records, "notes": notes, "tables": content.tables}  # fmt: skip
        if parts == 1:
            finish(out, [whole], max_rejects, duplicates)
        else:
            _write_part(out, whole, images)


def _write_part(out: Path, whole: dict[str, Any], images: int) -> None:
    """Write what `merge` needs to know of a part with so many rows."""
    part, parts = whole["part"], whole["parts"]
    write_bytes(out / part_name(part, parts), json.dumps(whole, default=asdict, allow_nan=False).encode())
    rejected = sum(len(record.rejects) for record in whole["shards"])
    print(f"{out}: part {part} of {parts} (counted from 0) done, {images - rejected} images, {rejected} rejected; when "
          f"all parts are: python -m shard merge {out}")


def _say_partners(plan: Assignment, images: int) -> None:
    with_partners, copies = plan.count_partners()
    print(f"--partners: {with_partners} of {images} images ({with_partners / max(1, images):.0%}) lie in one shard "
          f"with others of their patient; 0 bytes more on the disk (copies beside each image would be {copies} images, "
          f"{copies / max(1, images):.1f} times as much again)")  # fmt: skip


def write_shard(job: Job) -> ShardRecord:
    """Write one tar, its index and its record, or return the record where all that is done already."""
    stem, split, rows = job.planned
    done = read_record(job.out, stem)
    if done is not None and _is_still_true(done, job):
        tick(len(rows), len(done.rejects))
        return done
    tar, index = job.out / f"{stem}.tar", job.out / f"{stem}.idx"
    kept, rejects, pictures = [], [], dict[str, Picture]()
    readers: dict[str, str] = {}
    with atomic_write(tar) as file, TarWriter(file) as writer:
        for row in rows:
            readers = readers or (_dicom_readers() if dicom.is_dicom_file(job.src / row.path) else {})
            try:
                grey, content, as_is = _encode(job, row)
            except UnreadableImage as error:
                rejects.append(_reject(job, row, error))
                tick(rejected=1)
                continue
            writer.add(row.key, {ENDINGS[job.encoding]: content, "json": _describe(job, row)})
            pictures[row.key] = describe_picture(grey, histogram(grey), as_is, row.patient,
                                                 "" if job.hide_paths else row.path)  # fmt: skip
            kept.append(row)
            tick()
    write_bytes(index, writer.index())
    if not kept:
        tar.unlink()
        index.unlink()
    shard = Shard(
        tar=tar.name, index=index.name, split=split, samples=len(kept),
        tar_bytes=tar.stat().st_size if kept else 0, index_bytes=index.stat().st_size if kept else 0,
        tar_sha256=sha256_of(tar) if kept else "", index_sha256=sha256_of(index) if kept else "",
        **{name: sum(getattr(picture, name) for picture in pictures.values())
           for name in ("pixels", "pixel_sum", "pixel_square_sum", "not_encoded")},
    )  # fmt: skip
    patients = sorted({row.patient for row in kept})
    record = ShardRecord(job.planned.sha256(), shard, _count_labels(kept, job.findings), patients, rejects, readers,
                         count_demographics((row.sex, row.age, row.view) for row in kept),
                         {key: picture.pack() for key, picture in pictures.items()})  # fmt: skip
    record.write(job.out, stem)
    return record


def _encode(job: Job, row: Row) -> tuple[npt.NDArray[np.uint8], bytes, bool]:
    """The pixels of a row, their bytes in the shard, and whether those are the source's. Raises UnreadableImage."""
    grey, source = load_grey_and_bytes(job.src / row.path, job.size)
    if job.encoding == "raw":
        grey = center_crop(grey, job.size)
        return grey, grey.tobytes(), False
    kept = strip_metadata(source, grey)
    return grey, kept or encode_jpeg(grey, job.quality), kept is not None


def _dicom_readers() -> dict[str, str]:
    return {name: version_of(name) for name in dicom.DECODER_PACKAGES}


def _reject(job: Job, row: Row, error: UnreadableImage) -> Reject:
    """A line of rejects.csv. With the path go a reason's details: a decoder may quote the file's header."""
    if job.hide_paths:
        return row.key, "", str(error).partition(":")[0]
    return row.key, row.path, str(error)


def _describe(job: Job, row: Row) -> bytes:
    labels = dict(zip(job.findings, row.labels, strict=True))
    date = {"date": row.date} if row.date else {}
    return json.dumps({"patient": row.patient, "split": job.planned.split, "view": row.view, "sex": row.sex,
                       "age": row.age, **date, "labels": labels}, allow_nan=False).encode()  # fmt: skip


def _count_labels(rows: list[Row], findings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    counts = {}
    for number, finding in enumerate(findings):
        found = Counter(row.labels[number] for row in rows)
        counts[finding] = {"1": found[1], "0": found[0], "-1": found[-1], "blank": found[None]}
    return counts


def _is_still_true(done: ShardRecord, job: Job) -> bool:
    """Whether a finished shard is there, of these rows and readers, and what it left out is still not to be had."""
    if done.readers not in ({}, _dicom_readers()):
        return False
    shard = done.shard
    for name, size in ((shard.tar, shard.tar_bytes), (shard.index, shard.index_bytes)):
        file = job.out / name
        if size and not (file.is_file() and file.stat().st_size == size):
            return False
    return done.rows_sha256 == job.planned.sha256() and done.rejects == list(_rejected_again(done.rejects, job))


def _rejected_again(rejects: list[Reject], job: Job) -> Iterator[Reject]:
    rows = {row.key: row for row in job.planned.rows}
    for key, _, _ in rejects:
        try:
            _encode(job, rows[key])
        except UnreadableImage as error:
            yield _reject(job, rows[key], error)


def _table_hash(table: Table) -> str:
    """A hash of all rows, kept and rejected, whatever their order."""
    digest = hashlib.sha256()
    rows = table.rows.sort_values("key")
    for start in range(0, len(rows), 10_000):
        digest.update(rows.iloc[start : start + 10_000].to_csv(index=False).encode())
    digest.update(json.dumps(sorted(table.rejects), allow_nan=False).encode())
    return digest.hexdigest()[:16]


def _is_built(out: Path, settings: dict[str, Any], duplicates: Policy) -> bool:
    """Whether `out` holds these very shards; another build's are never overwritten."""
    if not (out / MANIFEST).exists():
        return False
    found = read_manifest(out)
    # A policy has no effect where no picture is there twice: then the manifest names none.
    policy = {"duplicates": duplicates} if found.duplicates else {}
    difference = first_difference({**found.settings, **({"duplicates": found.duplicates["policy"]} if policy else {})},
                                  {**settings, **policy})  # fmt: skip
    if difference:
        raise InputError(f"{out}: holds shards of another build ({difference}); "
                         "choose another folder or remove this one")
    clear_away(out)
    print(f"{out}: these shards are built already; nothing to do" + (
        f" (to try its {found.rejected} rejected rows again, build into a new folder)" if found.rejected else ""))
    return True
