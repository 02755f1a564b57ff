"""Tables of a DICOM file, of its Modality and VOI LUT Sequences: how they are read and applied (PS3.3 C.11.1, C.11.2).

Files differ from the standard in how they write them, so what a table holds counts for more than what its descriptor
says: entries may be words or packed bytes, and the first value's sign bit is told from the pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shard.dicom.file import UnsupportedDicom

ROWS = 256  # that are looked up at a time


class Table(NamedTuple):
    """The 16 bits of the input that is mapped to the first entry, [N] uint16 entries, and the value that is white."""

    first: int
    entries: npt.NDArray[np.uint16]
    white: int


def read_table(data: Any, keyword: str) -> Table | None:
    """The first table of a sequence; None where there is none, or only items that are empty.

    White is the largest value of as many bits as the entries need: tables of 12 bits that are declared as 16 are
    common. Raises UnsupportedDicom where entries are missing.
    """
    for item in data.get(keyword) or ():
        descriptor, words = (_read_words(item, name, data) for name in ("LUTDescriptor", "LUTData"))
        if len(descriptor) < 3 or not len(words):
            continue
        count, first = int(descriptor[0]) or 1 << 16, int(descriptor[1])
        entries = words
        if len(words) == (count + 1) // 2:  # two in a word, the lower byte first
            entries = np.stack([words & 0xFF, words >> 8], axis=1).ravel()[:count]
        if len(entries) < count:
            raise UnsupportedDicom(f"{keyword} holds {len(entries)} of {count} entries")
        return Table(first, entries, max(1, (1 << int(entries.max()).bit_length()) - 1))
    return None


def apply_table(table: Table, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The entries for [H, W] values; those outside the table get its first and last entry."""
    first, last = _place(table, float(values.min()), float(values.max())), len(table.entries) - 1
    found = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), ROWS):
        index = np.clip(values[top : top + ROWS].astype(np.float64) - first, 0, last)
        found[top : top + ROWS] = table.entries[index.astype(np.intp)]
    return found


def _place(table: Table, low: float, high: float) -> int:
    """The first value, whose highest bit may be a sign: as it covers more of what the values range over."""
    unsigned, signed = table.first, table.first - 65536
    if unsigned < 0x8000:
        return unsigned

    def covered(first: int) -> float:
        return min(high, first + len(table.entries) - 1) - max(low, first)

    return signed if covered(signed) >= covered(unsigned) else unsigned


def _read_words(item: Any, name: str, data: Any) -> npt.NDArray[np.uint16]:
    """An element's value as 16-bit words, whether it comes as numbers or as bytes; [0] where it is blank."""
    value = item.get(name)
    if value is None or isinstance(value, str):
        return np.empty(0, np.uint16)
    if not isinstance(value, bytes):
        return np.atleast_1d(np.asarray(value, np.int64)).astype(np.uint16)
    swapped = item[name].VR != "OB" and not data.file_meta.TransferSyntaxUID.is_little_endian
    return np.frombuffer(value + b"\0" * (len(value) % 2), ">u2" if swapped else "<u2").astype(np.uint16)
