"""Any source file → 8-bit grey array of the wanted size → bytes for the shard, or the reason why not."""

from __future__ import annotations

import contextlib
import errno
import io
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageChops, UnidentifiedImageError

from shard.dicom import image as dicom
from shard.jpeg import segments, tiff

Grey = npt.NDArray[np.uint8]

# What a radiograph may come as. Others stay closed: some of Pillow's readers start other programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000", "WEBP", "GIF")
MAX_BYTES = 1 << 30
MAX_PIXELS = 1 << 27  # 134 million: 10,000 × 10,000 passes, a decompression bomb does not
MIN_SIDE = 32
MAX_ASPECT = 4
MIN_CONTRAST = 8  # grey levels of 256 between the 1st and the 99th percentile
MIN_DEPTH = 16  # levels between the percentiles of a deep image: stretching fewer would show noise
# A JPEG is shrunk by 8, 4 or 2 while it is decoded (DCT scaling) where what remains is at least this many times
# the target: so the result stays within 40 dB of full decoding and antialiased resizing on real radiographs.
ROOM = {8: 3.0, 4: 1.5, 2: 1.0}
# EXIF's orientation → what turns the image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# What a file system says of one file; anything else it says (a full disk, no more handles) is of the machine.
_OF_THE_FILE = {
    errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.EPERM: "permission denied",
    errno.ENOTDIR: "no such file", errno.ENAMETOOLONG: "the name is too long", errno.ELOOP: "a loop of links",
    errno.EIO: "the disk can't read it", errno.EINVAL: "the disk can't read it",
}  # fmt: skip


class UnreadableImage(Exception):
    """A source file that holds no usable image; its text is the reason, and the same each time."""


def load_grey(path: Path, size: int) -> Grey:
    """Read an image as [H, W] uint8 whose short side is `size`, or less where the source is smaller; see `load`."""
    return load(path, size)[0]


def load(path: Path, size: int) -> tuple[Grey, bytes]:
    """Read an image as [H, W] uint8 whose short side is `size`, or less where the source is smaller; and the file.

    EXIF's orientation is applied, colour becomes luma, what is transparent is black over. Samples deeper than 8 bits
    are mapped linearly: from the window that a DICOM names, else from their 0.1–99.9 percentiles.
    Raises UnreadableImage where there is no image, or none that could be a radiograph: shorter than 32 px, longer
    than 4:1, over 134 megapixels, or all but constant. Raises OSError where the machine is at fault.
    """
    content = _read(path)
    try:
        grey = _decode(content, size)
    except UnreadableImage:
        raise
    except Exception as error:  # a decoder may raise anything at broken bytes; its words become the reason
        raise UnreadableImage(f"broken image: {_brief(error)}") from None
    counts = histogram(np.asarray(grey))
    low, high = np.searchsorted(counts.cumsum(), (0.01 * counts.sum(), 0.99 * counts.sum()))
    if high - low < MIN_CONTRAST:
        raise UnreadableImage(f"near-constant image: 98 % of it lies within grey levels {low} to {high}")
    return np.asarray(grey), content


def _brief(error: Exception) -> str:
    """An error in one line: a decoder may quote what it read."""
    return (" ".join(str(error).split()) or type(error).__name__)[:150]


