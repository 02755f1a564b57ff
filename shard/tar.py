"""TarWriter: write samples to a reproducible tar, and its DALI index."""

from __future__ import annotations

import tarfile
from typing import IO

from xxhash import xxh3_64, xxh3_64_hexdigest

INDEX_VERSION = "v1.2"
# The header of an empty file with an empty name, without its size and its checksum, of which spaces count.
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_HEADER_SUM = sum(_HEADER[:124]) + sum(_HEADER[135:148]) + 8 * ord(" ") + sum(_HEADER[156:])
ENDINGS = {"jpeg": "jpg", "raw": "raw"}  # encoding → file extension of the image's member
HASH_DIGITS = 16  # of an xxh3 in the manifest, in hex


class SampleHashes:
    """Hashes the samples of a shard for the fields image_xxh3 and labels_xxh3 of manifest.Shard."""

    def __init__(self) -> None:
        self._images: list[str] = []
        self._labels = xxh3_64()

    def add(self, members: dict[str, bytes]) -> None:
        """Add the next sample: extension → content."""
        for ending, content in members.items():
            if ending == "json":
                self._labels.update(content)
            else:
                self._images.append(xxh3_64_hexdigest(content))

    def fields(self) -> tuple[str, str]:
        """Return image_xxh3 and labels_xxh3; both are empty without samples."""
        return ("".join(self._images), self._labels.hexdigest()) if self._images else ("", "")


class TarWriter:
    """Writes samples as members KEY.ENDING of a tar, without times and owners: equal samples give equal bytes.

    A context manager around an open binary file. In plain USTAR every member has exactly one header of 512 bytes, which
    the offsets in the index rely on.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._offset = file, 0
        self._lines: list[str] = []
        self._hashes = SampleHashes()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # two empty blocks end a tar, and its size is a multiple of a record's
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._file.write(bytes(-(self._offset + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append one sample. members: extension → content. The key has at most 90 characters."""
        self._hashes.add(members)
        words = []
        for ending, content in members.items():
            name = f"{key}.{ending}"
            words.append(f"{ending} {self._offset + tarfile.BLOCKSIZE} {len(content)} {name}")
            block = _make_header(name.encode(), len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
            self._file.write(block)
            self._offset += len(block)
        self._lines.append(" ".join(words) + "\n")

    def hashes(self) -> tuple[str, str]:
        """Return the fields image_xxh3 and labels_xxh3 of manifest.Shard."""
        return self._hashes.fields()

    def index(self) -> bytes:
        """Return the DALI index v1.2: one line per sample with extension, offset, size and name of each member."""
        return f"{INDEX_VERSION} {len(self._lines)}\n{''.join(self._lines)}".encode()


def _make_header(name: bytes, size: int) -> bytes:
    """Return tarfile's USTAR header of a file without time and owner, which takes tarfile several times as long."""
    assert len(name) <= 100 and size < 8**11, (name, size)
    header = bytearray(_HEADER)
    header[: len(name)] = name
    header[124:135] = b"%011o" % size
    header[148:154] = b"%06o" % (_HEADER_SUM + sum(name) + sum(header[124:135]))
    return bytes(header)
