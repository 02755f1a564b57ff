"""Find the end of the entropy-coded data of a JPEG's scans from their Huffman codes.

libjpeg warns about extraneous bytes before a marker, without the cause. They may be stray bytes after a complete scan.
They may also be the rest of a scan that was misread after a corrupt byte. This module distinguishes the two.
"""

from __future__ import annotations

import re

from shard.jpeg.huffman import (
    CorruptJpeg,
    FrameHeader,
    HuffmanTable,
    McuReader,
    ScanHeader,
    build_mcu_reader,
    count_mcus,
)

_LOOKAHEAD = bytes(512)  # appended to the data, so that a block may be read past its end


def trim_scan(
    data: bytes, frame: FrameHeader, scan: ScanHeader, tables: dict[int, HuffmanTable], restart_interval: int,
    nonzero: dict[int, list[int]],
) -> bytes:  # fmt: skip
    """Remove stray bytes at the end of a scan's data and before its restart markers.

    restart_interval: in MCUs, 0 for none. nonzero: see `build_mcu_reader`.
    Raises CorruptJpeg if blocks are missing, or if the extra bytes may be image data.
    """
    reader = build_mcu_reader(frame, scan, tables, nonzero)
    total, done = count_mcus(frame, scan), 0
    parts = re.split(rb"(\xff+[\xd0-\xd7])", data)  # alternating data segments and restart markers
    for place in range(0, len(parts), 2):
        count = min(restart_interval or total, total - done)
        if count == 0:
            if any(parts[place:]):
                raise CorruptJpeg("data after the last block")
            break
        parts[place] = _trim_interval(parts[place], reader, done, count)
        done += count
    if done < total:
        raise CorruptJpeg("missing blocks")
    return b"".join(part[-2:] if place % 2 else part for place, part in enumerate(parts))


def _trim_interval(coded: bytes, reader: McuReader, first: int, count: int) -> bytes:
    """Trim the data between two restart markers after its last block. first, count: the range of its MCUs."""
    data = re.sub(rb"\xff+\x00", b"\xff", coded)
    bits, padded, at = 8 * len(data), data + _LOOKAHEAD, 0
    reader.restart()
    for mcu in range(first, first + count):
        for read in reader.blocks:
            at = read(padded, at, mcu)
        if at > bits:
            raise CorruptJpeg("truncated scan data")
    length = (at + 7) // 8
    if length < len(data) and _is_image_data(data, at, reader):
        raise CorruptJpeg("image data after the last block")
    return data[:length].replace(b"\xff", b"\xff\x00")


def _is_image_data(data: bytes, at: int, reader: McuReader) -> bool:
    """Whether the bytes from bit `at` on are probably blocks: after damage, codes may give too many blocks.

    Encoders pad the last byte with ones. So the bytes count as blocks if the padding at `at` has a zero, or if they
    read as blocks up to a last byte with such padding. Both tests can fail at random: about 1 % of damaged JPEGs for
    which libjpeg warns only about extraneous bytes pass as intact.
    """
    end = 8 * ((at + 7) // 8)
    return not _is_padding(data, at, end) or (reader.may_slip and _reads_as_blocks(data, at, reader))


def _reads_as_blocks(data: bytes, start: int, reader: McuReader) -> bool:
    """Whether the data from bit `start` reads as blocks up to the padding, beginning with any block of an MCU."""
    bits, padded = 8 * len(data), data + _LOOKAHEAD
    for phase in range(len(reader.blocks)):
        at = start
        try:
            while at < bits:
                for read in reader.blocks[phase:] + reader.blocks[:phase]:
                    at = read(padded, at, -1)
                    if bits - 8 < at <= bits - reader.min_padding and _is_padding(data, at, bits):
                        return True
        except CorruptJpeg:  # not blocks, if read from this component on
            continue
    return False


def _is_padding(data: bytes, start: int, end: int) -> bool:
    """Whether the bits from start to end, fewer than eight, are all ones."""
    count = end - start
    return count == 0 or data[(end - 1) // 8] & (1 << count) - 1 == (1 << count) - 1
