"""The images of a split by number, as they lie in the tars, each checked against what was written there."""

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

from xxhash import xxh3_64_intdigest

from shard.errors import InputError
from shard.files import sha256_of
from shard.manifest import Manifest, Shard, wrong_hash
from shard.read import CURE, read_index
from shard.tar import ENDINGS

OPEN_TARS = 64  # far below the 1,024 files that a process may hold open by default


@dataclass(frozen=True)
class _Tar:
    """A tar that was whole when it was first read: where its images lie, and a hash of each."""

    offsets: array[int]
    sizes: array[int]
    hashes: array[int]


class Fetcher:
    """Reads the images of a split by number, in the order of the shards.

    A tar's sha256 is compared with the manifest's the first time one of its images is read; from then on each image
    read is compared with what lay there then. Nothing is mapped, so that a tar cut short is an error, and not the
    process's end. May be shared by threads; in each of several processes it checks anew.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self._arguments = (folder, manifest, split)
        self._folder, self._shards = folder, manifest.of_split(split)
        raw = manifest.settings["encoding"] == "raw"
        self.raw_size: int | None = manifest.settings["size"] if raw else None
        self._ending = ENDINGS[manifest.settings["encoding"]]
        self._ends = list(accumulate(shard.samples for shard in self._shards))
        self._tars: dict[int, _Tar] = {}
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetcher, self._arguments  # another process opens the tars itself

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, number: int) -> bytes:
        """The bytes of an image, JPEG or raw. Raises InputError naming tar and key where they can't be had."""
        shard, inside = self._place(number)
        try:
            with self._lock:
                file, tar = self._open(shard)
            content = os.pread(file.fileno(), tar.sizes[inside], tar.offsets[inside])
        except OSError as error:
            raise InputError(f"{self.where(number)}: {error.strerror or error}; {CURE}") from error
        if len(content) < tar.sizes[inside]:
            size, wanted = os.fstat(file.fileno()).st_size, self._shards[shard].tar_bytes
            raise InputError(f"{self.where(number)}: ends at {size} bytes, the manifest says {wanted}; {CURE}")
        if xxh3_64_intdigest(content) != tar.hashes[inside]:
            raise InputError(f"{self.where(number)}: its bytes have changed since the run began; {CURE}")
        return content

    def key(self, number: int) -> str:
        """The key of an image."""
        shard, inside = self._place(number)
        return read_index(self._folder / self._shards[shard].index)[inside].key

    def where(self, number: int) -> str:
        """An image's tar and key, for messages."""
        shard, inside = self._place(number)
        try:
            key = self.key(number)
        except (OSError, InputError):  # the index is gone as well
            key = f"number {inside}"
        return f"{self._folder / self._shards[shard].tar}, image {key}"

    def reopen(self) -> None:
        """Look for the tars anew, as a run does once an epoch."""
        with self._lock:
            self._files.clear()

    def _place(self, number: int) -> tuple[int, int]:
        """The shard of an image and its number in there."""
        shard = bisect_right(self._ends, number)
        return shard, number - self._ends[shard] + self._shards[shard].samples

    def _open(self, number: int) -> tuple[IO[bytes], _Tar]:
        """A shard's tar, checked when it is first opened. The caller holds the lock."""
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number], self._tars[number]
        path = self._folder / self._shards[number].tar
        file = path.open("rb", buffering=0)
        if hasattr(os, "posix_fadvise"):  # its images are about to be read, in no order: better all at once
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        if number not in self._tars:
            self._tars[number] = _check(file, path, self._shards[number], self._ending,
                                         (self.raw_size or 0) ** 2)  # fmt: skip
        self._files[number] = file
        if len(self._files) > OPEN_TARS:
            self._files.popitem(last=False)  # closed as soon as no thread reads from it
        return file, self._tars[number]


def _check(file: IO[bytes], path: Path, shard: Shard, ending: str, raw_bytes: int) -> _Tar:
    """Read a tar from end to end and remember its images. Raises InputError where it is not as it was written."""
    if (size := os.fstat(file.fileno()).st_size) != shard.tar_bytes:
        raise InputError(f"{path}: {size} bytes, the manifest says {shard.tar_bytes}; {CURE}")
    index = path.with_name(shard.index)
    if (found := sha256_of(index)) != shard.index_sha256:
        raise InputError(f"{wrong_hash(index, found, shard.index_sha256)}; {CURE}")
    offsets, sizes, hashes = array("q"), array("q"), array("Q")
    whole, position = hashlib.sha256(), 0
    for sample in read_index(index):
        offset, size = sample.members.get(ending, (-1, 0))
        if offset < position or offset + size > shard.tar_bytes or (ending == "raw" and size != raw_bytes):
            raise InputError(f"{index}: image {sample.key} has no .{ending} of its size there; {CURE}")
        before, content = file.read(offset - position), file.read(size)
        whole.update(before)
        whole.update(content)
        offsets.append(offset)
        sizes.append(size)
        hashes.append(xxh3_64_intdigest(content))
        position = offset + size
    if len(sizes) != shard.samples:
        raise InputError(f"{index}: {len(sizes)} images, the manifest says {shard.samples}; {CURE}")
    while rest := file.read(1 << 20):
        whole.update(rest)
    if whole.hexdigest() != shard.tar_sha256:
        raise InputError(f"{wrong_hash(path, whole.hexdigest(), shard.tar_sha256)}; {CURE}")
    return _Tar(offsets, sizes, hashes)
