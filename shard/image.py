"""Load any source image as 8-bit grey of a given size, and encode it for a shard."""

from __future__ import annotations

import contextlib
import errno
import io
import stat
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shard.dicom import image as dicom
from shard.errors import UnreadableImage
from shard.grey import FORMATS, Grey, convert_to_grey, read_rawmode, scale_to_uint8
from shard.jpeg import segments, tiff

MAX_BYTES = 1 << 30
MAX_PIXELS = 1 << 27  # 134 million: allows 10,000 × 10,000, but not a decompression bomb
MIN_SIDE = 32
MAX_ASPECT = 4
MIN_CONTRAST = 8  # grey levels of 256 between the 1st and the 99th percentile
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
    """Load an image as [H, W] uint8 whose shorter side is at most `size`; see `load_grey_and_bytes`."""
    return load_grey_and_bytes(path, size)[0]


def load_grey_and_bytes(path: Path, size: int) -> tuple[Grey, bytes]:
    """Load an image as [H, W] uint8 whose shorter side is at most `size`, and the content of its file.

    Larger images are downscaled, smaller ones keep their size. The EXIF orientation is applied, colour becomes luma,
    and transparent pixels become black. Samples deeper than 8 bits are mapped linearly: from the window in the DICOM
    file, else from their 0.1–99.9 percentiles.
    Raises UnreadableImage if the file is not an image or can't be a radiograph: shorter than 32 px, longer than 4:1,
    over 134 megapixels, or nearly constant. Raises OSError if the cause is the machine, not the file.
    """
    content = _read_bytes(path)
    try:
        image = _decode(content, size)
    except UnreadableImage:
        raise
    except Exception as error:  # corrupt bytes can make a decoder raise anything
        raise UnreadableImage(f"broken image: {_to_line(error)}") from None
    grey = np.asarray(image)
    counts = histogram(grey)
    low, high = np.searchsorted(counts.cumsum(), (0.01 * counts.sum(), 0.99 * counts.sum()))
    if high - low < MIN_CONTRAST:
        raise UnreadableImage(f"near-constant image: 98 % of it lies within grey levels {low} to {high}")
    return grey, content


def _to_line(error: Exception) -> str:
    """Return an error's message in one short line: a decoder may quote what it read."""
    return (" ".join(str(error).split()) or type(error).__name__)[:150]


def histogram(grey: Grey) -> npt.NDArray[np.int64]:
    """[256] the number of pixels of each grey level."""
    return np.array(Image.fromarray(grey).histogram(), np.int64)


def _read_bytes(path: Path) -> bytes:
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


def _decode(content: bytes, size: int) -> Image.Image:
    """Decode to mode L, upright, with the shorter side at most `size`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about large images and odd tags
        if dicom.is_dicom(content):
            values, aspect = _decode_dicom(content)
            return _downscale(Image.fromarray(values), size, aspect=aspect)
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
        grey = _downscale(convert_to_grey(image, content, rawmode), size, box)
        must_transpose = orientation in UPRIGHT and image.format != "TIFF"  # Pillow transposes TIFFs itself
        return grey.transpose(UPRIGHT[orientation]) if must_transpose else grey


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


def _decode_jpeg(content: bytes, width: int, height: int, size: int) -> Image.Image:
    """Decode with libjpeg-turbo, which downscales while decoding and reports damage. Most files take this path."""
    denominator = choose_scale_denominator(width, height, size)
    shape = -(-height // denominator), -(-width // denominator)
    decoded = segments.decode_grey(content, *shape)
    assert decoded.shape == shape, (decoded.shape, shape)
    # The last row and column may extend beyond the image. Without the box, the image would shift by up to half a pixel.
    return _downscale(Image.fromarray(decoded), size, (0, 0, width / denominator, height / denominator))


def _downscale(
    grey: Image.Image, size: int, box: tuple[float, float, float, float] | None = None, aspect: float = 1.0
) -> Image.Image:
    """Resize with antialiasing to square pixels and a shorter side of `size`. Images are never enlarged.

    box: the part of the image to use, None for all of it. aspect: height of a pixel by its width.
    """
    width, height = (box[2], box[3]) if box else grey.size
    width, height = _with_square_pixels(width, height, aspect)
    short = min(width, height)
    if short <= size and box is None and aspect == 1:
        return grey
    scale = min(1.0, size / short)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return grey.resize(target, Image.Resampling.BICUBIC, box=box)


def encode_jpeg(grey: Grey, quality: int) -> bytes:
    """Encode [H, W] uint8 as a grey JPEG. Raises UnreadableImage if it does not decode to the same shape."""
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(grey)[:, :, None], quality=quality, colorspace="GRAY")
    try:
        decoded = simplejpeg.decode_jpeg(content, "GRAY")
    except ValueError as error:
        raise UnreadableImage(f"its JPEG can't be decoded: {error}") from None
    if decoded.shape[:2] != grey.shape:
        raise UnreadableImage(f"its JPEG decodes to {decoded.shape[:2]}, not {grey.shape}")
    return content


def center_crop(grey: Grey, size: int) -> Grey:
    """Crop [H, W] uint8 to the central [size, size], padding a smaller image with black."""
    square = np.zeros((size, size), np.uint8)
    height, width = min(grey.shape[0], size), min(grey.shape[1], size)
    from_top, from_left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    to_top, to_left = (size - height) // 2, (size - width) // 2
    source = grey[from_top : from_top + height, from_left : from_left + width]
    square[to_top : to_top + height, to_left : to_left + width] = source
    return square
