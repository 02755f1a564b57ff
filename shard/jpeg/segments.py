"""A JPEG by its segments: decoded strictly, and mended where only its wrapping is odd. ITU-T T.81, annex B."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from shard.jpeg.entropy import Damaged, Frame, Scan, Table, build_tables, cut_scan

# libjpeg warns of these although every pixel may be there; `mend` finds out whether it is. All else that it warns of is
# damage: data that ends early, bits that are no code, restart or end markers and scans that are missing.
MAY_BE_HARMLESS = re.compile(
    "extraneous bytes before marker"  # between segments, before a restart marker or at the end of a scan
    "|unknown JFIF revision number"  # nothing that is decoded depends on it
    "|Invalid SOS parameters for sequential JPEG"  # some writers leave three bytes 0 that say nothing there
    "|bad ICC marker"  # of a colour profile, which is not applied
)
DHT, SOI, EOI, SOS, DQT, DRI, COM = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # frames that are coded by Huffman's method
APPS = range(0xE0, 0xF0)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8), EOI)
ALL_COEFFICIENTS = b"\0\x3f\0"  # first, last, high and low bit: the end of a sequential scan's header
# Both begin with a byte that is not repeated: Python then searches three times as fast.
_MARKER = re.compile(rb"\xff\xff*([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff\xff*[^\x00\xff\xd0-\xd7]")


class Segment(NamedTuple):
    """A marker's second byte, what follows its length, a scan's data; and the bytes before it that belong to none."""

    marker: int
    body: bytes
    coded: bytes
    stray: bytes


class UnusualSampling(ValueError):
    """A JPEG whose channels are of sizes that libjpeg-turbo's short way does not offer; others decode it."""


def decode(content: bytes, height: int = 0, width: int = 0) -> npt.NDArray[np.uint8]:
    """[H, W] grey levels of a JPEG of any colour, shrunk by 8, 4 or 2 where no less than height × width is left.

    Raises ValueError with libjpeg's words where pixels may be damaged: at all that it warns of, but for stray bytes
    and header fields without meaning where the data is whole.
    """
    return _decode(content, height, width)[0]


def sound(content: bytes) -> bytes:
    """A JPEG that libjpeg reads without a warning: the same, or one mended. Raises ValueError where `decode` would."""
    try:
        return _decode(content, 1, 1)[1]  # to an eighth of the size; all data is read even so
    except UnusualSampling:
        mended = mend(content)
        if mended is None:
            raise
        return mended


def _decode(content: bytes, height: int, width: int) -> tuple[npt.NDArray[np.uint8], bytes]:
    try:
        return decode_strictly(content, height, width), content
    except ValueError as error:
        mended = mend(content) if MAY_BE_HARMLESS.search(str(error)) else None
        if mended is None:
            raise
    return decode_strictly(mended, height, width), mended


def decode_strictly(content: bytes, height: int = 0, width: int = 0) -> npt.NDArray[np.uint8]:
    """As `decode`, but ValueError at any warning."""
    try:
        decoded: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "GRAY", min_height=height, min_width=width)
    except ValueError as error:
        raise (UnusualSampling if "subsampling level" in str(error) else ValueError)(str(error)) from None
    return decoded[:, :, 0]


def parse(content: bytes) -> Iterator[Segment]:
    """The segments behind SOI, up to EOI. Raises Damaged where one is cut off or EOI is missing."""
    if content[:2] != bytes((0xFF, SOI)):
        raise Damaged("no JPEG")
    at, marker = 2, SOI
    while marker != EOI:
        found = _MARKER.search(content, at)
        if found is None:
            raise Damaged("no end marker")
        marker, stray, at = found[1][0], content[at : found.start()], found.end()
        body = coded = b""
        if marker not in _WITHOUT_LENGTH:
            length = int.from_bytes(content[at : at + 2], "big")
            body, at = content[at + 2 : at + length], at + max(2, length)
            if len(body) != length - 2:
                raise Damaged("a segment that is cut off")
        if marker == SOS:
            after = _MARKER_AFTER_SCAN.search(content, at)
            end = after.start() if after else len(content)
            coded, at = content[at:end], end
        yield Segment(marker, body, coded, stray)


