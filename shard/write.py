"""build: write the images of a table as tars with indexes and a manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from shard.assignment import Assignment
from shard.deidentify import Pseudonyms, read_secret
from shard.dicom.image import any_dicom_suffix
from shard.duplicates import Policy
from shard.errors import InputError
from shard.files import locked, write_bytes
from shard.finish import check_max_rejects, clear_away, finish, part_name
from shard.flags import PART, PARTS, WORKERS, Flag, check_numbers, validate_call
from shard.machine import choose_part, cores, version_of
from shard.manifest import LARGEST_SIZE, MANIFEST, read_manifest
from shard.phantom.archive import is_phantom
from shard.pool import parallel_map
from shard.record import SHARDER, UNFINISHED, begin_build, first_difference
from shard.source_flags import (
    AllowOutside,
    DatasetFlag,
    FindingsFlag,
    MaxRejects,
    PatientFrom,
    Source,
    TableFlag,
    VotesFlag,
)
from shard.table import Table, read_table
from shard.write_shard import Encoding, Job, dicom_readers, write_shard


@validate_call
def build(
    src: Source,
    out: Annotated[Path, Flag("Folder to write the shards to.")], *,
    dataset: DatasetFlag = "auto",
    table: TableFlag = None,
    findings: FindingsFlag = None,
    votes: VotesFlag = None,
    patient_from: PatientFrom = None,
    allow_outside: AllowOutside = False,
    size: Annotated[int, Flag("Short side of a stored image in pixels. Smaller images are not enlarged.", "images",
                              16, LARGEST_SIZE)] = 256,
    encoding: Annotated[Encoding, Flag("Format of a stored image: a grey JPEG, or raw bytes of its central square.",
                                       "images")] = "jpeg",
    quality: Annotated[int, Flag("JPEG quality. Grey JPEGs that are small enough are copied as they are.", "images",
                                 1, 100)] = 95,
    duplicates: Annotated[Policy, Flag("What to do with equal images in two splits or of two patients: list them and "
                                       "keep all, drop all but one, or stop.", "images")] = "keep",
    max_rejects: MaxRejects = 0.01,
    deidentify: Annotated[Path | None, Flag("Replace names of images and patients by hashes keyed with the secret in "
                                            "FILE, which is created if it does not exist.", "images",
                                            metavar="FILE")] = None,
    shard_size: Annotated[int, Flag("Images per shard.", "shards", 1, 10**7)] = 1000,
    partners: Annotated[int, Flag("Keep up to N + 1 images of a patient in one shard, as --patient-positive of python "
                                  "-m train needs.", "shards")] = 0,
    seed: Annotated[int, Flag("Seed of the order of images.", "shards", 0, 2**63)] = 0,
    workers: Annotated[int, replace(WORKERS, group="running")] = 0,
    part: Annotated[int | None, PART] = None,
    parts: Annotated[int | None, PARTS] = None,
) -> None:  # fmt: skip
    """Write a folder of radiographs as shuffled tar shards, with DALI indexes and a manifest.

    The same command resumes a build that was stopped. Rows without a usable image are listed in rejects.csv. See
    docs/archives.md for the flags of each archive and docs/sources.md for what is stored.

        python -m shard build CheXpert-v1.0-small shards
        python -m shard build hospital shards --dataset=csv --table=labels.csv --size=512
        python -m shard build exports shards --dataset=folder --deidentify=secret.txt
    """
    part, parts = choose_part(part, parts)
    check_numbers(parts=(parts, 1, 10**5), part=(part, 0, parts - 1), partners=(partners, 0, shard_size - 1))
    content = read_table(src, dataset, table, allow_outside, patient_from, workers, findings, votes)
    build_table(content, src, out, table, size=size, encoding=encoding, quality=quality, duplicates=duplicates,
                max_rejects=max_rejects, deidentify=deidentify, shard_size=shard_size, partners=partners, seed=seed,
                workers=workers, part=part, parts=parts)  # fmt: skip


def build_table(
    content: Table, src: Path, out: Path, table: Path | None = None, *, size: int = 256, encoding: Encoding = "jpeg",
    quality: int = 95, duplicates: Policy = "keep", max_rejects: float = 0.01, deidentify: Path | None = None,
    shard_size: int = 1000, partners: int = 0, seed: int = 0, workers: int = 0, part: int = 0, parts: int = 1,
    training: bool = True,
) -> None:  # fmt: skip
    """Write the images of a table as shards; the arguments are the flags of build, which reads the table.

    training: whether there must be a training image. Raises InputError as build does.
    """
    rows = len(content.rows) + len(content.rejects)
    check_max_rejects(content.rejects, rows, max_rejects, place=f"the table of {src}")
    pseudonyms = Pseudonyms(read_secret(deidentify, out)) if deidentify else None
    if pseudonyms:
        content = pseudonyms.apply(content)
    settings = _make_settings(content, pseudonyms, partners, is_phantom(src), size=size, encoding=encoding,
                              quality=quality, shard_size=shard_size, seed=seed, rows=rows)  # fmt: skip
    software = _make_software(content)
    if _is_built(out, settings, duplicates):
        return
    with _lock_part(out, part, parts):
        begin_build(out, settings, software)
        notes = [note.text if pseudonyms else str(note) for note in content.notes]
        assignment = Assignment(content, shard_size, seed, partners)
        if part == 0:
            for note in notes:
                print(f"{src if content.dataset == 'folder' else table or src}: {note}")
            if partners:
                _print_partners(assignment, len(content.rows))
        jobs = (Job(assigned, content.findings, src, out, size, encoding, quality, pseudonyms is not None)
                for assigned in assignment.iter_shards(part, parts))  # fmt: skip
        shards, images = assignment.count(part, parts)
        records = list(parallel_map(jobs, shards, write_shard, images=images, label="sharding",
                                    workers=workers or cores(), preload="shard.preload"))
        for record in records:  # includes the readers of DICOM files with other extensions
            software |= record.readers
        result = {"settings": settings, "software": software, "findings": content.findings, "part": part,
                  "parts": parts, "duplicates": duplicates, "rejects": content.rejects if part == 0 else [],
                  "shards": records, "notes": notes, "tables": content.tables}  # fmt: skip
        if parts == 1:
            finish(out, [result], max_rejects, duplicates, training)
        else:
            _write_part(out, result, images)


def _make_settings(
    table: Table, pseudonyms: Pseudonyms | None, partners: int, synthetic: bool, **flags: Any
) -> dict[str, Any]:
    """Collect everything that decides the bytes of the shards, except the images.

    Omits "deidentified" and "partners" if unused: older versions wrote shards without these settings.
    """
    return {
        **({"deidentified": pseudonyms.fingerprint()} if pseudonyms else {}), "dataset": table.dataset, **flags,
        "table": _table_hash(table), "synthetic": synthetic, **({"partners": partners} if partners else {}),
    }  # fmt: skip


def _make_software(table: Table) -> dict[str, str]:
    """Collect the versions of the sharder and of the libraries that decide the bytes of the shards."""
    software = {"sharder": SHARDER, **{name: version_of(name) for name in ("pillow", "simplejpeg")}}
    return software | (dicom_readers() if any_dicom_suffix(table.rows["path"]) else {})


@contextlib.contextmanager
def _lock_part(out: Path, part: int, parts: int) -> Iterator[None]:
    """Lock one part of a build in `out`. Several parts may run at once, but not alongside a build of a single part."""
    folder = out / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "whole", shared=parts > 1), locked(folder, f"part-{part}-of-{parts}"):
        yield


def _print_partners(assignment: Assignment, images: int) -> None:
    with_partners, copies = assignment.count_partners()
    print(f"--partners: {with_partners} of {images} images ({with_partners / max(1, images):.0%}) share a shard with "
          f"others of their patient; this takes no disk space (storing copies next to each image would add {copies} "
          f"images, {copies / max(1, images):.1f} times their number)")  # fmt: skip


def _write_part(out: Path, result: dict[str, Any], images: int) -> None:
    """Write the record of a part, which merge reads. images: the number of rows of the part."""
    part, parts = result["part"], result["parts"]
    write_bytes(out / part_name(part, parts), json.dumps(result, default=asdict, allow_nan=False).encode())
    rejected = sum(len(record.rejects) for record in result["shards"])
    print(f"{out}: part {part} of {parts} (counted from 0) done, {images - rejected} images, {rejected} rejected; when "
          f"all parts are done: python -m shard merge {out}")


def _table_hash(table: Table) -> str:
    """Hash all rows, kept and rejected, in any order."""
    digest = hashlib.sha256()
    rows = table.rows.sort_values("key")
    for start in range(0, len(rows), 10_000):
        digest.update(rows.iloc[start : start + 10_000].to_csv(index=False).encode())
    digest.update(json.dumps(sorted(table.rejects), allow_nan=False).encode())
    return digest.hexdigest()[:16]


def _is_built(out: Path, settings: dict[str, Any], duplicates: Policy) -> bool:
    """Return whether `out` contains exactly these shards. Raises InputError if it contains those of another build."""
    if not (out / MANIFEST).exists():
        return False
    found = read_manifest(out)
    # Without duplicates the policy has no effect, and the manifest contains none.
    policy = {"duplicates": duplicates} if found.duplicates else {}
    difference = first_difference({**found.settings, **({"duplicates": found.duplicates["policy"]} if policy else {})},
                                  {**settings, **policy})  # fmt: skip
    if difference:
        raise InputError(f"{out}: contains shards of another build ({difference}); "
                         "choose another folder or remove this one")
    clear_away(out)
    print(f"{out}: these shards are already built; nothing to do" + (
        f" (to try the {found.rejected} rejected rows again, build into a new folder)" if found.rejected else ""))
    return True
