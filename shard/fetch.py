"""Random access to the encoded images of a split, each compared with its hash in the manifest."""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
from xxhash import xxh3_64_intdigest

from shard.address import is_copy
from shard.cache import AT_ONCE, discard, open_tar
from shard.errors import InputError
from shard.files import sha256_of
from shard.manifest import Manifest, Shard, wrong_hash
from shard.read import CURE, read_index
from shard.tar import ENDINGS

OPEN_TARS = 64  # far below the default limit of 1,024 open files per process


@dataclass(frozen=True)
class _Tar:
    """The offset, size and xxh3 of each image in a tar."""

    offsets: array[int]
    sizes: array[int]
    hashes: array[int]


class Fetcher:
    """Reads the images of a split by number, in the order of the shards.

    Every read compares the image with its hash in the manifest, so that a process reads only the images it uses.
    Manifests of older versions lack these hashes: then the first read from a tar hashes all of it, compares its sha256,
    and keeps the hash of each image. Tars are not memory-mapped, so a truncated tar raises an error instead of killing
    the process. In a folder of the cache, tars that are missing, or in which an image is wrong, are fetched.
    Thread-safe. Pickling drops open files, so the other process opens and checks them again.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self._arguments = (folder, manifest, split)
        self.folder, self.shards, self.is_copy = folder, manifest.of_split(split), is_copy(folder)
        raw = manifest.settings["encoding"] == "raw"
        self.raw_size: int | None = manifest.settings["size"] if raw else None
        self._ending = ENDINGS[manifest.settings["encoding"]]
        self._ends = list(accumulate(shard.samples for shard in self.shards))
        self._most_open = AT_ONCE if self.is_copy else OPEN_TARS  # an open file keeps its disk space if removed
        self._tars: dict[int, _Tar] = {}
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetcher, self._arguments  # each process opens and checks the tars itself

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, number: int) -> bytes:
        """Read an image, JPEG or raw. Raises InputError, naming tar and key, if it is missing or has changed."""
        content, intact = self._read(number)
        if not intact and self._discard(number):
            content, intact = self._read(number)
        if not intact:
            raise InputError(f"{self.describe(number)}: its bytes have changed since it was written; {CURE}")
        return content

    def _read(self, number: int) -> tuple[bytes, bool]:
        """Read an image; return its bytes and whether their hash is right."""
        shard, position = self._locate(number)
        try:
            with self._lock:
                file, tar = self._open(shard)
            content = os.pread(file.fileno(), tar.sizes[position], tar.offsets[position])
        except OSError as error:
            raise InputError(f"{self.describe(number)}: {error.strerror or error}; {CURE}") from error
        if len(content) < tar.sizes[position]:
            size, expected = os.fstat(file.fileno()).st_size, self.shards[shard].tar_bytes
            raise InputError(f"{self.describe(number)}: ends at {size} bytes, the manifest says {expected}; {CURE}")
        return content, xxh3_64_intdigest(content) == tar.hashes[position]

    def _discard(self, number: int) -> bool:
        """Remove the tar of an image from the cache, so that it is fetched again; return False for other folders."""
        shard, _ = self._locate(number)
        with self._lock:
            self._files.pop(shard, None)
            return discard(self.folder, self.shards[shard])

    def key(self, number: int) -> str:
        """Return the key of an image."""
        shard, position = self._locate(number)
        return read_index(self.folder / self.shards[shard].index)[position].key

    def describe(self, number: int) -> str:
        """Name an image by its tar and key, for messages."""
        shard, position = self._locate(number)
        try:
            key = self.key(number)
        except (OSError, InputError):  # the index is also missing or damaged
            key = f"number {position}"
        return f"{self.folder / self.shards[shard].tar}, image {key}"

    def shards_of(self, numbers: Any) -> list[int]:
        """Return the shards of images, [N] int64, as numbers in `shards`, in the order of first use."""
        found = np.searchsorted(self._ends, numbers, side="right")
        first_uses: list[int] = found[np.sort(np.unique(found, return_index=True)[1])].tolist()
        return first_uses

    def reopen(self) -> None:
        """Close all tars, so that the next reads open them by name again. A run does this once per epoch."""
        with self._lock:
            self._files.clear()

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the number of an image's shard and the image's position in that shard."""
        shard = bisect_right(self._ends, number)
        return shard, number - self._ends[shard] + self.shards[shard].samples

    def _open(self, number: int) -> tuple[IO[bytes], _Tar]:
        """Open a shard's tar, and check it the first time. The caller holds the lock."""
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number], self._tars[number]
        file = self._open_checked(number)
        if hasattr(os, "posix_fadvise"):  # random reads follow: loading the whole tar is faster
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        self._files[number] = file
        if len(self._files) > self._most_open:
            self._files.popitem(last=False)  # closes when no thread reads from it
        return file, self._tars[number]

    def _open_checked(self, number: int) -> IO[bytes]:
        """Open a tar, and check it the first time; one in the cache whose content is wrong is fetched once more."""
        shard = self.shards[number]
        for attempt in range(2):
            file = open_tar(self.folder, shard)
            try:
                if number not in self._tars:
                    self._tars[number] = _describe(file, self.folder / shard.tar, shard, self._ending,
                                                    (self.raw_size or 0) ** 2)  # fmt: skip
                return file
            except InputError:
                if attempt or not discard(self.folder, shard):
                    raise
        raise AssertionError("the second attempt returns or raises")


def _describe(file: IO[bytes], path: Path, shard: Shard, ending: str, raw_bytes: int) -> _Tar:
    """Return the images of a tar, checked by its size and index. Raises InputError if these are not the manifest's."""
    if (size := os.fstat(file.fileno()).st_size) != shard.tar_bytes:
        raise InputError(f"{path}: {size} bytes, the manifest says {shard.tar_bytes}; {CURE}")
    index = path.with_name(shard.index)
    if (found := sha256_of(index)) != shard.index_sha256:
        raise InputError(f"{wrong_hash(index, found, shard.index_sha256)}; {CURE}")
    offsets, sizes = array("q"), array("q")
    end = 0
    for sample in read_index(index):
        offset, size = sample.members.get(ending, (-1, 0))
        if offset < end or offset + size > shard.tar_bytes or (ending == "raw" and size != raw_bytes):
            raise InputError(f"{index}: image {sample.key} has no .{ending} of the expected size; {CURE}")
        offsets.append(offset)
        sizes.append(size)
        end = offset + size
    if len(sizes) != shard.samples:
        raise InputError(f"{index}: {len(sizes)} images, the manifest says {shard.samples}; {CURE}")
    if not shard.image_xxh3:
        return _Tar(offsets, sizes, _hash_images(file, path, shard, offsets, sizes))
    return _Tar(offsets, sizes, array("Q", np.frombuffer(bytes.fromhex(shard.image_xxh3), ">u8").tolist()))


def _hash_images(file: IO[bytes], path: Path, shard: Shard, offsets: array[int], sizes: array[int]) -> array[int]:
    """Hash each image while reading a whole tar. Raises InputError if its sha256 is not the manifest's."""
    hashes, digest, position = array("Q"), hashlib.sha256(), 0
    for offset, size in zip(offsets, sizes, strict=True):
        gap, content = file.read(offset - position), file.read(size)
        digest.update(gap)
        digest.update(content)
        hashes.append(xxh3_64_intdigest(content))
        position = offset + size
    while rest := file.read(1 << 20):
        digest.update(rest)
    if digest.hexdigest() != shard.tar_sha256:
        raise InputError(f"{wrong_hash(path, digest.hexdigest(), shard.tar_sha256)}; {CURE}")
    return hashes
