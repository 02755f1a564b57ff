"""Load any source image as 8-bit grey of a given size, and encode it for a shard."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from shard.dicom import image as dicom
from shard.errors import UnreadableImage
from shard.grey import FORMATS, Grey, convert_to_grey, read_rawmode, scale_to_uint8
from shard.jpeg import metadata, segments, tiff
from shard.jpeg.encoded import encode_and_check
from shard.kernels.resize import resize
from shard.kernels.sums import sum_pixels

MAX_BYTES = 1 << 30
MAX_PIXELS = 1 << 27  # 134 million: allows 10,000 × 10,000, but not a decompression bomb
MIN_SIDE = 32
MAX_ASPECT = 4
MIN_CONTRAST = 8  # grey levels of 256 between the 1st and the 99th percentile
# The variance is at most this if the two are closer: 98 % within half of it from their middle, the others anywhere.
CONTRAST_VARIANCE = (MIN_CONTRAST / 2) ** 2 + 0.02 * 255**2
# Scale denominator of JPEG decoding (DCT scaling) → the least ratio of the decoded to the requested size. With these,
# the PSNR against full decoding and antialiased resizing is above 40 dB on real radiographs.
MIN_OVERSAMPLING = {8: 3.0, 4: 1.5, 2: 1.0}
EXIF_ORIENTATION = 0x0112
# EXIF orientation → the transposition that turns the image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# Errors of a single file. All others, such as a full disk or too many open files, are errors of the machine.
_FILE_ERRORS = {
    errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.EPERM: "permission denied",
    errno.ENOTDIR: "no such file", errno.ENAMETOOLONG: "file name too long", errno.ELOOP: "symbolic links form a loop",
    errno.EIO: "read error on the disk", errno.EINVAL: "read error on the disk",
}  # fmt: skip


def load_grey(path: Path, size: int) -> Grey:
    """Load an image as [H, W] uint8 whose shorter side is at most `size`; see `decode`."""
    return decode(read_file(path), size)[0]


def decode(content: bytes, size: int) -> tuple[Grey, bytes | None]:
    """Decode a file to [H, W] uint8 whose shorter side is at most `size`; also return the file's JPEG or None.

    Larger images are downscaled, smaller ones keep their size. The EXIF orientation is applied, colour becomes luma,
    and transparent pixels become black. Samples deeper than 8 bits are mapped linearly: from the window in the DICOM
    file, else from their 0.1–99.9 percentiles. The JPEG is returned without metadata, if it decodes to that array.
    Raises UnreadableImage if the file is not an image or can't be a radiograph: shorter than 32 px, longer than 4:1,
    over 134 megapixels, or nearly constant.
    """
    try:
        grey, jpeg = _decode(content, size)
    except UnreadableImage:
        raise
    except Exception as error:  # corrupt bytes can make a decoder raise anything
        raise UnreadableImage(f"broken image: {_to_line(error)}") from None
    _check_contrast(grey)
    return grey, jpeg


def _to_line(error: Exception) -> str:
    """Return an error's message in one short line: a decoder may quote what it read."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 150 else line[:149] + "…"


def _check_contrast(grey: Grey) -> None:
    total, squares = sum_pixels(grey)
    if squares * grey.size - total**2 > CONTRAST_VARIANCE * grey.size**2:
        return  # saves the histogram, which takes longer
    counts = np.array(Image.fromarray(grey).histogram(), np.int64)
    low, high = np.searchsorted(counts.cumsum(), (0.01 * counts.sum(), 0.99 * counts.sum()))
    if high - low < MIN_CONTRAST:
        raise UnreadableImage(f"near-constant image: 98 % of it lies within grey levels {low} to {high}")


