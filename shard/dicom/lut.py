"""Read and apply the lookup tables (LUTs) of a DICOM file: its Modality and VOI LUT Sequences (PS3.3 C.11.1, C.11.2).

Many files deviate from the standard, so the data of a LUT takes precedence over its descriptor. Entries may be words
or packed bytes. Whether the first mapped value is signed is inferred from the pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shard.dicom.file import UnsupportedDicom

CHUNK_ROWS = 256  # image rows mapped at a time, which bounds memory


class Lut(NamedTuple):
    """A table of [N] entries. first_mapped: the input of the first entry, unsigned; white: the value shown white."""

    first_mapped: int
    entries: npt.NDArray[np.uint16]
    white: int


def read_lut(data: Any, keyword: str) -> Lut | None:
    """Read the first table of a LUT sequence; None if the sequence is absent or all its items are empty.

    White is the largest value of as many bits as the entries need, because many 12-bit tables are declared as 16-bit.
    Raises UnsupportedDicom if entries are missing.
    """
    for item in data.get(keyword) or ():
        descriptor, words = (_read_words(item, name, data) for name in ("LUTDescriptor", "LUTData"))
        if len(descriptor) < 3 or not len(words):
            continue
        count, first_mapped = int(descriptor[0]) or 1 << 16, int(descriptor[1])
        entries = words
        if len(words) == (count + 1) // 2:  # two entries per word, the lower byte first
            entries = np.stack([words & 0xFF, words >> 8], axis=1).ravel()[:count]
        if len(entries) < count:
            raise UnsupportedDicom(f"{keyword} contains {len(entries)} of {count} entries")
        return Lut(first_mapped, entries, max(1, (1 << int(entries.max()).bit_length()) - 1))
    return None


def apply_lut(lut: Lut, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Map [H, W] values to their entries. Values outside the table map to its first or last entry."""
    first, last = _infer_first_mapped(lut, float(values.min()), float(values.max())), len(lut.entries) - 1
    mapped = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), CHUNK_ROWS):
        index = np.clip(values[top : top + CHUNK_ROWS].astype(np.float64) - first, 0, last)
        mapped[top : top + CHUNK_ROWS] = lut.entries[index.astype(np.intp)]
    return mapped


def _infer_first_mapped(lut: Lut, low: float, high: float) -> int:
    """Return the first mapped value, signed or unsigned: the one with which the table covers more of low to high."""
    unsigned, signed = lut.first_mapped, lut.first_mapped - 65536
    if unsigned < 0x8000:
        return unsigned

    def covered(first: int) -> float:
        return min(high, first + len(lut.entries) - 1) - max(low, first)

    return signed if covered(signed) >= covered(unsigned) else unsigned


def _read_words(item: Any, name: str, data: Any) -> npt.NDArray[np.uint16]:
    """Read an element, stored as numbers or as bytes, as [N] 16-bit words; N is 0 if it is blank."""
    value = item.get(name)
    if value is None or isinstance(value, str):
        return np.empty(0, np.uint16)
    if not isinstance(value, bytes):
        return np.atleast_1d(np.asarray(value, np.int64)).astype(np.uint16)
    big_endian = item[name].VR != "OB" and not data.file_meta.TransferSyntaxUID.is_little_endian
    return np.frombuffer(value + b"\0" * (len(value) % 2), ">u2" if big_endian else "<u2").astype(np.uint16)
