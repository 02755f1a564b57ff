"""Decode the pixels of a DICOM data set into stored values and a padding mask (PS3.5 8, PS3.3 C.7.5.1.1.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shard.dicom import jpeg
from shard.dicom.file import UnsupportedDicom

# Transfer syntaxes that are too new for pydicom's dictionary of names.
_NEW_SYNTAXES = {f"1.2.840.10008.1.2.4.{number}": name for number, name in
                 ((110, "JPEG XL Lossless"), (111, "JPEG XL JPEG Recompression"), (112, "JPEG XL"))}  # fmt: skip

Mask = npt.NDArray[np.bool_]


def read_stored_values(data: Any) -> tuple[npt.NDArray[Any], Mask | None]:
    """Return [H, W] stored values of BitsStored bits, and the mask of padding; None if the file declares no padding.

    Raises UnsupportedDicom if the compression is not supported or the tags about bits contradict each other.
    """
    raw = decode_pixels(data)
    if raw.ndim != 2 or raw.dtype.kind not in "iu":
        return raw, None
    bits_stored, high_bit = (_get_int(data, name) for name in ("BitsStored", "HighBit"))
    bits_stored = bits_stored or int(data.BitsAllocated)
    high_bit = bits_stored - 1 if high_bit is None else high_bit
    if not bits_stored - 1 <= high_bit < int(data.BitsAllocated):
        raise UnsupportedDicom(f"DICOM with HighBit {high_bit} for {bits_stored} BitsStored of {data.BitsAllocated}")
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        raw = _clip_overshoot(raw, bits_stored)
    values = _extract_stored_bits(raw, bits_stored, high_bit)
    padding = _find_padding(raw, values, data, bits_stored)
    if _wraps_around(raw, values, padding):
        raise UnsupportedDicom(f"DICOM whose pixels need more bits than its BitsStored, {bits_stored}")
    return values, padding


def decode_pixels(data: Any) -> npt.NDArray[Any]:
    """Decode the frame: [H, W] with all allocated bits if it has one channel, else [H, W, C]; YBR becomes RGB.

    Raises UnsupportedDicom if no decoder supports the compression, and ValueError if a JPEG is corrupt.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = data.file_meta.TransferSyntaxUID
    jpeg.check_frame_header(data)
    jpeg.check_and_repair(data)
    if syntax in jpeg.GDCM_SYNTAXES and int(data.SamplesPerPixel) == 1:
        return jpeg.decode_with_gdcm(data)
    try:
        plugins = get_decoder(syntax).available_plugins if syntax.is_encapsulated else ("",)
    except (NotImplementedError, ValueError):  # pydicom does not know the syntax, or it is private
        plugins = ()
    if not plugins:
        name = _NEW_SYNTAXES.get(syntax, syntax.name)
        raise UnsupportedDicom(f"DICOM compressed with {name}, for which no decoder is available")
    # pydicom prefers GDCM, which aborts the process on some corrupt JPEG 2000 frames.
    plugin = "pylibjpeg" if "pylibjpeg" in plugins else ""
    pixels = pixel_array(data, decoding_plugin=plugin, correct_unused_bits=int(data.SamplesPerPixel) > 1)
    return np.asarray(pixels, pixels.dtype.newbyteorder("="))


def _extract_stored_bits(raw: npt.NDArray[Any], bits_stored: int, high_bit: int) -> npt.NDArray[Any]:
    """Extract the `bits_stored` bits up to `high_bit`, and extend their sign if the pixels are signed."""
    unsigned = raw.view(f"u{raw.itemsize}")
    width, shift = 8 * raw.itemsize, high_bit + 1 - bits_stored
    # Some files declare a high bit above the bits that their pixels occupy. Those are not shifted.
    if shift and ((unsigned >> bits_stored).any() or not (unsigned & ((1 << shift) - 1)).any()):
        unsigned = unsigned >> shift
    if bits_stored >= width:
        return unsigned.view(raw.dtype)
    # Shifting left and back drops the bits above and extends the sign.
    return (unsigned << (width - bits_stored)).view(raw.dtype) >> (width - bits_stored)


def _clip_overshoot(raw: npt.NDArray[Any], bits_stored: int) -> npt.NDArray[Any]:
    """Clip values that lossy compression pushed slightly beyond the range of the stored bits."""
    signed = raw.dtype.kind == "i"
    low, high = -(1 << (bits_stored - 1)) * signed, (1 << (bits_stored - signed)) - 1
    slack = (high - low) // 16
    return raw.clip(low, high) if low - slack <= raw.min() and raw.max() <= high + slack else raw


def _find_padding(raw: npt.NDArray[Any], values: npt.NDArray[Any], data: Any, bits_stored: int) -> Mask | None:
    """Find the pixels equal to PixelPaddingValue, or between it and PixelPaddingRangeLimit; None if undeclared.

    Both tags may exceed the stored bits. They are then compared with the raw values.
    """
    value, limit = (_get_int(data, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return None
    bounds = [_match_sign(bound, raw.dtype, bits_stored) for bound in (value, value if limit is None else limit)]
    low, high = min(bounds), max(bounds)
    signed = raw.dtype.kind == "i"
    fits = -(1 << (bits_stored - 1)) * signed <= low and high < 1 << (bits_stored - signed)
    compared = values if fits else raw
    return np.asarray((compared >= low) & (compared <= high))


def _match_sign(value: int, dtype: np.dtype[Any], bits_stored: int) -> int:
    """Reinterpret a padding value, which may be written signed or unsigned, with the signedness of the pixels."""
    if dtype.kind == "u":
        return value % (1 << 8 * dtype.itemsize) if value < 0 else value
    for bits in (bits_stored, 8 * dtype.itemsize):
        if 1 << (bits - 1) <= value < 1 << bits:
            return value - (1 << bits)
    return value


def _wraps_around(raw: npt.NDArray[Any], values: npt.NDArray[Any], padding: Mask | None) -> bool:
    """Whether BitsStored is too small: whether neighbouring pixels differ less with the bits above it than without."""
    if not (raw != values).any():
        return False
    step = max(1, int((raw.size / 1e6) ** 0.5))  # skips rows only, so that neighbours in a row stay neighbours
    all_bits, stored_bits = (pixels[::step].astype(np.int64) for pixels in (raw, values))
    if padding is not None:
        all_bits[padding[::step]] = stored_bits[padding[::step]] = 0
    return bool(np.abs(np.diff(all_bits)).sum() < np.abs(np.diff(stored_bits)).sum())


def _get_int(data: Any, name: str) -> int | None:
    """Return the first value of a numeric tag as an int; None if it is absent or blank."""
    value = data.get(name)
    if hasattr(value, "__len__") and not isinstance(value, str | bytes) and len(value):
        value = value[0]
    return int(value) if isinstance(value, int | float) else None