def join(segments: list[Segment]) -> bytes:
    """The bytes of a JPEG, without what was stray."""
    parts = [bytes((0xFF, SOI))]
    for marker, body, coded, _ in segments:
        length = b"" if marker in _WITHOUT_LENGTH else (len(body) + 2).to_bytes(2, "big")
        parts.append(bytes((0xFF, marker)) + length + body + coded)
    return b"".join(parts)


def mend(content: bytes) -> bytes | None:
    """The same picture without what libjpeg warns of needlessly; None where data may be damaged.

    Stray bytes go only where every scan's codes end where its data ends, or right before what is left over, and where
    every coefficient has all its bits: else what looks stray may be the rest of a table or scan that was lost.
    """
    frame, every = None, 0
    tables: dict[int, Table] = {}
    filled: dict[int, list[int]] = {}
    lowest: dict[tuple[int, int], int] = {}  # (component, coefficient) → the lowest bit sent so far
    mended = []
    try:
        for segment in parse(content):
            if segment.marker in (BASELINE, EXTENDED, PROGRESSIVE):
                frame = _parse_frame(segment)
            elif segment.marker == DHT:
                tables |= build_tables(segment.body)
            elif segment.marker == DRI:
                every = int.from_bytes(segment.body, "big")
            elif segment.marker == SOS:
                if frame is None:
                    return None
                segment, scan = _parse_scan(segment, frame)
                segment = segment._replace(coded=cut_scan(segment.coded, frame, scan, tables, every, filled))
                lowest |= {(component, place): scan.low for component, _, _ in scan.components
                           for place in range(scan.first, scan.last + 1)}  # fmt: skip
            mended.append(_without_warning(segment))
    except (Damaged, IndexError):
        return None
    if frame is None or set(lowest.values()) != {0} or len(lowest) != 64 * len(frame.components):
        return None
    return join(mended)


def _without_warning(segment: Segment) -> Segment:
    """A revision of JFIF that is known; an empty comment for a colour profile, which nothing here applies."""
    if segment.marker == APPS[0] and segment.body[:5] == b"JFIF\0":
        return segment._replace(body=b"JFIF\0\1\1" + segment.body[7:])
    return segment._replace(marker=COM, body=b"") if segment.marker == APPS[2] else segment


def _parse_frame(segment: Segment) -> Frame:
    """What SOF says. Raises Damaged, or IndexError where it is cut off."""
    body = segment.body
    components = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * body[5], 3)}
    factors = [factor for both in components.values() for factor in both]
    if body[0] not in (8, 12) or not factors or not all(1 <= factor <= 4 for factor in factors):
        raise Damaged("an image of nothing")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return Frame(segment.marker == PROGRESSIVE, width, height, components)


def _parse_scan(segment: Segment, frame: Frame) -> tuple[Segment, Scan]:
    """What SOS says, and the same with what it leaves blank. Raises Damaged, or IndexError where it is cut off."""
    body = segment.body
    components = tuple((body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(1, 1 + 2 * body[0], 2))
    if not components:
        raise Damaged("a scan of nothing")
    if not frame.progressive:
        if body[-3:] == bytes(3):
            segment = segment._replace(body=body[:-3] + ALL_COEFFICIENTS)
        return segment, Scan(components, 0, 63, 0, 0)
    first, last, bits = body[1 + 2 * len(components)], body[2 + 2 * len(components)], body[3 + 2 * len(components)]
    if last > 63 or first > last or (first and len(components) > 1):
        raise Damaged("a scan of nothing")
    return segment, Scan(components, first, last, bits >> 4, bits & 15)
