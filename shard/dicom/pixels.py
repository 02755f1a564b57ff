"""A DICOM data set → its stored values and which of them are padding (PS3.5 8, PS3.3 C.7.5.1.1.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shard.dicom import jpeg
from shard.dicom.file import UnsupportedDicom

# Compressions that are newer than pydicom's list of names.
_NAMES = {f"1.2.840.10008.1.2.4.{number}": name for number, name in
          ((110, "JPEG XL Lossless"), (111, "JPEG XL JPEG Recompression"), (112, "JPEG XL"))}  # fmt: skip

Mask = npt.NDArray[np.bool_]


def stored_values(data: Any) -> tuple[npt.NDArray[Any], Mask | None]:
    """[H, W] values of BitsStored bits, and where they are padding; None where the file names no padding.

    Raises UnsupportedDicom for a compression that can't be decoded, and for bits that contradict each other.
    """
    raw = decode(data)
    if raw.ndim != 2 or raw.dtype.kind not in "iu":
        return raw, None
    stored, high = (_number(data, name) for name in ("BitsStored", "HighBit"))
    stored = stored or int(data.BitsAllocated)
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < int(data.BitsAllocated):
        raise UnsupportedDicom(f"DICOM with HighBit {high} for {stored} BitsStored of {data.BitsAllocated}")
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        raw = _without_overshoot(raw, stored)
    values = _take_bits(raw, stored, high)
    padding = _find_padding(raw, values, data, stored)
    if _wraps(raw, values, padding):
        raise UnsupportedDicom(f"DICOM whose pixels need more bits than its BitsStored, {stored}")
    return values, padding


def decode(data: Any) -> npt.NDArray[Any]:
    """The pixels as they lie in the file, those of one channel with all their bits; YBR comes as RGB.

    Raises UnsupportedDicom for a compression without a decoder, naming it, and ValueError for a damaged JPEG.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = data.file_meta.TransferSyntaxUID
    jpeg.check_frame(data)
    jpeg.mend(data)
    if syntax in jpeg.SYNTAXES and int(data.SamplesPerPixel) == 1:
        return jpeg.decode(data)
    try:
        plugins = get_decoder(syntax).available_plugins if syntax.is_encapsulated else ("",)
    except (NotImplementedError, ValueError):  # of a process that pydicom does not know, or somebody's own
        plugins = ()
    if not plugins:
        name = _NAMES.get(syntax, syntax.name)
        raise UnsupportedDicom(f"DICOM compressed by {name}, for which there is no decoder here")
    # GDCM, which would come first, ends the process at some damaged JPEG 2000s.
    plugin = "pylibjpeg" if "pylibjpeg" in plugins else ""
    pixels = pixel_array(data, decoding_plugin=plugin, correct_unused_bits=int(data.SamplesPerPixel) > 1)
    return np.asarray(pixels, pixels.dtype.newbyteorder("="))


def _take_bits(raw: npt.NDArray[Any], stored: int, high: int) -> npt.NDArray[Any]:
    """The `stored` bits up to bit `high`, with the sign that they have."""
    unsigned = raw.view(f"u{raw.itemsize}")
    bits, shift = 8 * raw.itemsize, high + 1 - stored
    # Some files name a high bit at which their pixels, which lie lower, do not end.
    if shift and ((unsigned >> stored).any() or not (unsigned & ((1 << shift) - 1)).any()):
        unsigned = unsigned >> shift
    if stored >= bits:
        return unsigned.view(raw.dtype)
    # Shifted left and back, the sign is spread and what lies above is gone.
    return (unsigned << (bits - stored)).view(raw.dtype) >> (bits - stored)


def _without_overshoot(raw: npt.NDArray[Any], stored: int) -> npt.NDArray[Any]:
    """Values that a lossy compression made a little larger than the stored bits hold, as the largest that they do."""
    signed = raw.dtype.kind == "i"
    low, high = -(1 << (stored - 1)) * signed, (1 << (stored - signed)) - 1
    slack = (high - low) // 16
    return raw.clip(low, high) if low - slack <= raw.min() and raw.max() <= high + slack else raw


def _find_padding(raw: npt.NDArray[Any], values: npt.NDArray[Any], data: Any, stored: int) -> Mask | None:
    """Where pixels are padding: a value, or a range from it to a limit, which need not fit into the stored bits."""
    value, limit = (_number(data, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return None
    ends = [_like(end, raw.dtype, stored) for end in (value, value if limit is None else limit)]
    low, high = min(ends), max(ends)
    signed = raw.dtype.kind == "i"
    fits = -(1 << (stored - 1)) * signed <= low and high < 1 << (stored - signed)
    compared = values if fits else raw
    return np.asarray((compared >= low) & (compared <= high))


def _like(value: int, dtype: np.dtype[Any], stored: int) -> int:
    """A padding value, written signed or not, as pixels of this type are."""
    if dtype.kind == "u":
        return value % (1 << 8 * dtype.itemsize) if value < 0 else value
    for bits in (stored, 8 * dtype.itemsize):
        if 1 << (bits - 1) <= value < 1 << bits:
            return value - (1 << bits)
    return value


def _wraps(raw: npt.NDArray[Any], values: npt.NDArray[Any], padding: Mask | None) -> bool:
    """Whether the stored bits are too few: with the bits above them, neighbouring pixels would differ less."""
    if not (raw != values).any():
        return False
    step = max(1, int((raw.size / 1e6) ** 0.5))  # of rows; neighbours in a row stay neighbours
    whole, part = (pixels[::step].astype(np.int64) for pixels in (raw, values))
    if padding is not None:
        whole[padding[::step]] = part[padding[::step]] = 0
    return bool(np.abs(np.diff(whole)).sum() < np.abs(np.diff(part)).sum())


def _number(data: Any, name: str) -> int | None:
    """The value of a tag of one number, the first where it has several; None where it is absent or blank."""
    value = data.get(name)
    if hasattr(value, "__len__") and not isinstance(value, str | bytes) and len(value):
        value = value[0]
    return int(value) if isinstance(value, int | float) else None
