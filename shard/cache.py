"""The cache of shards that are not on this machine: fetched when needed, checked, and removed again to make room.

CACHE/shards-HASH has the manifest and indexes of one archive and those of its tars that were fetched. Commands read it
like any folder of shards. The environment variables below have the settings, since worker processes need them too.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Annotated

from shard.address import ORIGIN, Address, Place, is_copy
from shard.cache_room import LIMIT, limit_bytes, make_room, part_path
from shard.errors import InputError
from shard.files import locked, sha256_of, write_bytes
from shard.flags import Flag, check_ranges
from shard.manifest import MANIFEST, Manifest, Shard, parse_manifest_text
from shard.progress import Progress
from shard.remote import download, file_size, read_file

FOLDER = "CXR_CACHE"
AT_ONCE = 24  # tars that the smallest cache holds: the 16 that a reader uses (pipeline.fetch_ahead), and some more
CONNECTIONS = 16  # for indexes, which are small

CACHE = Flag("Folder that keeps the shards fetched from an address.", "data", metavar="DIR",
             default="$CXR_CACHE, or ~/.cache/cxr-simclr")  # fmt: skip
CACHE_GB = Flag("Size limit of --cache in GB; above it, the least recently used tars are removed. 0 sets no limit.",
                "data", 0, 10**6, default="$CXR_CACHE_GB, or 0")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """The flags of the cache, for commands that read shards; None leaves the environment's setting."""

    cache: Annotated[Path | None, CACHE] = None
    cache_gb: Annotated[float | None, CACHE_GB] = None

    def __post_init__(self) -> None:
        check_ranges(CacheFlags, vars(self))

    def use(self) -> None:
        """Set folder and size limit of the cache for this process and those that it starts."""
        if self.cache is not None:
            os.environ[FOLDER] = str(self.cache.absolute())
        if self.cache_gb is not None:
            os.environ[LIMIT] = str(self.cache_gb)


_unfinished = set[Path]()  # the parts that this process is fetching


@atexit.register
def _remove_unfinished() -> None:
    """Remove what background threads were still fetching when the process ended."""
    for part in list(_unfinished):
        part.unlink(missing_ok=True)


AS_SET = CacheFlags()  # the cache as the environment sets it


def cache_folder() -> Path:
    """Return the folder of the cache."""
    if folder := os.environ.get(FOLDER):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr-simclr"


