"""build: write the images of a table as tars with indexes and a manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shard.assignment import Assignment
from shard.cli import check_numbers
from shard.deidentify import Pseudonyms, read_secret
from shard.dicom.image import any_dicom_suffix
from shard.duplicates import Policy
from shard.errors import InputError
from shard.files import locked, write_bytes
from shard.finish import check_max_rejects, clear_away, finish, part_name
from shard.formats import Votes
from shard.machine import choose_part, cores, version_of
from shard.manifest import LARGEST_SIZE, MANIFEST, read_manifest
from shard.phantom.archive import is_phantom
from shard.pool import parallel_map
from shard.record import SHARDER, UNFINISHED, begin_build, first_difference
from shard.table import Dataset, Table, read_table
from shard.write_shard import Encoding, Job, dicom_readers, write_shard


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
                                    workers=workers or cores()))
        for record in records:  # includes the readers of DICOM files with another extension
            software |= record.readers
        result = {"settings": settings, "software": software, "findings": content.findings, "part": part,
                  "parts": parts, "duplicates": duplicates, "rejects": content.rejects if part == 0 else [],
                  "shards": records, "notes": notes, "tables": content.tables}  # fmt: skip
        if parts == 1:
            finish(out, [result], max_rejects, duplicates)
        else:
            _write_part(out, result, images)


def _make_settings(
    table: Table, pseudonyms: Pseudonyms | None, partners: int, synthetic: bool, **flags: Any
) -> dict[str, Any]:
    """Collect everything that decides the bytes of the shards, except the images.

    Omits "deidentified" and "partners" if they are not in use: older versions wrote shards without these settings.
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
    """Lock one part of a build in `out`. Several parts may run at once, but not next to a build of a single part."""
    folder = out / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "whole", shared=parts > 1), locked(folder, f"part-{part}-of-{parts}"):
        yield


def _print_partners(assignment: Assignment, images: int) -> None:
    with_partners, copies = assignment.count_partners()
    print(f"--partners: {with_partners} of {images} images ({with_partners / max(1, images):.0%}) share a shard with "
          f"others of their patient; this takes no disk space (copies next to each image would be {copies} images, "
          f"{copies / max(1, images):.1f} times as many again)")  # fmt: skip


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
    """Return whether `out` contains these very shards. Raises InputError if it contains those of another build."""
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
    print(f"{out}: these shards are built already; nothing to do" + (
        f" (to try the {found.rejected} rejected rows again, build into a new folder)" if found.rejected else ""))
    return True
