"""Extract the JPEGs of a TIFF. libtiff decodes corrupt ones without a warning, so each is checked separately."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shard.jpeg.segments import DHT, DQT, join_segments, parse_segments

# TIFF tags.
_COMPRESSION, _JPEG_TABLES, _OLD_JPEG_OFFSET, _OLD_JPEG_LENGTH = 259, 347, 513, 514
_OFFSETS_AND_LENGTHS = ((273, 279), (324, 325))  # (offsets, lengths) of strips and of tiles
# Values of the compression tag.
_OLD_STYLE_JPEG, _JPEG = 6, 7


class UnsupportedTiff(Exception):
    """A TIFF whose JPEGs can't be checked. The text is the reason."""


def extract_jpegs(tags: Any, content: bytes) -> Iterator[bytes]:
    """Yield each strip or tile of a JPEG-compressed TIFF as a complete JPEG. tags: Pillow's `tag_v2`.

    Yields nothing if the compression is not JPEG. Raises UnsupportedTiff if an old-style JPEG (TIFF 6.0, section 22) is
    stored in separate parts.
    """
    compression = tags.get(_COMPRESSION)
    if compression == _OLD_STYLE_JPEG:
        start = tags.get(_OLD_JPEG_OFFSET, 0)
        jpeg = content[start : start + tags.get(_OLD_JPEG_LENGTH, 0)] if start else b""
        if b"\xff\xda" not in jpeg:
            raise UnsupportedTiff("TIFF with old-style JPEG compression in separate parts: convert the file")
        yield jpeg
    elif compression == _JPEG:
        tables = _read_shared_tables(tags)
        for offsets, lengths in _OFFSETS_AND_LENGTHS:
            for start, length in zip(_as_tuple(tags.get(offsets)), _as_tuple(tags.get(lengths)), strict=False):
                jpeg = content[start : start + length]
                yield tables + jpeg[2:] if tables else jpeg


def _read_shared_tables(tags: Any) -> bytes:
    """Return SOI and the shared DQT and DHT segments. Others have no effect, because each JPEG's SOI resets them."""
    if _JPEG_TABLES not in tags:
        return b""
    return join_segments([segment for segment in parse_segments(tags[_JPEG_TABLES]) if segment.marker in (DQT, DHT)])


def _as_tuple(value: Any) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
