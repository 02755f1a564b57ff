"""Parse, strictly decode and repair JPEGs whose oddities do not affect pixels; ITU-T T.81, annex B."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from shard.jpeg.entropy import trim_scan
from shard.jpeg.huffman import CorruptJpeg, FrameHeader, HuffmanTable, ScanHeader, build_tables

# libjpeg warnings about files whose pixels may all be intact, which `repair` checks. Every other warning means damage:
# truncated data, invalid codes, and missing restart markers, end markers or scans.
MAY_BE_HARMLESS = re.compile(
    "extraneous bytes before marker"  # between segments, before a restart marker or at the end of a scan
    "|unknown JFIF revision number"  # decoding does not depend on it
    "|Invalid SOS parameters for sequential JPEG"  # some encoders write three zero bytes, which decoders ignore
    "|bad ICC marker"  # colour profiles are not applied
)
# Second bytes of markers.
DHT, SOI, EOI, SOS, DQT, DRI, COM = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_START = bytes((0xFF, SOI))
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # frames with Huffman coding
APPLICATION_SEGMENTS = range(0xE0, 0xF0)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8), EOI)
ALL_COEFFICIENTS = b"\0\x3f\0"  # first and last coefficient, high and low bit: the end of a sequential scan header
# Both patterns begin with a byte that is not repeated, which makes Python's search three times as fast.
_MARKER = re.compile(rb"\xff\xff*([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff\xff*[^\x00\xff\xd0-\xd7]")


class Segment(NamedTuple):
    """marker: its second byte; body: without the length; scan_data: entropy-coded; stray: bytes before the segment."""

    marker: int
    body: bytes
    scan_data: bytes
    stray: bytes


class UnsupportedSampling(ValueError):
    """A JPEG with chroma subsampling that libjpeg-turbo's TurboJPEG API does not support. libjpeg decodes it."""