def read_file(path: Path) -> bytes:
    """Read a source file. Raises UnreadableImage if it can't be one, OSError if the cause is the machine."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would block
            raise UnreadableImage("is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"file too large: {status.st_size} bytes, at most {MAX_BYTES} are read")
        content = path.read_bytes()
    except ValueError:  # the path contains a NUL
        raise UnreadableImage("no such file") from None
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        raise UnreadableImage(_FILE_ERRORS[error.errno]) from None
    if not content:
        raise UnreadableImage("empty file")
    return content


def _decode(content: bytes, size: int) -> tuple[Grey, bytes | None]:
    """Decode to grey, upright, with the shorter side at most `size`; also return the file's JPEG, as `decode` does."""
    if plain := segments.read_plain_shape(content):  # most files: nothing to ask Pillow for
        _check_size(plain[1], plain[0])
        with contextlib.suppress(segments.UnsupportedSampling):
            return _decode_jpeg(content, plain[1], plain[0], size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about large images and odd tags
        if dicom.is_dicom(content):
            values, aspect = _decode_dicom(content)
            return _downscale(values, size, aspect=aspect), None
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:  # its message contains a memory address
            raise UnreadableImage("not an image in a known format") from None
        _check_size(*image.size)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # cameras add previews to MPO files
        if frames > 1:
            raise UnreadableImage(f"contains {frames} images, expected one")
        rawmode = read_rawmode(image)  # first, because reading a PNG's EXIF loads the image
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        if image.format == "JPEG" and image.mode in ("L", "RGB") and orientation == 1:
            with contextlib.suppress(segments.UnsupportedSampling):
                return _decode_jpeg(content, image.width, image.height, size)
        _check_jpegs(image, content)
        draft = image.draft("L", (2 * size, 2 * size))
        box = draft[1] if draft else None
        grey = _downscale(np.asarray(convert_to_grey(image, content, rawmode)), size, box)
        if orientation in UPRIGHT and image.format != "TIFF":  # Pillow transposes TIFFs itself
            grey = np.asarray(Image.fromarray(grey).transpose(UPRIGHT[orientation]))
        return grey, metadata.strip_metadata(content, grey)


def _check_jpegs(image: Image.Image, content: bytes) -> None:
    """Raise if a JPEG in the file is corrupt: Pillow fills in missing data with grey, without a warning."""
    if image.format in ("JPEG", "MPO"):
        segments.check_and_repair(content)
    elif image.format == "TIFF":
        try:
            for jpeg in tiff.extract_jpegs(getattr(image, "tag_v2", {}), content):
                segments.check_and_repair(jpeg)
        except tiff.UnsupportedTiff as error:
            raise UnreadableImage(str(error)) from None


def _decode_dicom(content: bytes) -> tuple[Grey, float]:
    """Decode at full size. Return [H, W] uint8 and the aspect ratio of pixels, height by width."""
    try:
        data = dicom.read_dataset(content)
        aspect = dicom.pixel_aspect_ratio(data)
        _check_size(*_with_square_pixels(int(data.Columns), int(data.Rows), aspect))
        return scale_to_uint8(*dicom.read_image(data)), aspect
    except dicom.UnsupportedDicom as error:
        raise UnreadableImage(_to_line(error)) from None


def _with_square_pixels(width: float, height: float, aspect: float) -> tuple[float, float]:
    """Return the size after resampling to square pixels without losing any. aspect: height of a pixel by its width."""
    return (width, height * aspect) if aspect > 1 else (width / aspect, height)


def _check_size(width: float, height: float) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise UnreadableImage(f"{width:.0f}×{height:.0f} pixels: too small or too narrow for a radiograph")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width:.0f}×{height:.0f} pixels: over {MAX_PIXELS / 1e6:.0f} megapixels")


def choose_scale_denominator(width: int, height: int, size: int) -> int:
    """Choose the JPEG decoder's downscaling denominator (8, 4, 2 or 1) for a final shorter side of `size`."""
    short = min(width, height)
    return next((denominator for denominator, oversampling in MIN_OVERSAMPLING.items()
                 if short >= denominator * oversampling * size), 1)  # fmt: skip


def _decode_jpeg(content: bytes, width: int, height: int, size: int) -> tuple[Grey, bytes | None]:
    """Decode with libjpeg-turbo, which downscales while decoding and reports damage. Most files take this path."""
    if min(width, height) <= size:
        return _decode_and_keep(content)
    denominator = choose_scale_denominator(width, height, size)
    shape = -(-height // denominator), -(-width // denominator)
    decoded = segments.decode_grey(content, *shape)
    assert decoded.shape == shape, (decoded.shape, shape)
    # The last row and column may extend beyond the image. Without the box, the image would shift by up to half a pixel.
    return _downscale(decoded, size, (0, 0, width / denominator, height / denominator)), None


def _decode_and_keep(content: bytes) -> tuple[Grey, bytes | None]:
    """Decode a JPEG at its own size; also return its bytes for the shard if it is grey and baseline."""
    jpeg = metadata.strip_intact(content)
    if jpeg is not None:  # usually the only decoding, of the bytes that go into the shard
        with contextlib.suppress(ValueError):
            return segments.decode_grey_strictly(jpeg), jpeg
    grey = segments.decode_grey(content)
    return grey, metadata.strip_metadata(content, grey)


def _downscale(
    grey: Grey, size: int, box: tuple[float, float, float, float] | None = None, aspect: float = 1.0
) -> Grey:  # fmt: skip
    """Resize with antialiasing to square pixels and a shorter side of `size`. Images are never enlarged.

    box: the part of the image to use, None for all of it. aspect: height of a pixel by its width.
    """
    width, height = (box[2], box[3]) if box else (grey.shape[1], grey.shape[0])
    width, height = _with_square_pixels(width, height, aspect)
    short = min(width, height)
    if short <= size and box is None and aspect == 1:
        return grey
    scale = min(1.0, size / short)
    return resize(grey, max(1, round(width * scale)), max(1, round(height * scale)), box)


def encode_jpeg(grey: Grey, quality: int) -> bytes:
    """Encode [H, W] uint8 as a grey JPEG. Raises UnreadableImage if it is not one of that picture."""
    try:
        return encode_and_check(grey, quality)
    except ValueError as error:
        raise UnreadableImage(f"its JPEG can't be decoded: {error}") from None


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels, or load them from numba's cache. Raises OSError if that has no space for them."""
    sum_pixels(resize(np.zeros((2 * MIN_SIDE, 2 * MIN_SIDE), np.uint8), MIN_SIDE, MIN_SIDE))
    encode_and_check(np.zeros((MIN_SIDE, MIN_SIDE), np.uint8), 95)


def center_crop(grey: Grey, size: int) -> Grey:
    """Crop [H, W] uint8 to the central [size, size], padding a smaller image with black."""
    square = np.zeros((size, size), np.uint8)
    height, width = min(grey.shape[0], size), min(grey.shape[1], size)
    from_top, from_left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    to_top, to_left = (size - height) // 2, (size - width) // 2
    source = grey[from_top : from_top + height, from_left : from_left + width]
    square[to_top : to_top + height, to_left : to_left + width] = source
    return square
