"""Open a text file in the encoding it was saved in: UTF-8, UTF-16 or, where that is plain, Latin-1; gzipped or not."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO

from shard.errors import InputError

# What a table is saved as by mistake: the file's first bytes, its kind, the cure.
_NO_TEXT = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save its sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save its sheet as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "save it as CSV, with pandas: read_parquet(FILE).to_csv(CSV, index=False)"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"), (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"), (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
)  # fmt: skip
_MARKS = (  # UTF-32's first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32",
          "cp1252": "Latin-1 (Windows-1252)"}  # fmt: skip
_BLOCK = 1 << 20
_HEAD = 1 << 16  # bytes that a look at a file's beginning reads


def open_text(path: Path, encoding: str, errors: str = "strict") -> IO[str]:
    """The file's text with its line ends as they are, unpacked where it is gzipped. encoding: as encoding_of says."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where they are gzipped, whatever its name: browsers unpack, and keep the name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path, "rb")) if packed else path.open("rb")


def name_of(encoding: str) -> str:
    """An encoding's name, for people."""
    return _NAMES.get(encoding, encoding)


def encoding_of(path: Path, head_only: bool = False) -> str:
    """The encoding of a file, a name that Python's codecs know. A byte-order mark is no character in any of them.

    Latin-1 (read as Windows-1252, of which it is part) is taken where the text is not UTF-8, and all that is not ASCII
    in it are single letters and signs of Western languages: what other encodings hold is not taken for that.
    head_only: look at the first 64 KB alone. Raises InputError where the bytes are no text, or of another encoding.
    """
    with open_bytes(path) as file:
        head = file.read(_HEAD)
        for magic, kind, cure in _NO_TEXT:
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
    """UTF-16 where every other byte of mostly ASCII text is 0, as it is without a mark; else UTF-8 with a NUL."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = 0.8 * (len(head) // 2)
    return "utf-16-le" if odd > most and not even else "utf-16-be" if even > most and not odd else "utf-8-sig"


def _check_western(path: Path, content: bytes) -> None:
    """Raise InputError where text that is not UTF-8 need not be Latin-1 either."""
    cure = "save it as UTF-8 (a spreadsheet's \"CSV UTF-8\", or: iconv -f ENCODING -t UTF-8)"
    runs = set(re.findall(rb"[\x80-\xff]+", content))
    if any(_is_utf8(run) for run in runs):
        raise InputError(f"{path}: is in part UTF-8 and in part another encoding, or cut short; {cure}")
    letters = all(byte >= 0xA0 or byte in b"\x80\x85\x91\x92\x93\x94\x95\x96\x97\x99" for run in runs for byte in run)
    # Western words have at most two accented letters on end, and others beside them; Cyrillic, Greek or Chinese ones
    # are of nothing else.
    if not letters or re.search(rb"[\x80-\xff]{3}|(?<![A-Za-z])[\x80-\xff]{2}(?![A-Za-z])", content):
        raise InputError(f"{path}: its text is neither UTF-8 nor UTF-16 nor plainly Latin-1; {cure}")


def _is_utf8(run: bytes) -> bool:
    try:
        return bool(run.decode())
    except UnicodeDecodeError:
        return False


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks around them. Raises InputError as encoding_of."""
    with open_text(path, encoding_of(path)) as file:
        lines = [line.strip().strip("\ufeff") for line in file.read().splitlines()]
    return [line for line in lines if line]