def histogram(grey: Grey) -> npt.NDArray[np.int64]:
    """[256] how many pixels have each grey level."""
    return np.array(Image.fromarray(grey).histogram(), np.int64)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
            raise UnreadableImage("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"file of {status.st_size} bytes: over {MAX_BYTES}")
        content = path.read_bytes()
    except ValueError:  # the path holds a NUL
        raise UnreadableImage("no such file") from None
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise UnreadableImage(_OF_THE_FILE[error.errno]) from None
    if not content:
        raise UnreadableImage("empty file")
    return content


def _decode(content: bytes, size: int) -> Image.Image:
    """The image in mode L, upright, its short side `size` or less."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the readers' own, of images that are large and of tags that are odd
        if dicom.is_dicom(content):
            values, ratio = _read_dicom(content)
            return _shrink(Image.fromarray(values), size, ratio=ratio)
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:  # its own words name an address in memory
            raise UnreadableImage("not an image in a known format") from None
        _check_size(*image.size)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's MPO holds a preview too
        if frames > 1:
            raise UnreadableImage(f"holds {frames} images, not one")
        rawmode = _rawmode(image)  # before EXIF is read, which loads a PNG, after which it is forgotten
        orientation = image.getexif().get(0x0112, 1)
        if image.format == "JPEG" and image.mode in ("L", "RGB") and orientation == 1:
            with contextlib.suppress(segments.UnusualSampling):
                return _decode_jpeg(content, image.width, image.height, size)
        _check_jpegs(image, content)
        drafted = image.draft("L", (2 * size, 2 * size))
        box = drafted[1] if drafted else None
        grey = _shrink(_to_grey(image, content, rawmode), size, box)
        turned = orientation in UPRIGHT and image.format != "TIFF"  # Pillow turns TIFFs by itself
        return grey.transpose(UPRIGHT[orientation]) if turned else grey


def _check_jpegs(image: Image.Image, content: bytes) -> None:
    """Raise where a JPEG in the file is damaged: Pillow shows one as grey where data is missing, and says nothing."""
    if image.format in ("JPEG", "MPO"):
        segments.sound(content)
    elif image.format == "TIFF":
        try:
            for part in tiff.jpegs(getattr(image, "tag_v2", {}), content):
                segments.sound(part)
        except tiff.UnsupportedTiff as error:
            raise UnreadableImage(str(error)) from None


def _read_dicom(content: bytes) -> tuple[Grey, float]:
    """The image at the size it has, and the height of its pixels by their width."""
    try:
        data = dicom.parse(content)
        ratio = dicom.pixel_ratio(data)
        _check_size(*_squared(int(data.Columns), int(data.Rows), ratio))
        return _to_eight_bits(*dicom.read(data)), ratio
    except dicom.UnsupportedDicom as error:
        raise UnreadableImage(_brief(error)) from None


def _squared(width: float, height: float, ratio: float) -> tuple[float, float]:
    """The size with square pixels of an image whose pixels are `ratio` times as high as wide: none is lost."""
    return (width, height * ratio) if ratio > 1 else (width / ratio, height)


def _check_size(width: float, height: float) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise UnreadableImage(f"{width:.0f}×{height:.0f} pixels: too small or too narrow for a radiograph")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width:.0f}×{height:.0f} pixels: over {MAX_PIXELS / 1e6:.0f} megapixels")


def reduction(width: int, height: int, size: int) -> int:
    """By how much a JPEG is shrunk while it is decoded, to give a short side of `size`: 8, 4, 2 or 1."""
    return next((factor for factor, room in ROOM.items() if min(width, height) >= factor * room * size), 1)


def _decode_jpeg(content: bytes, width: int, height: int, size: int) -> Image.Image:
    """The short way for nearly all: libjpeg-turbo scales while it decodes, and tells what is damaged."""
    factor = reduction(width, height, size)
    wanted = -(-height // factor), -(-width // factor)
    scaled = segments.decode(content, *wanted)
    assert scaled.shape == wanted, (scaled.shape, wanted)
    # The last row and column may reach beyond the image: without the box all would shift by up to half a pixel.
    return _shrink(Image.fromarray(scaled), size, (0, 0, width / factor, height / factor))


def _shrink(
    grey: Image.Image, size: int, box: tuple[float, float, float, float] | None = None, ratio: float = 1.0
) -> Image.Image:
    """The part of the image in `box` (none: all of it), its short side `size`, with antialiasing; never enlarged.

    ratio: the height of a pixel by its width; those of the result are square.
    """
    width, height = (box[2], box[3]) if box else grey.size
    width, height = _squared(width, height, ratio)
    short = min(width, height)
    if short <= size and box is None and ratio == 1:
        return grey
    scale = min(1.0, size / short)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return grey.resize(target, Image.Resampling.BICUBIC, box=box)


def _to_grey(image: Image.Image, content: bytes, rawmode: str | None) -> Image.Image:
    """Mode L of any other mode, at the size it has."""
    if rawmode and ";16" in rawmode and not image.mode.startswith("I"):  # Pillow would keep the high bytes alone
        if not rawmode.startswith("RGB"):
            raise UnreadableImage(f"16-bit samples {rawmode}: their low bytes would be lost")
        return Image.fromarray(_to_eight_bits(_deep_luma(image, content, rawmode)))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return ImageChops.multiply(layered.convert("L"), layered.getchannel("A"))
    if image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        return image.convert("L")
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise UnreadableImage(f"colour mode {image.mode} is not supported")
    # TIFF's "white is zero": Pillow turns 8 bits over, but not more.
    inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
    return Image.fromarray(_to_eight_bits(np.asarray(image), inverted=inverted))


def _rawmode(image: Image.Image) -> str | None:
    """How Pillow will unpack the file's samples, such as RGB;16B; None where it does not say."""
    tile = getattr(image, "tile", None)
    if not tile:
        return None
    rawmode = tile[0].args if isinstance(tile[0].args, str) else next(iter(tile[0].args or ()), None)
    return rawmode if isinstance(rawmode, str) else None


def _deep_luma(image: Image.Image, content: bytes, rawmode: str) -> npt.NDArray[np.float32]:
    """[H, W] luma of 16-bit colour: the high bytes, which Pillow keeps, and the low ones by a second pass."""
    native = {"little": "B", "big": "L"}[sys.byteorder]
    swapped = rawmode[:-1] + {"B": "L", "L": "B", "N": native}[rawmode[-1]]
    again = Image.open(io.BytesIO(content), formats=FORMATS)
    args = again.tile[0].args
    again.tile = [again.tile[0]._replace(args=(swapped, *args[1:]) if isinstance(args, tuple) else swapped)]
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)
    luma = values[:, :, :3].astype(np.float32) @ dicom.LUMA
    return np.asarray(luma * (values[:, :, 3] / np.float32(65535)) if values.shape[2] == 4 else luma)


