"""Scan a folder for images, and read the DICOM tags of each."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from shard.dicom import image as dicom
from shard.dicom.tags import read_tags
from shard.errors import InputError
from shard.formats.rows import IMAGE_SUFFIX
from shard.note import Note, counted
from shard.pool import parallel_map, tick
from shard.progress import Progress
from shard.walk import Reason, Tally, add, walk

FILES_A_JOB = 2000
COLUMNS = ("path", "patient", "study", "view", "sex", "age", "date")
_HEAD = 4096  # bytes at the start of a file that determine its kind
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\0\0\0\x0cjP  ",
               b"\xff\x4f\xff\x51", b"P5", b"P6")  # fmt: skip
_RADIOGRAPHS = {"CR", "DX", "RG", "DR", "PX", "IO", ""}  # values of Modality; DR is not in the standard, but common
_MOST_NOTES = 12
_UNREADABLE = Reason("file that can't be read", "files that can't be read")
_NO_TAGS = Reason("file whose tags can't be read", "files whose tags can't be read")


class Scanned(NamedTuple):
    """The result of scanning some files.

    rows: one per image, as COLUMNS. dicoms: number of DICOM images. tags: unusual tags, such as "files of modality CT",
    with their counts. skipped: reasons why files are not images, with their counts.
    """

    rows: list[tuple[str, ...]]
    dicoms: int
    tags: Tally[Reason]
    skipped: Tally[Reason]


def scan(src: Path, workers: int) -> tuple[pd.DataFrame, list[Note]]:
    """Return the images under `src`, one row each with the columns COLUMNS, and notes about them and other files.

    Images are recognised by their first bytes or their suffix. Raises InputError if there is none.
    """
    skipped: Tally[Reason] = {}
    paths = _list_files(src, skipped)
    jobs = ((src, paths[start : start + FILES_A_JOB]) for start in range(0, len(paths), FILES_A_JOB))
    count = -(-len(paths) // FILES_A_JOB)
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    interned: dict[str, str] = {}  # a patient's many images share one string object, to save memory
    tags: Tally[Reason] = {}
    dicoms = 0
    # The build that follows uses the same fork server, which preloads modules only when it starts.
    for part in parallel_map(jobs, count, scan_files, images=len(paths), label="scanning", workers=workers,
                             unit="files", preload="shard.preload"):  # fmt: skip
        dicoms += part.dicoms
        for name, texts in zip(COLUMNS, zip(*part.rows, strict=True), strict=False):
            columns[name] += texts if name == "path" else (interned.setdefault(text, text) for text in texts)
        for total, tally in ((tags, part.tags), (skipped, part.skipped)):
            for reason, (number, example) in tally.items():
                add(total, reason, example, number)
    if not columns["path"]:
        found_instead = "; ".join(map(str, _as_notes(skipped))) or "it is empty"
        raise InputError(f"{src}: contains no images ({found_instead}); SRC is the folder that contains the images")
    notes = [Note(f"{counted(len(columns['path']), 'image', 'images')} found, {dicoms} of them DICOM")]
    notes += [note._replace(text=f"{note.text}; read anyway") for note in _as_notes(tags)]
    return pd.DataFrame(columns), [*notes, *_as_notes(skipped)]


def _list_files(src: Path, skipped: Tally[Reason]) -> list[str]:
    paths: list[str] = []
    with Progress("looking for files", None, unit="files") as progress:
        files = walk(src, skipped)
        while chunk := list(islice(files, FILES_A_JOB)):
            paths += chunk
            progress.show(len(paths))
    return paths


def scan_files(job: tuple[Path, list[str]]) -> Scanned:
    """Determine which files in a folder are images, and read their tags. job: the folder and paths relative to it."""
    src, paths = job
    scanned = Scanned([], 0, {}, {})
    dicoms = 0
    for path in paths:
        tick()
        row, is_dicom = _scan_file(src, path, scanned)
        dicoms += is_dicom
        if row:
            scanned.rows.append(row)
    return scanned._replace(dicoms=dicoms)


def _scan_file(src: Path, path: str, scanned: Scanned) -> tuple[tuple[str, ...] | None, bool]:
    """Return the row of a file (None if it is not an image) and whether it is DICOM. Counts reasons in `scanned`."""
    if path.rpartition("/")[2].upper().startswith("DICOMDIR"):  # contains no image, damaged or not
        add(scanned.skipped, _no_image("DICOMDIR"), path)
        return None, False
    has_suffix = re.search(IMAGE_SUFFIX, path) is not None
    no_tags = (path, "", "", "", "", "", "")
    try:
        with (src / path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        if has_suffix:  # the build lists it in rejects.csv
            return no_tags, False
        add(scanned.skipped, _UNREADABLE, f"{path} ({error.strerror})")
        return None, False
    is_dicom = dicom.is_dicom(head) or path.lower().endswith(dicom.SUFFIXES)
    if not is_dicom:
        if has_suffix or head.startswith(_SIGNATURES) or head[8:12] == b"WEBP":
            return no_tags, False
        suffix = Path(path).suffix.lower()[:12] or "no suffix"
        reason = Reason(f"file that is not an image ({suffix})", f"files that are not images ({suffix})")
        add(scanned.skipped, reason, path)
        return None, False
    if not dicom.has_pydicom():
        raise InputError(f"{src / path}: is a DICOM file; to read it: pip install '.[dicom]'")
    tags = read_tags(src / path)
    if tags is None:
        add(scanned.tags, _NO_TAGS, path)
        return no_tags, True
    if not tags.is_image:
        add(scanned.skipped, _no_image(tags.kind), path)
        return None, False
    if tags.modality not in _RADIOGRAPHS:
        add(scanned.tags, _files_of(f"modality {tags.modality}, not a radiograph's"), path)
    if tags.body_part not in ("CHEST", "THORAX", ""):
        add(scanned.tags, _files_of(f"body part {tags.body_part[:30]}"), path)
    return (path, tags.patient, tags.study, tags.view, tags.sex, tags.age, tags.date), True


def _no_image(kind: str) -> Reason:
    return Reason(f"DICOM file without an image ({kind})", f"DICOM files without an image ({kind})")


def _files_of(what: str) -> Reason:
    return Reason(f"file of {what}", f"files of {what}")


def _as_notes(tally: Tally[Reason]) -> list[Note]:
    """Return one note per reason, the most frequent first, and one for all reasons beyond _MOST_NOTES."""
    ordered = sorted(tally.items(), key=lambda item: (-item[1][0], item[0]))
    notes = [Note(counted(count, *reason), example) for reason, (count, example) in ordered[:_MOST_NOTES]]
    rest = sum(count for _, (count, _) in ordered[_MOST_NOTES:])
    return [*notes, Note(counted(rest, "other file is skipped", "other files are skipped"))] if rest else notes
