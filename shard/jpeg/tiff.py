"""The JPEGs in a TIFF: libtiff decodes them without a word about damage, so they are looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shard.jpeg.segments import DHT, DQT, join, parse

_COMPRESSION, _TABLES, _OLD_START, _OLD_LENGTH = 259, 347, 513, 514
_OLD_STYLE, _NEW_STYLE = 6, 7
_PLACES = ((273, 279), (324, 325))  # offsets and lengths, of strips and of tiles


class UnsupportedTiff(Exception):
    """A TIFF whose JPEGs can't be looked at; its text is the reason."""


def jpegs(tags: Any, content: bytes) -> Iterator[bytes]:
    """Each strip or tile of a TIFF as a JPEG by itself, with the tables that all share; none where it has others.

    tags: Pillow's `tag_v2`. Raises UnsupportedTiff for old-style JPEG (TIFF 6.0, section 22) whose parts lie apart.
    """
    compression = tags.get(_COMPRESSION)
    if compression == _OLD_STYLE:
        start = tags.get(_OLD_START, 0)
        whole = content[start : start + tags.get(_OLD_LENGTH, 0)] if start else b""
        if b"\xff\xda" not in whole:
            raise UnsupportedTiff("TIFF with old-style JPEG compression whose parts lie apart: convert it")
        yield whole
    elif compression == _NEW_STYLE:
        tables = _shared_tables(tags)
        for offsets, lengths in _PLACES:
            for start, length in zip(_as_tuple(tags.get(offsets)), _as_tuple(tags.get(lengths)), strict=False):
                own = content[start : start + length]
                yield tables + own[2:] if tables else own


def _shared_tables(tags: Any) -> bytes:
    """SOI and the tables that come before each JPEG's own; what else is with them, a JPEG's own SOI makes void."""
    if _TABLES not in tags:
        return b""
    return join([segment for segment in parse(tags[_TABLES]) if segment.marker in (DQT, DHT)])


def _as_tuple(value: Any) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
