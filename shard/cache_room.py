"""Room in the cache: its size limit, and the removal of tars to stay below it."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from shard.errors import InputError
from shard.files import is_locked, locked

LIMIT = "CXR_CACHE_GB"
PART = ".part"  # suffix of a tar that is being fetched
STALE_S = 120.0  # a part that nobody has written to for longer is what a killed process left


def limit_bytes() -> float:
    """Return the size limit of the cache in bytes; infinity if none is set. Raises InputError if it is invalid."""
    text = os.environ.get(LIMIT) or "0"
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise InputError(f"{LIMIT}={text}: must be a number of GB, or 0 for no limit")
    return limit * 1e9 or math.inf


def part_path(folder: Path, name: str, size: int) -> Path:
    """Return the path under which a file is fetched; it states the final size, for make_room."""
    return folder / f".{name}.{size}{PART}"


def make_room(cache: Path, part: Path, size: int) -> None:
    """Create an empty file for a tar, after removing others until the limit leaves room for it.

    The least recently used go first. The name of a part states its final size, which counts from the start. Raises
    InputError if there is no room.
    """
    limit = limit_bytes()
    while True:
        with locked(cache, "cache", timeout_s=math.inf):
            used, arriving = _remove_until(cache, limit - size) if limit < math.inf else (0, 0)
            if used + arriving + size <= limit:
                part.touch()
                return
        if not arriving:
            raise InputError(f"--cache-gb={limit / 1e9:g}: {cache} has no room for {part.parent.name}/{part.name}; "
                             "raise the limit")  # fmt: skip
        time.sleep(0.1)  # what others are fetching can be removed once it is complete


def _remove_until(cache: Path, limit: float) -> tuple[int, int]:
    """Remove tars until all files fit into `limit` bytes; return the bytes of files left, and of tars being fetched."""
    used, arriving, tars = 0, 0, list[tuple[float, int, Path]]()
    for path, status in _files(cache):
        if path.suffix == PART:
            name, final = path.name[1:-len(PART)].rsplit(".", 1)
            if time.time() - status.st_mtime > STALE_S and not is_locked(path.parent, name):
                path.unlink(missing_ok=True)
            else:
                arriving += int(final)
            continue
        used += status.st_size
        if path.suffix == ".tar":
            tars.append((status.st_mtime, status.st_size, path))
    for _, size, path in sorted(tars):
        if used + arriving <= limit:
            break
        path.unlink(missing_ok=True)
        used -= size
    return used, arriving


def _files(cache: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in cache.glob("shards-*/*"):
        with contextlib.suppress(FileNotFoundError):  # just renamed or removed
            yield path, path.stat()