def read_plain_shape(content: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG of 8 bits, grey or in three colours, with no metadata but JFIF and comments.

    Returns None for all others: metadata may rotate the image, or announce another one.
    """
    at, shape = 2, None
    while content[:2] == _START and content[at : at + 1] == b"\xff" and at + 9 < len(content):
        marker = content[at + 1]
        if marker == SOS:
            return shape
        if marker in (BASELINE, EXTENDED, PROGRESSIVE):
            precision, components = content[at + 4], content[at + 9]
            if precision != 8 or components not in (1, 3) or shape:
                break
            shape = int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(content[at + 7 : at + 9], "big")
        elif marker not in (APPLICATION_SEGMENTS[0], COM, DQT, DHT, DRI):
            break
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def decode_grey(content: bytes, min_height: int = 0, min_width: int = 0) -> npt.NDArray[np.uint8]:
    """Decode a JPEG of any colour space to [H, W] grey, reduced by 8, 4 or 2 if both minimums are still met.

    Raises ValueError with libjpeg's message if pixels may be damaged. Harmless oddities are repaired first.
    """
    return _decode_or_repair(content, min_height, min_width)[0]


def check_and_repair(content: bytes) -> bytes:
    """Return a JPEG that libjpeg reads without a warning: the original or a repaired one.

    Raises ValueError with libjpeg's message if pixels may be damaged.
    """
    try:
        return _decode_or_repair(content, 1, 1)[1]  # reduced by 8, which is fast, but reads all data
    except UnsupportedSampling:
        repaired = repair(content)
        if repaired is None:
            raise
        return repaired


def _decode_or_repair(content: bytes, min_height: int, min_width: int) -> tuple[npt.NDArray[np.uint8], bytes]:
    """Return the pixels and the JPEG that they were decoded from: the original or a repaired one."""
    try:
        return decode_grey_strictly(content, min_height, min_width), content
    except ValueError as error:
        repaired = repair(content) if MAY_BE_HARMLESS.search(str(error)) else None
        if repaired is None:
            raise
    return decode_grey_strictly(repaired, min_height, min_width), repaired


def decode_grey_strictly(content: bytes, min_height: int = 0, min_width: int = 0) -> npt.NDArray[np.uint8]:
    """Decode like `decode_grey`, but raise ValueError at any warning of libjpeg."""
    try:
        decoded: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content, "GRAY", min_height=min_height, min_width=min_width
        )
    except ValueError as error:
        raise (UnsupportedSampling if "subsampling level" in str(error) else ValueError)(str(error)) from None
    return decoded[:, :, 0]


def parse_segments(content: bytes) -> Iterator[Segment]:
    """Yield the segments after SOI up to EOI. Raises CorruptJpeg if a segment is truncated or EOI is missing."""
    if content[:2] != _START:
        raise CorruptJpeg("not a JPEG")
    at, marker = 2, SOI
    while marker != EOI:
        found = _MARKER.search(content, at)
        if found is None:
            raise CorruptJpeg("no end marker")
        marker, stray, at = found[1][0], content[at : found.start()], found.end()
        body = scan_data = b""
        if marker not in _WITHOUT_LENGTH:
            length = int.from_bytes(content[at : at + 2], "big")
            body, at = content[at + 2 : at + length], at + max(2, length)
            if len(body) != length - 2:
                raise CorruptJpeg("truncated segment")
        if marker == SOS:
            next_marker = _MARKER_AFTER_SCAN.search(content, at)
            end = next_marker.start() if next_marker else len(content)
            scan_data, at = content[at:end], end
        yield Segment(marker, body, scan_data, stray)


def join_segments(segments: list[Segment]) -> bytes:
    """Join segments into a JPEG, without their stray bytes."""
    parts = [_START]
    for marker, body, scan_data, _ in segments:
        length = b"" if marker in _WITHOUT_LENGTH else (len(body) + 2).to_bytes(2, "big")
        parts.append(bytes((0xFF, marker)) + length + body + scan_data)
    return b"".join(parts)


def repair(content: bytes) -> bytes | None:
    """Return a JPEG of the same pixels without the oddities in MAY_BE_HARMLESS; None if pixels may be damaged.

    Stray bytes are removed only if the codes of every scan end at or right before them, and if every coefficient has
    all its bits. Otherwise they may be the rest of a lost table or scan.
    """
    frame, restart_interval = None, 0
    tables: dict[int, HuffmanTable] = {}
    nonzero: dict[int, list[int]] = {}
    lowest_bit: dict[tuple[int, int], int] = {}  # (component, coefficient) → the lowest bit coded so far
    repaired = []
    try:
        for segment in parse_segments(content):
            if segment.marker in (BASELINE, EXTENDED, PROGRESSIVE):
                frame = _parse_frame_header(segment)
            elif segment.marker == DHT:
                tables |= build_tables(segment.body)
            elif segment.marker == DRI:
                restart_interval = int.from_bytes(segment.body, "big")
            elif segment.marker == SOS:
                if frame is None:
                    return None
                segment, scan = _parse_scan_header(segment, frame)
                scan_data = trim_scan(segment.scan_data, frame, scan, tables, restart_interval, nonzero)
                segment = segment._replace(scan_data=scan_data)
                lowest_bit |= {(component, coefficient): scan.low for component, _, _ in scan.components
                               for coefficient in range(scan.first, scan.last + 1)}  # fmt: skip
            repaired.append(_replace_ignored(segment))
    except (CorruptJpeg, IndexError):
        return None
    if frame is None or set(lowest_bit.values()) != {0} or len(lowest_bit) != 64 * len(frame.components):
        return None
    return join_segments(repaired)


def _replace_ignored(segment: Segment) -> Segment:
    """Replace what libjpeg warns about and nothing here uses: an unknown JFIF revision and a colour profile."""
    if segment.marker == APPLICATION_SEGMENTS[0] and segment.body[:5] == b"JFIF\0":
        return segment._replace(body=b"JFIF\0\1\1" + segment.body[7:])
    return segment._replace(marker=COM, body=b"") if segment.marker == APPLICATION_SEGMENTS[2] else segment


def _parse_frame_header(segment: Segment) -> FrameHeader:
    """Parse a start-of-frame segment. Raises CorruptJpeg, or IndexError if it is truncated."""
    body = segment.body
    components = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * body[5], 3)}
    factors = [factor for pair in components.values() for factor in pair]
    if body[0] not in (8, 12) or not factors or not all(1 <= factor <= 4 for factor in factors):
        raise CorruptJpeg("invalid frame header")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return FrameHeader(segment.marker == PROGRESSIVE, width, height, components)


def _parse_scan_header(segment: Segment, frame: FrameHeader) -> tuple[Segment, ScanHeader]:
    """Parse a start-of-scan segment, and set its coefficient range if the encoder left it zero.

    Raises CorruptJpeg, or IndexError if it is truncated.
    """
    body = segment.body
    components = tuple((body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(1, 1 + 2 * body[0], 2))
    if not components:
        raise CorruptJpeg("scan without components")
    if not frame.progressive:
        if body[-3:] == bytes(3):
            segment = segment._replace(body=body[:-3] + ALL_COEFFICIENTS)
        return segment, ScanHeader(components, 0, 63, 0, 0)
    first, last, bits = body[1 + 2 * len(components)], body[2 + 2 * len(components)], body[3 + 2 * len(components)]
    if last > 63 or first > last or (first and len(components) > 1):
        raise CorruptJpeg("invalid range of coefficients")
    return segment, ScanHeader(components, first, last, bits >> 4, bits & 15)
