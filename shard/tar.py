"""TarWriter: write samples to a reproducible tar, and its DALI index."""

from __future__ import annotations

import tarfile
from typing import IO

INDEX_VERSION = "v1.2"
ENDINGS = {"jpeg": "jpg", "raw": "raw"}  # encoding → file extension of the image's member


class TarWriter:
    """Writes samples as members KEY.ENDING of a tar, without times and owners: equal samples give equal bytes.

    A context manager around an open binary file. In plain USTAR every member has exactly one header of 512 bytes, which
    the offsets in the index rely on.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._offset = file, 0
        self._lines: list[str] = []

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # two empty blocks end a tar, and its size is a multiple of a record's
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._file.write(bytes(-(self._offset + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append one sample. members: extension → content. The key has at most 90 characters."""
        words = []
        for ending, content in members.items():
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(content)
            header = info.tobuf(tarfile.USTAR_FORMAT)
            assert len(header) == tarfile.BLOCKSIZE, info.name
            words.append(f"{ending} {self._offset + len(header)} {info.size} {info.name}")
            block = header + content + bytes(-info.size % tarfile.BLOCKSIZE)
            self._file.write(block)
            self._offset += len(block)
        self._lines.append(" ".join(words) + "\n")

    def index(self) -> bytes:
        """Return the DALI index v1.2: one line per sample with extension, offset, size and name of each member."""
        return f"{INDEX_VERSION} {len(self._lines)}\n{''.join(self._lines)}".encode()