def _to_eight_bits(
    values: npt.NDArray[Any], bounds: tuple[float, float] | None = None, inverted: bool = False,
    padding: npt.NDArray[np.bool_] | None = None,
) -> Grey:
    """[H, W] uint8: `bounds`, else the 0.1–99.9 percentiles of up to a million pixels, become 0 and 255.

    padding: [H, W], which pixels are no part of the image: they don't count for the percentiles, and become 0.
    """  # fmt: skip
    if values.ndim != 2:
        raise UnreadableImage(f"an array of shape {values.shape} is not a grey image")
    if bounds is None:
        step = max(1, int((values.size / 1e6) ** 0.5))
        sample = values[::step, ::step].astype(np.float64)
        if padding is not None:
            sample = sample[~padding[::step, ::step]]
        if not sample.size:
            raise UnreadableImage("nothing but padding")
        if not np.isfinite(sample).all():
            raise UnreadableImage("holds values that are not finite")
        low, high = (float(bound) for bound in np.percentile(sample, (0.1, 99.9)))
        if not high - low >= (MIN_DEPTH if np.issubdtype(values.dtype, np.integer) else np.finfo(np.float32).tiny):
            raise UnreadableImage(f"near-constant image: 99.8 % of it lies within {low:g} to {high:g}")
    else:
        low, high = bounds
    if inverted:
        low, high = high, low
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # a huge image is never held in floats as a whole
        block = (values[top : top + 256].astype(np.float64) - low) * (255 / (high - low))
        if not np.isfinite(block).all():
            raise UnreadableImage("holds values that are not finite")
        grey[top : top + 256] = np.clip(block, 0, 255) + 0.5
    if padding is not None:
        grey[padding] = 0
    return grey


def encode_jpeg(grey: Grey, quality: int) -> bytes:
    """The bytes of a grey JPEG of [H, W] uint8, decoded again to be sure. Raises UnreadableImage where they fail."""
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(grey)[:, :, None], quality=quality, colorspace="GRAY")
    try:
        decoded = simplejpeg.decode_jpeg(content, "GRAY")
    except ValueError as error:
        raise UnreadableImage(f"its JPEG does not decode: {error}") from None
    if decoded.shape[:2] != grey.shape:
        raise UnreadableImage(f"its JPEG decodes to {decoded.shape[:2]}, not {grey.shape}")
    return content


def to_square(grey: Grey, size: int) -> Grey:
    """[size, size] uint8: the centre of the image; what a small image lacks is black."""
    square = np.zeros((size, size), np.uint8)
    height, width = min(grey.shape[0], size), min(grey.shape[1], size)
    from_top, from_left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    to_top, to_left = (size - height) // 2, (size - width) // 2
    source = grey[from_top : from_top + height, from_left : from_left + width]
    square[to_top : to_top + height, to_left : to_left + width] = source
    return square