def open_shards(place: Place, cache: CacheFlags = AS_SET, *, complete: bool = False) -> Path:
    """Return the folder to read shards from: `place` itself or, for an address, its copy in the cache.

    Fetches the manifest and the indexes of an address; tars follow when they are opened. complete: fetch all tars now,
    for a benchmark that must not measure the network. Raises InputError if a file can't be fetched, or if the size
    limit of the cache is too small.
    """
    cache.use()
    if isinstance(place, Path):
        return place
    folder, manifest = _open(place, cache_folder())
    os.environ[_variable(folder)] = place.text
    _check_limit(place, manifest, len(manifest.shards) if complete else AT_ONCE)
    if complete:
        shards = manifest.shards
        with Progress("fetching", len(shards), "tars") as shown, ThreadPoolExecutor(CONNECTIONS // 4, "fetch") as pool:
            list(shown.counted(pool.map(lambda shard: fetch(folder, shard), shards)))
    return folder


@lru_cache
def _open(address: Address, cache: Path) -> tuple[Path, Manifest]:
    """Fetch the manifest and the indexes, once per process: what changes at the address later does not affect it."""
    content = read_file(address, MANIFEST)
    manifest = parse_manifest_text(content, f"{address}/{MANIFEST}")
    folder = cache / f"shards-{hashlib.sha256(content).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / ORIGIN, f"{address}\n".encode(), shared=True)
    with ThreadPoolExecutor(CONNECTIONS, "fetch") as pool:
        list(pool.map(lambda shard: _fetch_index(folder, address, shard), manifest.shards))
    write_bytes(folder / MANIFEST, content, shared=True)  # last: complete, as a build leaves it, but for the tars
    return folder, manifest


def _check_limit(address: Address, manifest: Manifest, count: int) -> None:
    """Raise InputError if the cache can't hold the `count` largest tars."""
    largest = sorted((shard.tar_bytes for shard in manifest.shards), reverse=True)[:count]
    if sum(largest) > limit_bytes():
        raise InputError(f"--cache-gb={limit_bytes() / 1e9:g}: too small for {address}; {len(largest)} of its tars are "
                         f"needed at once, so give {math.ceil(sum(largest) / 1e6) / 1000:g} or more")  # fmt: skip


def open_tar(folder: Path, shard: Shard) -> IO[bytes]:
    """Open a shard's tar, unbuffered; in the cache, fetch it first if it is missing. Raises InputError as fetch does.

    The open file stays readable if the tar is removed from the cache to make room.
    """
    path = folder / shard.tar
    while is_copy(folder):
        fetch(folder, shard)
        with contextlib.suppress(FileNotFoundError):  # another process has already removed it
            file = path.open("rb", buffering=0)
            os.utime(path)  # the last use, by which tars are removed
            return file
    return path.open("rb", buffering=0)


def fetch(folder: Path, shard: Shard) -> None:
    """Fetch a tar into a folder of the cache if it is missing or its size is wrong; other folders are left alone.

    Its sha256 is compared with the manifest; if it differs the tar is fetched once more. Processes that need the same
    tar fetch it once. Raises InputError if it can't be fetched; then nothing is left of it.
    """
    path = folder / shard.tar
    if not is_copy(folder) or _is_complete(path, shard):
        return
    with locked(folder, shard.tar, timeout_s=math.inf):
        if _is_complete(path, shard):  # another process was faster
            return
        part = part_path(folder, shard.tar, shard.tar_bytes)
        _unfinished.add(part)
        try:
            part.unlink(missing_ok=True)  # of a killed process; it would be counted too
            make_room(folder.parent, part, shard.tar_bytes)
            _download_checked(_address_of(folder), shard.tar, part, shard.tar_bytes, shard.tar_sha256)
            with locked(folder.parent, "cache", timeout_s=math.inf):  # so that make_room counts it exactly once
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
            _unfinished.discard(part)


def wrong_sizes(address: Address, shards: Iterable[Shard]) -> list[str]:
    """Describe each tar that is missing at an address or differs in size there."""
    shards = list(shards)
    with ThreadPoolExecutor(CONNECTIONS, "sizes") as pool:
        sizes = list(pool.map(lambda shard: file_size(address, shard.tar), shards))
    return [f"{address}/{shard.tar}: {'missing' if size is None else f'{size} bytes'}, the manifest says "
            f"{shard.tar_bytes} bytes" for shard, size in zip(shards, sizes, strict=True) if size != shard.tar_bytes]


def discard(folder: Path, shard: Shard) -> bool:
    """Remove a tar whose content is wrong from the cache, to be fetched again; return False for other folders."""
    if is_copy(folder):
        (folder / shard.tar).unlink(missing_ok=True)
        return True
    return False


def _fetch_index(folder: Path, address: Address, shard: Shard) -> None:
    path = folder / shard.index
    if _is_intact(path, shard):
        return
    with locked(folder, shard.index, timeout_s=math.inf):
        if _is_intact(path, shard):  # another process was faster
            return
        part = part_path(folder, shard.index, shard.index_bytes)
        try:
            _download_checked(address, shard.index, part, shard.index_bytes, shard.index_sha256)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _is_intact(index: Path, shard: Shard) -> bool:
    return index.exists() and sha256_of(index) == shard.index_sha256


def _is_complete(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.tar_bytes
    except FileNotFoundError:
        return False


def _download_checked(address: Address, name: str, part: Path, size: int, sha256: str) -> None:
    """Download a file and sync it to disk. Raises InputError if it is not the manifest's, even when fetched again."""
    for attempt in range(2):
        download(address, name, part)
        found, found_size = sha256_of(part), part.stat().st_size
        if found == sha256:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            return
        if attempt:
            fault = f"sha256 {found[:12]}…, the manifest says {sha256[:12]}…" if found_size == size else (
                f"{found_size} bytes, the manifest says {size}")
            raise InputError(f"{address}/{name}: {fault}, also when fetched again; upload the shards again")


def _address_of(folder: Path) -> Address:
    """Return the address that a folder of the cache is fetched from, with its secrets if this session gave any."""
    return Address(os.environ.get(_variable(folder)) or (folder / ORIGIN).read_text().strip())


def _variable(folder: Path) -> str:
    """The environment variable that keeps an address, for worker processes: the file must not contain its secrets."""
    return f"CXR_ORIGIN_{folder.name.removeprefix('shards-').upper()}"
