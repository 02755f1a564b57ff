"""JPEGs in all kinds of files, and seeded damage to their entropy-coded data."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from tests.odd_files import write_dicom_jpeg, write_jpeg_tiff

_SOS = re.compile(rb"\xff\xda")
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)


def radiograph(height: int = 88, width: int = 120) -> Image.Image:
    """Return a grey image with edges and texture, the same at each call."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(5).normal(0, 6, (height, width))
    values = 120 + 70 * np.sin(x / 9) * np.cos(y / 7) + 40 * ((x - 60) ** 2 + (y - 40) ** 2 < 900) + noise
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    """Encode an image with Pillow, as a JPEG unless options name another format."""
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **{"quality": 88, **options})
    return buffer.getvalue()


def to_colour(image: Image.Image) -> Image.Image:
    """Return RGB with three different channels."""
    return Image.merge("RGB", [image, image.transpose(Image.Transpose.ROTATE_180), image.point(lambda v: 255 - v)])


def _encode_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(radiograph(), exif=exif, restart_marker_blocks=4)


def _encode_ycck() -> bytes:
    cmyk = encode(to_colour(radiograph()).convert("CMYK"), restart_marker_blocks=4)
    at = cmyk.index(b"Adobe") + 11
    return cmyk[:at] + b"\2" + cmyk[at + 1 :]  # the colour transform: YCCK


def _encode_mpo() -> bytes:
    preview = radiograph(40, 40)
    return encode(to_colour(radiograph()), format="MPO", save_all=True, append_images=[preview])


def _encode_tiles(width: int, height: int) -> list[bytes]:
    """Encode tiles of this size, row by row. Tiles at the right and bottom edges are padded."""
    image = radiograph()
    corners = [(x, y) for y in range(0, image.height, height) for x in range(0, image.width, width)]
    return [encode(image.crop((x, y, x + width, y + height)), restart_marker_blocks=4) for x, y in corners]


class Container(NamedTuple):
    """A kind of file. jpegs: its JPEGs, the first of which tests damage; write: write JPEGs to a path as this kind."""

    suffix: str
    jpegs: list[bytes]
    write: Callable[[Path, list[bytes]], object]


def _write_jpeg(path: Path, jpegs: list[bytes]) -> None:
    path.write_bytes(b"".join(jpegs))


def _tiff_writer(**options: Any) -> Callable[[Path, list[bytes]], object]:
    return lambda path, jpegs: write_jpeg_tiff(path, jpegs, width=120, height=88, **options)


def _dicom_writer(fragments: int) -> Callable[[Path, list[bytes]], object]:
    return lambda path, jpegs: write_dicom_jpeg(path, jpegs[0], width=120, height=88, fragments=fragments)


def containers() -> dict[str, Container]:
    """Return every kind of file that contains JPEGs, by name."""
    grey, restarts = radiograph(), {"restart_marker_blocks": 4}
    colour = to_colour(grey)
    jpegs = {
        "grey": encode(grey),
        "grey, restart markers": encode(grey, **restarts),
        "grey, progressive": encode(grey, progressive=True),
        "colour": encode(colour, **restarts),
        "colour, progressive": encode(colour, progressive=True),
        "rotated by EXIF": _encode_rotated(),
        "CMYK": encode(colour.convert("CMYK"), **restarts),
        "YCCK": _encode_ycck(),
        "MPO": _encode_mpo(),
    }
    strips, tiles = _encode_tiles(120, 32), _encode_tiles(48, 48)
    return {
        **{name: Container("jpg", [jpeg], _write_jpeg) for name, jpeg in jpegs.items()},
        "TIFF in strips": Container("tif", strips, _tiff_writer(part=(120, 32))),
        "TIFF in tiles": Container("tif", tiles, _tiff_writer(part=(48, 48), tiled=True)),
        "TIFF with shared tables": Container("tif", strips, _tiff_writer(part=(120, 32), shared=True)),
        "DICOM": Container("dcm", [encode(grey, **restarts)], _dicom_writer(1)),
        "DICOM in fragments": Container("dcm", [encode(grey, **restarts)], _dicom_writer(3)),
    }


def find_scans(jpeg: bytes) -> list[tuple[int, int]]:
    """Return start and end of the entropy-coded data of each scan of the first image."""
    scans, at = [], 0
    while sos := _SOS.search(jpeg, at):
        start = sos.end() + int.from_bytes(jpeg[sos.end() : sos.end() + 2], "big")
        next_marker = _MARKER_AFTER_SCAN.search(jpeg, start)
        assert next_marker
        at = next_marker.start()
        scans.append((start, at))
        if jpeg[at + 1] == 0xD9:
            break
    return scans


def corrupt(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """Damage a JPEG at random: truncate it, flip bits, or remove its end, its restart markers or its last data."""
    scans = find_scans(jpeg)
    start, end = scans[int(rng.integers(len(scans)))]
    place = int(rng.integers(start, end))
    last = scans[-1][1]
    match rng.integers(6):
        case 0:
            return jpeg[:place]
        case 1:
            return jpeg[:place] + b"\xff\xd9"
        case 2:
            return jpeg[:last]  # no EOI
        case 3:
            content = bytearray(jpeg)
            for at in rng.integers(start, end, int(rng.integers(1, 6))):
                content[at] ^= 1 << int(rng.integers(8))
            return bytes(content)
        case 4:
            restarts = [marker.start() for marker in re.finditer(rb"\xff[\xd0-\xd7]", jpeg)
                        if start <= marker.start() < end]  # fmt: skip
            for at in sorted(rng.permutation(restarts)[: int(rng.integers(1, 4))], reverse=True):
                jpeg = jpeg[:at] + jpeg[at + 2 :]
            return jpeg
        case _:
            return jpeg[:place] + bytes(last - place) + jpeg[last:]


def libjpeg_warning(jpeg: bytes) -> str:
    """Return the first warning of libjpeg-turbo; "" if there is none."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY")
    except ValueError as error:
        return str(error)
    return ""
