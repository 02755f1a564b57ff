"""Which files under a folder are images, and what DICOM's tags say of them."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from shard.dicom import image as dicom
from shard.dicom.tags import read_tags
from shard.errors import InputError
from shard.formats.rows import ENDING
from shard.note import Note
from shard.pool import parallel_map, tick
from shard.progress import Progress
from shard.walk import Tally, add, walk

FILES_A_JOB = 2000
HEAD = 4096  # bytes; what a file is shows in the first of them
COLUMNS = ("path", "patient", "study", "view", "sex", "age", "date")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\0\0\0\x0cjP  ",
               b"\xff\x4f\xff\x51", b"P5", b"P6")  # fmt: skip
_RADIOGRAPHS = {"CR", "DX", "RG", "DR", "PX", "IO", ""}  # Modality; DR is no defined term, and common


class Found(NamedTuple):
    """What a chunk of files holds. rows: as COLUMNS; tags: e.g. "modality CT" → how many; left_out: see walk."""

    rows: list[tuple[str, ...]]
    dicoms: int
    tags: Tally
    left_out: Tally


def scan(src: Path, workers: int) -> tuple[pd.DataFrame, list[Note]]:
    """The images under `src`, one row each, of COLUMNS; and what a user should know of them and of the other files.

    Files are told by their first bytes or their ending. Raises InputError where none is an image.
    """
    left_out: Tally = {}
    paths = _list_files(src, left_out)
    jobs = ((src, paths[start : start + FILES_A_JOB]) for start in range(0, len(paths), FILES_A_JOB))
    count = -(-len(paths) // FILES_A_JOB)
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    known: dict[str, str] = {}  # each text once: of a patient's hundred images, one name
    tags: Tally = {}
    dicoms = 0
    for found in parallel_map(jobs, count, inspect, images=len(paths), label="scanning", workers=workers, unit="files"):
        dicoms += found.dicoms
        for name, texts in zip(COLUMNS, zip(*found.rows, strict=True), strict=False):
            columns[name] += texts if name == "path" else (known.setdefault(text, text) for text in texts)
        for total, part in ((tags, found.tags), (left_out, found.left_out)):
            for reason, (number, example) in part.items():
                add(total, reason, example, number)
    if not columns["path"]:
        found_instead = "; ".join(map(str, _say(left_out))) or "it is empty"
        raise InputError(f"{src}: no image is under it ({found_instead}); SRC is the folder that holds the images")
    notes = [Note(f"{len(columns['path'])} images found, {dicoms} of them DICOM")]
    notes += [note._replace(text=f"{note.text}; taken all the same") for note in _say(tags)]
    return pd.DataFrame(columns), [*notes, *_say(left_out)]


def _list_files(src: Path, left_out: Tally) -> list[str]:
    paths: list[str] = []
    with Progress("looking for files", None, unit="files") as progress:
        files = walk(src, left_out)
        while some := list(islice(files, FILES_A_JOB)):
            paths += some
            progress.show(len(paths))
    return paths


def inspect(job: tuple[Path, list[str]]) -> Found:
    """Which of the files are images, and what their tags say."""
    src, paths = job
    found = Found([], 0, {}, {})
    dicoms = 0
    for path in paths:
        tick()
        row, is_dicom = _inspect_one(src, path, found)
        dicoms += is_dicom
        if row:
            found.rows.append(row)
    return found._replace(dicoms=dicoms)


def _inspect_one(src: Path, path: str, found: Found) -> tuple[tuple[str, ...] | None, bool]:
    """The row of a file, None where it is no image; and whether it is DICOM. Counts what it saw in `found`."""
    if path.rpartition("/")[2].upper().startswith("DICOMDIR"):  # damaged or not, it holds no image
        add(found.left_out, "DICOM files without an image (DICOMDIR)", path)
        return None, False
    named_so = re.search(ENDING, path) is not None
    no_tags = (path, "", "", "", "", "", "")
    try:
        with (src / path).open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        if named_so:  # it becomes a row of rejects.csv
            return no_tags, False
        add(found.left_out, "files that can't be read", f"{path} ({error.strerror})")
        return None, False
    is_dicom = dicom.is_dicom(head) or path.lower().endswith(dicom.SUFFIXES)
    if not is_dicom:
        if named_so or head.startswith(_SIGNATURES) or head[8:12] == b"WEBP":
            return no_tags, False
        add(found.left_out, f"files that are no images ({Path(path).suffix.lower()[:12] or 'no ending'})", path)
        return None, False
    if not dicom.has_pydicom():
        raise InputError(f"{src / path}: is a DICOM file; to read them: pip install '.[dicom]'")
    tags = read_tags(src / path)
    if tags is None:
        add(found.tags, "files whose tags can't be read", path)
        return no_tags, True
    if not tags.is_image:
        add(found.left_out, f"DICOM files without an image ({tags.kind})", path)
        return None, False
    if tags.modality not in _RADIOGRAPHS:
        add(found.tags, f"files of modality {tags.modality}, which is no radiograph's", path)
    if tags.body_part not in ("CHEST", "THORAX", ""):
        add(found.tags, f"files of body part {tags.body_part[:30]}", path)
    return (path, tags.patient, tags.study, tags.view, tags.sex, tags.age, tags.date), True


def _say(tally: Tally) -> list[Note]:
    """A note a reason, the commonest first; of more than a dozen the rest together."""
    ordered = sorted(tally.items(), key=lambda item: (-item[1][0], item[0]))
    notes = [Note(f"{count} {reason}", example) for reason, (count, example) in ordered[:12]]
    rest = sum(count for _, (count, _) in ordered[12:])
    return [*notes, Note(f"{rest} other files are left out")] if rest else notes
