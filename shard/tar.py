"""TarWriter: samples → a tar whose bytes depend on nothing else, and the lines of its DALI index."""

from __future__ import annotations

import tarfile
from typing import IO

INDEX_VERSION = "v1.2"
ENDINGS = {"jpeg": "jpg", "raw": "raw"}  # of an image's member, by encoding


class TarWriter:
    """Writes samples as members KEY.ENDING of a tar, time and owner left out: the same samples give the same bytes.

    A context manager around an open binary file. Plain USTAR: every member is one header of 512 bytes and its content,
    which is what the index relies on.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._offset = file, 0
        self._lines: list[str] = []

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # two empty blocks end a tar, and whole records are customary
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._file.write(bytes(-(self._offset + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append one sample: ending → content. The key is of 90 characters at most."""
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
        """DALI's index v1.2: a line a sample, the ending, offset, size and name of each member."""
        return f"{INDEX_VERSION} {len(self._lines)}\n{''.join(self._lines)}".encode()
