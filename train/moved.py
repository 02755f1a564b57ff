"""Find files of a run after it was moved or is read from another folder."""

from __future__ import annotations

import os
from pathlib import Path

from shard.address import is_address
from shard.manifest import MANIFEST


def resolve_moved_path(path: str, base: str, base_now: Path, required: str = "") -> Path | None:
    """Find a path that was recorded when the folder now at `base_now` was at `base`; None if it does not exist.

    It may still be at `path`, or at the same place relative to the moved folder. The folder to which relative paths
    referred is unknown. required: a file that `path` must contain.
    """
    places = [Path(path)] if Path(path).is_absolute() else []
    if Path(path).is_absolute() == Path(base).is_absolute():
        places.append(Path(os.path.normpath(base_now.absolute() / os.path.relpath(path, base))))
    if not Path(path).is_absolute():
        places.append(Path(path).absolute())
    return next((place for place in places if (place / required).exists()), None)


def locate_shards(shards: str, base: str, base_now: Path) -> str | None:
    """Find shards that were recorded as `shards`, as resolve_moved_path does; an address is where it was."""
    if is_address(shards):
        return shards
    found = resolve_moved_path(shards, base, base_now, MANIFEST)
    return None if found is None else str(found)
