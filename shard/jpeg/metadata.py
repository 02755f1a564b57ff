"""Strip the metadata of a grey baseline JPEG, so that a shard keeps its pixels without encoding them again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shard.jpeg.segments import (
    ALL_COEFFICIENTS,
    APPLICATION_SEGMENTS,
    BASELINE,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    SOS,
    Segment,
    decode_grey_strictly,
    join_segments,
    parse_segments,
    repair,
)


def strip_metadata(content: bytes, grey: npt.NDArray[np.uint8]) -> bytes | None:
    """Return an 8-bit grey baseline JPEG without application segments, comments, stray bytes and data after EOI.

    Tables, frame and scan are copied bit for bit. Returns None if the content is of another kind, or if it does not
    decode to `grey`, [H, W] (for example, because the image is rotated or resized).
    """
    try:
        stripped = _strip(content, grey.shape)
        try:
            decoded = decode_grey_strictly(stripped)
        except ValueError:  # stray bytes in the scan data
            stripped = _strip(repair(content) or b"", grey.shape)
            decoded = decode_grey_strictly(stripped)
    except (ValueError, IndexError):
        return None
    return stripped if np.array_equal(decoded, grey) else None


def strip_intact(content: bytes) -> bytes | None:
    """Like `strip_metadata`, but without decoding: the result may turn out to be damaged.

    Returns None also if there are stray bytes outside of the scan: they may be the rest of a lost segment.
    """
    try:
        return _strip(content, None)
    except (ValueError, IndexError):
        return None


def _strip(content: bytes, shape: tuple[int, ...] | None) -> bytes:
    """Return the JPEG without metadata. Raises ValueError or IndexError if its kind or shape differs.

    shape: None for any, and for no stray bytes.
    """
    segments = []
    for segment in parse_segments(content):
        if shape is None and segment.stray:
            raise ValueError("stray bytes")
        if shape is not None and segment.marker == BASELINE and _get_shape(segment) != shape:
            raise ValueError("different size")  # raised before the scan is parsed, which may be large
        if segment.marker not in (*APPLICATION_SEGMENTS, COM):
            segments.append(segment)
    if not _is_plain_baseline(segments):
        raise ValueError("not a plain grey baseline JPEG")
    return join_segments(segments)


def _get_shape(frame: Segment) -> tuple[int, int]:
    return int.from_bytes(frame.body[1:3], "big"), int.from_bytes(frame.body[3:5], "big")


def _is_plain_baseline(segments: list[Segment]) -> bool:
    """Whether the segments are a grey baseline JPEG in strict conformance, which all decoders read alike."""
    bodies: dict[int, list[bytes]] = {}
    for segment in segments:
        bodies.setdefault(segment.marker, []).append(segment.body)
    if set(bodies) - {DRI} != {DQT, DHT, BASELINE, SOS, EOI} or not len(bodies[BASELINE]) == len(bodies[SOS]) == 1:
        return False
    (frame,), (scan,) = bodies[BASELINE], bodies[SOS]
    scan_data = segments[-2].scan_data  # empty unless the scan is the last segment before EOI
    if len(frame) != 9 or frame[7] != 0x11 or len(scan) != 6 or scan[3:] != ALL_COEFFICIENTS or not scan_data:
        return False
    huffman_tables = {table for body in bodies[DHT] for table in _huffman_table_ids(body)}
    quantization_tables = {body[at] for body in bodies[DQT] for at in range(0, len(body), 65)}  # 8-bit in baseline
    has_fill_bytes = re.search(rb"\xff\xff|\xff[\xd0-\xd7]?\Z", scan_data)  # allowed, but rare
    has_tables = ({scan[2] >> 4, 16 | scan[2] & 15} <= huffman_tables <= {0, 1, 16, 17}
                  and frame[8] in quantization_tables <= {0, 1, 2, 3})  # fmt: skip
    return has_tables and not has_fill_bytes


def _huffman_table_ids(body: bytes) -> Iterator[int]:
    """Yield class << 4 | number of each Huffman table in a DHT segment."""
    at = 0
    while at < len(body):
        yield body[at]
        at += 17 + sum(body[at + 1 : at + 17])
