"""Find the image files that a table names, however the archive was unpacked, flattened or re-hosted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path

from shard.formats.rows import IMAGE_SUFFIX, strip_suffix
from shard.note import Note, counted
from shard.progress import Progress
from shard.walk import TROUBLES, Reason, Tally, walk

# If an image has several files, the first of these suffixes is read: the fastest to decode, and DICOM last.
_PREFERRED = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".pgm", ".gif", "", ".dcm", ".dicom")
_CHUNK = 2000  # files between two progress updates


def find_images(
    src: Path, table: Path, is_listed: Callable[[str], bool], parts: int = 1
) -> tuple[dict[str, str], list[Note]]:
    """Map the name of each listed image to its path relative to `src`, with notes.

    is_listed: whether the table lists an image of that name. parts: how many of a path's last parts make the name,
    see image_name. If an image has several files (PNG and DICOM, full size and small), a note says which one is read.
    """
    found = dict[str, str]()
    skipped: Tally[Reason] = {}
    repeated, unlisted = list[tuple[str, str]](), list[str]()
    with Progress("looking for images", None, unit="files") as progress:
        files, done = walk(src, skipped), 0
        while chunk := list(islice(files, _CHUNK)):
            for path in chunk:
                name = image_name(path, parts)
                if is_listed(name) and _rank(path) < len(_PREFERRED):
                    other = found.setdefault(name, path)
                    if other != path:
                        found[name], unread = sorted((other, path), key=_preference)
                        repeated.append((found[name], unread))
                elif re.search(IMAGE_SUFFIX, path):
                    unlisted.append(path)
            done += len(chunk)
            progress.show(done)
    notes = [Note(counted(count, *reason), example)
             for reason, (count, example) in skipped.items() if reason in TROUBLES]  # fmt: skip
    if repeated:
        notes.append(Note(f"{counted(len(repeated), 'image has', 'images have')} more than one file; one is read",
                          "{} and not {}".format(*repeated[0])))  # fmt: skip
    return found, [*notes, *note_unlisted(unlisted, table)]


def note_unlisted(paths: Collection[str], table: Path) -> list[Note]:
    """A note about images that have no row in the table. The first path is the example."""
    if not paths:
        return []
    images = counted(len(paths), f"image is not listed in {table.name} and is skipped",
                     f"images are not listed in {table.name} and are skipped")  # fmt: skip
    return [Note(images, next(iter(paths)))]


def image_name(path: str, parts: int = 1) -> str:
    """Return the last parts of a path, without the file suffix."""
    return "/".join(strip_suffix(path).split("/")[-parts:])


def preferred_paths(paths: Iterable[str]) -> dict[str, str]:
    """Map each image name to its path; if several paths have one name, to the preferred one."""
    found = dict[str, str]()
    for path in paths:
        name = image_name(path)
        found[name] = min(found.get(name, path), path, key=_preference)
    return found


def _preference(path: str) -> tuple[int, int, str]:
    return _rank(path), len(path), path


def _rank(path: str) -> int:
    """Return the index of a path's suffix in _PREFERRED, or len(_PREFERRED) for any other suffix."""
    suffix = re.search(IMAGE_SUFFIX, path)
    file = path.rpartition("/")[2]
    text = suffix[0].lower() if suffix else "" if "." not in file else "other"
    return _PREFERRED.index(text) if text in _PREFERRED else len(_PREFERRED)
