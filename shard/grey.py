"""Convert a decoded image of any mode, colour or depth to 8-bit grey."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from shard.dicom.image import LUMA
from shard.errors import UnreadableImage

Grey = npt.NDArray[np.uint8]

# Pillow may read these formats. Others are excluded, because some of Pillow's plugins start external programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000", "WEBP", "GIF")
MIN_DEEP_RANGE = 16  # levels between the percentiles of a deep image: stretching fewer would amplify noise
CHUNK_ROWS = 256  # image rows converted to floats at a time, which bounds memory
_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO = 262, 0  # a TIFF tag and its value


def read_rawmode(image: Image.Image) -> str | None:
    """Return the mode in which Pillow will unpack the samples of an image, such as RGB;16B; None if it is unknown.

    Pillow forgets it when it loads the image.
    """
    tile = getattr(image, "tile", None)
    if not tile:
        return None
    rawmode = tile[0].args if isinstance(tile[0].args, str) else next(iter(tile[0].args or ()), None)
    return rawmode if isinstance(rawmode, str) else None


def convert_to_grey(image: Image.Image, content: bytes, rawmode: str | None) -> Image.Image:
    """Convert an image of any mode to mode L. content: its file; rawmode: as `read_rawmode` returned it.

    Transparent pixels become black. Samples deeper than 8 bits are mapped as in `scale_to_uint8`.
    Raises UnreadableImage if the mode is not supported.
    """
    if rawmode and ";16" in rawmode and not image.mode.startswith("I"):  # Pillow would drop the low bytes
        if not rawmode.startswith("RGB"):
            raise UnreadableImage(f"16-bit samples {rawmode}: their low bytes would be lost")
        return Image.fromarray(scale_to_uint8(_read_16_bit_luma(image, content, rawmode)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return ImageChops.multiply(rgba.convert("L"), rgba.getchannel("A"))
    if image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        return image.convert("L")
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise UnreadableImage(f"colour mode {image.mode} is not supported")
    # Pillow inverts "white is zero" TIFFs of 8 bits, but not deeper ones.
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    inverted = tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    return Image.fromarray(scale_to_uint8(np.asarray(image), inverted=inverted))


def _read_16_bit_luma(image: Image.Image, content: bytes, rawmode: str) -> npt.NDArray[np.float32]:
    """Read [H, W] luma of 16-bit colour. Pillow keeps only the high bytes; a byte-swapped pass reads the low ones."""
    native = {"little": "B", "big": "L"}[sys.byteorder]
    swapped = rawmode[:-1] + {"B": "L", "L": "B", "N": native}[rawmode[-1]]
    low_bytes = Image.open(io.BytesIO(content), formats=FORMATS)
    args = low_bytes.tile[0].args
    new_args = (swapped, *args[1:]) if isinstance(args, tuple) else swapped
    low_bytes.tile = [low_bytes.tile[0]._replace(args=new_args)]
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low_bytes)
    luma = values[:, :, :3].astype(np.float32) @ LUMA
    return np.asarray(luma * (values[:, :, 3] / np.float32(65535)) if values.shape[2] == 4 else luma)


def scale_to_uint8(
    values: npt.NDArray[Any], window: tuple[float, float] | None = None, inverted: bool = False,
    padding: npt.NDArray[np.bool_] | None = None,
) -> Grey:  # fmt: skip
    """Map [H, W] values linearly to uint8: the bounds of `window` become 0 and 255.

    The default window is the 0.1–99.9 percentiles of up to a million pixels. inverted: whether low values are bright.
    padding: [H, W] mask of pixels outside the image: they become 0 and do not count for the percentiles.
    Raises UnreadableImage if values are not finite, or nearly constant without a window.
    """
    if values.ndim != 2:
        raise UnreadableImage(f"an array of shape {values.shape} is not a grey image")
    low, high = window or _percentile_window(values, padding)
    if inverted:
        low, high = high, low
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), CHUNK_ROWS):
        block = (values[top : top + CHUNK_ROWS].astype(np.float64) - low) * (255 / (high - low))
        if not np.isfinite(block).all():
            raise UnreadableImage("contains values that are not finite")
        grey[top : top + CHUNK_ROWS] = np.clip(block, 0, 255) + 0.5
    if padding is not None:
        grey[padding] = 0
    return grey


def _percentile_window(values: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    step = max(1, int((values.size / 1e6) ** 0.5))
    sample = values[::step, ::step].astype(np.float64)
    if padding is not None:
        sample = sample[~padding[::step, ::step]]
    if not sample.size:
        raise UnreadableImage("contains only padding")
    if not np.isfinite(sample).all():
        raise UnreadableImage("contains values that are not finite")
    low, high = (float(bound) for bound in np.percentile(sample, (0.1, 99.9)))
    min_range = MIN_DEEP_RANGE if np.issubdtype(values.dtype, np.integer) else np.finfo(np.float32).tiny
    if not high - low >= min_range:
        raise UnreadableImage(f"near-constant image: 99.8 % of it lies within {low:g} to {high:g}")
    return low, high
