"""JPEGs of many kinds, the files they come in, and seeded damage to their entropy-coded data."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from tests.odd_files import write_dicom_jpeg, write_jpeg_tiff

_SCAN = re.compile(rb"\xff\xda")
_AFTER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)


def radiograph(height: int = 88, width: int = 120) -> Image.Image:
    """A picture with edges and texture, of the same pixels each time."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(5).normal(0, 6, (height, width))
    values = 120 + 70 * np.sin(x / 9) * np.cos(y / 7) + 40 * ((x - 60) ** 2 + (y - 40) ** 2 < 900) + noise
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    """The JPEG that Pillow makes of it."""
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **{"quality": 88, **options})
    return buffer.getvalue()


def colour(image: Image.Image) -> Image.Image:
    """Three channels that differ."""
    return Image.merge("RGB", [image, image.transpose(Image.Transpose.ROTATE_180), image.point(lambda v: 255 - v)])


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(radiograph(), exif=exif, restart_marker_blocks=4)


def _ycck() -> bytes:
    cmyk = encode(colour(radiograph()).convert("CMYK"), restart_marker_blocks=4)
    at = cmyk.index(b"Adobe") + 11
    return cmyk[:at] + b"\2" + cmyk[at + 1 :]  # the transform that its components went through


def _mpo() -> bytes:
    preview = radiograph(40, 40)
    return encode(colour(radiograph()), format="MPO", save_all=True, append_images=[preview])


def _parts(width: int, height: int) -> list[bytes]:
    """The picture in JPEGs of this size, row by row; those at the right and bottom are filled up."""
    image = radiograph()
    corners = [(x, y) for y in range(0, image.height, height) for x in range(0, image.width, width)]
    return [encode(image.crop((x, y, x + width, y + height)), restart_marker_blocks=4) for x, y in corners]


# name → ending, its JPEGs, and how a file is made of them. The first JPEG is the one to damage.
Maker = Callable[[Path, list[bytes]], object]


def _as_file(path: Path, jpegs: list[bytes]) -> None:
    path.write_bytes(b"".join(jpegs))


def _as_tiff(**options: Any) -> Maker:
    return lambda path, jpegs: write_jpeg_tiff(path, jpegs, width=120, height=88, **options)


def _as_dicom(fragments: int) -> Maker:
    return lambda path, jpegs: write_dicom_jpeg(path, jpegs[0], width=120, height=88, fragments=fragments)


def kinds() -> dict[str, tuple[str, list[bytes], Maker]]:
    """Every way in which a JPEG may come."""
    grey, restarts = radiograph(), {"restart_marker_blocks": 4}
    return {
        "grey": ("jpg", [encode(grey)], _as_file),
        "grey, restart markers": ("jpg", [encode(grey, **restarts)], _as_file),
        "grey, progressive": ("jpg", [encode(grey, progressive=True)], _as_file),
        "colour": ("jpg", [encode(colour(grey), **restarts)], _as_file),
        "colour, progressive": ("jpg", [encode(colour(grey), progressive=True)], _as_file),
        "turned": ("jpg", [_turned()], _as_file),
        "CMYK": ("jpg", [encode(colour(grey).convert("CMYK"), **restarts)], _as_file),
        "YCCK": ("jpg", [_ycck()], _as_file),
        "MPO": ("jpg", [_mpo()], _as_file),
        "TIFF in strips": ("tif", _parts(120, 32), _as_tiff(part=(120, 32))),
        "TIFF in tiles": ("tif", _parts(48, 48), _as_tiff(part=(48, 48), tiled=True)),
        "TIFF with shared tables": ("tif", _parts(120, 32), _as_tiff(part=(120, 32), shared=True)),
        "DICOM": ("dcm", [encode(grey, **restarts)], _as_dicom(1)),
        "DICOM in fragments": ("dcm", [encode(grey, **restarts)], _as_dicom(3)),
    }  # fmt: skip


def scans_of(jpeg: bytes) -> list[tuple[int, int]]:
    """Where the entropy-coded data of the first image's scans begin and end."""
    scans, at = [], 0
    while found := _SCAN.search(jpeg, at):
        start = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        after = _AFTER.search(jpeg, start)
        assert after
        scans.append((start, after.start()))
        at = after.start()
        if jpeg[at + 1] == 0xD9:
            break
    return scans


def harm(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG with damaged data: cut off, its end missing, bits flipped, restart markers lost, its tail zeros."""
    scans = scans_of(jpeg)
    start, end = scans[int(rng.integers(len(scans)))]
    place = int(rng.integers(start, end))
    last = scans[-1][1]
    match rng.integers(6):
        case 0:
            return jpeg[:place]
        case 1:
            return jpeg[:place] + b"\xff\xd9"
        case 2:
            return jpeg[:last]  # all but EOI
        case 3:
            content = bytearray(jpeg)
            for at in rng.integers(start, end, int(rng.integers(1, 6))):
                content[at] ^= 1 << int(rng.integers(8))
            return bytes(content)
        case 4:
            marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg) if start <= found.start() < end]
            for at in sorted(rng.permutation(marks)[: int(rng.integers(1, 4))], reverse=True):
                jpeg = jpeg[:at] + jpeg[at + 2 :]
            return jpeg
        case _:
            return jpeg[:place] + bytes(last - place) + jpeg[last:]


def libjpeg_says(jpeg: bytes) -> str:
    """What libjpeg-turbo warns of first; nothing where it does not."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY")
    except ValueError as error:
        return str(error)
    return ""
