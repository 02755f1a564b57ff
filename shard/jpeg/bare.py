"""A grey baseline JPEG without its metadata: what a shard keeps of a source that needs no second compression."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shard.jpeg.segments import (
    ALL_COEFFICIENTS,
    APPS,
    BASELINE,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    SOS,
    Segment,
    decode_strictly,
    join,
    mend,
    parse,
)


def without_metadata(content: bytes, grey: npt.NDArray[np.uint8]) -> bytes | None:
    """A grey 8-bit baseline JPEG that decodes to `grey`, without application segments, comments and what follows EOI.

    Its tables, frame and scan stay bit for bit; stray bytes go. None where the content is another kind of JPEG, or
    none, or decodes to other greys: it is to be turned or shrunk.
    """
    try:
        bare = _bare(content, grey.shape)
        try:
            decoded = decode_strictly(bare)
        except ValueError:  # stray bytes in the data
            bare = _bare(mend(content) or b"", grey.shape)
            decoded = decode_strictly(bare)
    except (ValueError, IndexError):
        return None
    return bare if np.array_equal(decoded, grey) else None


def _bare(content: bytes, shape: tuple[int, ...]) -> bytes:
    """The JPEG without metadata. Raises ValueError or IndexError where it is none that may be kept."""
    segments = []
    for segment in parse(content):
        if segment.marker == BASELINE and _shape(segment) != shape:
            raise ValueError("of another size")  # before the scan, which may be large, is looked at
        if segment.marker not in (*APPS, COM):
            segments.append(segment)
    if not _is_plain(segments):
        raise ValueError("not a plain grey baseline JPEG")
    return join(segments)


def _shape(frame: Segment) -> tuple[int, int]:
    return int.from_bytes(frame.body[1:3], "big"), int.from_bytes(frame.body[3:5], "big")


def _is_plain(segments: list[Segment]) -> bool:
    """Whether this is a grey baseline JPEG by the letter of the standard, which every decoder reads alike."""
    bodies: dict[int, list[bytes]] = {}
    for segment in segments:
        bodies.setdefault(segment.marker, []).append(segment.body)
    if set(bodies) - {DRI} != {DQT, DHT, BASELINE, SOS, EOI} or [len(bodies[one]) for one in (BASELINE, SOS)] != [1, 1]:
        return False
    (frame,), (scan,), data = bodies[BASELINE], bodies[SOS], segments[-2].coded  # none unless the scan comes last
    if len(frame) != 9 or frame[7] != 0x11 or len(scan) != 6 or scan[3:] != ALL_COEFFICIENTS or not data:
        return False
    codes = {code for body in bodies[DHT] for code in _numbers(body)}
    steps = {body[at] for body in bodies[DQT] for at in range(0, len(body), 65)}  # 8 bits each, or baseline it is not
    filled = re.search(rb"\xff\xff|\xff[\xd0-\xd7]?\Z", data)  # allowed, and unusual
    fits = {scan[2] >> 4, 16 | scan[2] & 15} <= codes <= {0, 1, 16, 17} and frame[8] in steps <= {0, 1, 2, 3}
    return fits and not filled


def _numbers(body: bytes) -> Iterator[int]:
    """Class << 4 | number of each Huffman table in a DHT segment."""
    at = 0
    while at < len(body):
        yield body[at]
        at += 17 + sum(body[at + 1 : at + 17])
