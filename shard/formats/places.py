"""Where the images lie that a table names: archives are unpacked, flattened and re-hosted in many ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from shard.formats.rows import ENDING
from shard.note import Note, counted
from shard.progress import Progress
from shard.walk import TROUBLES, Tally, walk

# Of two files of one image the first of these: what is decoded soonest, and DICOM where there is no other.
_BEST = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".pgm", ".gif", "", ".dcm", ".dicom")
_AT_ONCE = 2000  # files


def find_files(
    src: Path, table: Path, wanted: Callable[[str], bool], parts: int = 1
) -> tuple[dict[str, str], list[Note]]:
    """Name → the path, relative to `src`, of the image of that name; and what to say of the images found.

    wanted: whether a name is of an image of the table; a name is the last `parts` parts of a path, without ending.
    Where an image lies there several times, as PNG and as DICOM, in its size and in a smaller one, the notes say which
    file is taken.
    """
    found = dict[str, str]()
    left_out: Tally = {}
    again, strangers = list[tuple[str, str]](), list[str]()
    with Progress("looking for images", None, unit="files") as progress:
        files, done = walk(src, left_out), 0
        while some := list(islice(files, _AT_ONCE)):
            for path in some:
                name = name_of(path, parts)
                if wanted(name) and _rank(path) < len(_BEST):
                    other = found.setdefault(name, path)
                    if other != path:
                        found[name], less = sorted((other, path), key=lambda path: (_rank(path), len(path), path))
                        again.append((found[name], less))
                elif re.search(ENDING, path):
                    strangers.append(path)
            done += len(some)
            progress.show(done)
    notes = [Note(f"{count} {reason}", example) for reason, (count, example) in left_out.items() if reason in TROUBLES]
    if again:
        notes.append(Note(f"{counted(len(again), 'image lies', 'images lie')} there more than once; one file is taken",
                          "{} and not {}".format(*again[0])))  # fmt: skip
    if strangers:
        images = counted(len(strangers), "image is", "images are")
        notes.append(Note(f"{images} in no row of {table.name} and left out", strangers[0]))
    return found, notes


def name_of(path: str, parts: int = 1) -> str:
    """The last parts of a path, without ending."""
    return "/".join(re.sub(ENDING, "", path).split("/")[-parts:])


def best_of(paths: Iterable[str]) -> dict[str, str]:
    """Name → the path to take, of paths whose last part without ending may be the same."""
    found = dict[str, str]()
    for path in paths:
        other = found.setdefault(name_of(path), path)
        found[name_of(path)] = min(other, path, key=lambda path: (_rank(path), len(path), path))
    return found


def _rank(path: str) -> int:
    ending = re.search(ENDING, path)
    last = path.rpartition("/")[2]
    text = ending[0].lower() if ending else "" if "." not in last else "other"
    return _BEST.index(text) if text in _BEST else len(_BEST)
