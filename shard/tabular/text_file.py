"""Open a text file in its own encoding: UTF-8, UTF-16, UTF-32 or, if unambiguous, Latin-1; gzipped or not."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO

from shard.errors import InputError

# Files that are given instead of text by mistake: first bytes, kind, cure.
_BINARY = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save its sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save its sheet as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "save it as CSV, with pandas: read_parquet(FILE).to_csv(CSV, index=False)"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"), (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"), (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
)  # fmt: skip
_MARKS = (  # UTF-32 comes first: its byte-order mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32",
          "cp1252": "Latin-1 (Windows-1252)"}  # fmt: skip
_BLOCK = 1 << 20
_HEAD = 1 << 16  # bytes read to detect an encoding from the start of a file


def open_text(path: Path, encoding: str, errors: str = "strict") -> IO[str]:
    """Open a text file, gzipped or not, with its line ends unchanged. encoding: see detect_encoding."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, decompressing gzip whatever its name: browsers decompress a download and keep the name."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path, "rb")) if gzipped else path.open("rb")


def encoding_name(encoding: str) -> str:
    """Return the name of an encoding for messages."""
    return _NAMES.get(encoding, encoding)


def detect_encoding(path: Path, head_only: bool = False) -> str:
    """Return the encoding of a file, as a name for Python's codecs that skips a byte-order mark.

    Text that is not UTF-8 counts as Latin-1 (read as its superset Windows-1252) only if its non-ASCII characters are
    single letters and signs of Western languages, so that other encodings are not mistaken for it. head_only: read the
    first 64 KB alone. Raises InputError if the file is not text, or has another encoding.
    """
    with open_bytes(path) as file:
        head = file.read(_HEAD)
        for magic, kind, cure in _BINARY:
            if head.startswith(magic):
                raise InputError(f"{path}: is {kind}, not a text file; {cure}")
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return encoding
        if b"\0" in head:
            return _utf16_without_mark(head)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(head)
            while not head_only and (block := file.read(_BLOCK)):
                decoder.decode(block)
            if not head_only:
                decoder.decode(b"", final=True)
            return "utf-8-sig"
        except UnicodeDecodeError:
            pass  # not UTF-8; checked for Western text below
    with open_bytes(path) as file:
        _check_western(path, file.read(_HEAD) if head_only else file.read())
    return "cp1252"


def _utf16_without_mark(head: bytes) -> str:
    """UTF-16 if every other byte is 0, as in mostly ASCII text without a byte-order mark; else UTF-8 with a NUL."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = 0.8 * (len(head) // 2)
    return "utf-16-le" if odd > most and not even else "utf-16-be" if even > most and not odd else "utf-8-sig"


def _check_western(path: Path, content: bytes) -> None:
    """Raise InputError if text that is not UTF-8 may be in an encoding other than Latin-1."""
    cure = "save it as UTF-8 (a spreadsheet's \"CSV UTF-8\", or: iconv -f ENCODING -t UTF-8)"
    runs = set(re.findall(rb"[\x80-\xff]+", content))
    if any(_is_utf8(run) for run in runs):
        raise InputError(f"{path}: is in part UTF-8 and in part another encoding, or truncated; {cure}")
    letters = all(byte >= 0xA0 or byte in b"\x80\x85\x91\x92\x93\x94\x95\x96\x97\x99" for run in runs for byte in run)
    # Western words have at most two consecutive accented letters, next to plain ones. Cyrillic, Greek or Chinese words
    # consist of non-ASCII bytes alone.
    if not letters or re.search(rb"[\x80-\xff]{3}|(?<![A-Za-z])[\x80-\xff]{2}(?![A-Za-z])", content):
        raise InputError(f"{path}: its text is neither UTF-8 nor UTF-16 nor clearly Latin-1; {cure}")


def _is_utf8(run: bytes) -> bool:
    try:
        return bool(run.decode())
    except UnicodeDecodeError:
        return False


def read_lines(path: Path) -> list[str]:
    """Return the nonblank lines of a text file, stripped. Raises InputError as detect_encoding does."""
    with open_text(path, detect_encoding(path)) as file:
        lines = [line.strip().strip("\ufeff") for line in file.read().splitlines()]
    return [line for line in lines if line]
