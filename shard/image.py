"""Any source file → 8-bit grey array of the wanted size → bytes for the shard."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Grey = npt.NDArray[np.uint8]
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class UnreadableImage(Exception):
    """A source file that holds no usable image; its text is the reason."""


def load_grey(path: Path, size: int) -> Grey:
    """Read an image as [H, W] uint8 whose short side is `size`, or less where the source is smaller.

    JPEGs at least twice as large are shrunk while decoding (DCT scaling) and then resized with antialiasing.
    Samples deeper than 8 bits are mapped linearly from their 0.1–99.9 percentiles. Raises UnreadableImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.draft("L", (2 * size, 2 * size))
                grey = _to_grey(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}".replace(str(path), path.name)) from None
    short = min(grey.size)
    if short > size:
        width, height = (max(1, round(side * size / short)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(grey)


def _to_grey(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _EIGHT_BIT:
        return upright.convert("L")
    values = np.asarray(upright, dtype=np.float32)
    if values.ndim != 2:
        raise UnreadableImage(f"colour mode {upright.mode} is not supported")
    low, high = np.percentile(values, (0.1, 99.9))
    if not high > low:
        raise UnreadableImage("every pixel has the same value")
    return Image.fromarray(((values - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8))


def encode_jpeg(grey: Grey, quality: int) -> bytes:
    """The bytes of a grey JPEG of [H, W] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def to_square(grey: Grey, size: int) -> Grey:
    """[size, size] uint8: the centre of the image; what a small image lacks is black."""
    square = np.zeros((size, size), np.uint8)
    height, width = min(grey.shape[0], size), min(grey.shape[1], size)
    from_top, from_left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    to_top, to_left = (size - height) // 2, (size - width) // 2
    source = grey[from_top : from_top + height, from_left : from_left + width]
    square[to_top : to_top + height, to_left : to_left + width] = source
    return square
