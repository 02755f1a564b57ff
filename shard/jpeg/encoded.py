"""Check that a JPEG that was just encoded is complete and contains its picture, faster than by decoding it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from shard.jpeg.huffman import CorruptJpeg, HuffmanTable, build_tables
from shard.jpeg.segments import DHT, DQT, EOI, SOS, decode_grey_strictly, join_segments, parse_segments
from shard.kernels.resize import as_input
from shard.kernels.scan import FAULTS, ScanTables, build_scan_tables, check_scan

_END = bytes((0xFF, EOI))


class _Header(NamedTuple):
    """All bytes before the entropy-coded data, and the tables in them."""

    content: bytes
    tables: ScanTables


def encode_and_check(grey: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode [H, W] uint8 as a grey JPEG. Raises ValueError if the result is not a complete JPEG of this picture.

    Of the same size and quality, libjpeg has decoded another picture. The result must begin with the same bytes, all of
    its blocks must have valid codes and the mean of the picture's, and nothing may follow. A wrong bit in the values of
    other coefficients would go unnoticed, as it would by decoding.
    """
    header = _header_of(*grey.shape, quality)
    content = _encode(grey, quality)
    if not content.startswith(header.content) or not content.endswith(_END):
        raise CorruptJpeg("its header or end differs from those of other JPEGs of this size")
    fault = check_scan(np.frombuffer(content, np.uint8), len(header.content), len(content) - len(_END), as_input(grey),
                       *header.tables)  # fmt: skip
    if fault:
        raise CorruptJpeg(FAULTS[fault])
    return content


def _encode(grey: npt.NDArray[np.uint8], quality: int) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(grey)[:, :, None], quality=quality, colorspace="GRAY")
    return content


@lru_cache(maxsize=1024)
def _header_of(height: int, width: int, quality: int) -> _Header:
    """Encode a blank picture, decode it with libjpeg, and return its header. Raises ValueError if that fails."""
    content = _encode(np.zeros((height, width), np.uint8), quality)
    decoded = decode_grey_strictly(content)
    if decoded.shape != (height, width):
        raise CorruptJpeg(f"it decodes to {decoded.shape}, not {(height, width)}")
    segments = list(parse_segments(content))
    *header, scan, _ = segments
    if scan.marker != SOS or len(scan.body) != 6:
        raise CorruptJpeg("it is not a grey baseline JPEG")
    tables = b"".join(segment.body for segment in header if segment.marker == DHT)
    step = next(segment.body[1] for segment in header if segment.marker == DQT)
    return _Header(join_segments([*header, scan._replace(scan_data=b"")]), _build_tables(tables, scan.body[2], step))


@lru_cache(maxsize=8)
def _build_tables(huffman_tables: bytes, selected: int, step: int) -> ScanTables:
    """Build the tables of a scan. selected: the numbers of its DC and AC table, four bits each."""
    tables: dict[int, HuffmanTable] = build_tables(huffman_tables)
    return build_scan_tables(step, tables[selected >> 4], tables[16 | selected & 15])
