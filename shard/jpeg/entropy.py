"""Where the entropy-coded data of a JPEG's scans end by their own codes; ITU-T T.81, annexes F and G.

libjpeg tells that bytes are left over before a marker, and not why: they may be stray ones after a scan of which every
pixel is there, or the rest of a scan that was read wrongly from a damaged byte on. This tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

Table = list[int]  # next 16 bits → length of the code << 8 | its symbol; 0: no code
Block = Callable[[bytes, int, int], int]  # data, position in bits, number of the block → position behind the block

_ROOM = bytes(512)  # behind the data: one block is of fewer bits


class Damaged(ValueError):
    """Data that is not what its scan should be."""


class Frame(NamedTuple):
    """What SOF says. components: id → horizontal and vertical sampling factors."""

    progressive: bool
    width: int
    height: int
    components: dict[int, tuple[int, int]]


class Scan(NamedTuple):
    """What SOS says. components: their ids, tables for DC and AC; first to last coefficient; high and low bit."""

    components: tuple[tuple[int, int, int], ...]
    first: int
    last: int
    high: int
    low: int


def build_tables(body: bytes) -> dict[int, Table]:
    """The Huffman tables of a DHT segment: class << 4 | number → table. Raises Damaged where they are none."""
    tables = {}
    while body:
        counts, symbols = body[1:17], body[17 : 17 + sum(body[1:17])]
        table: Table = []
        for length, count in enumerate(counts, 1):
            own, symbols = symbols[:count], symbols[count:]
            for symbol in own:
                table += [length << 8 | symbol] * (1 << 16 - length)
        if len(table) > 1 << 16:
            raise Damaged("more codes than bits can tell apart")
        tables[body[0]] = table + [0] * ((1 << 16) - len(table))
        body = body[17 + sum(counts) :]
    return tables


def cut_scan(
    coded: bytes, frame: Frame, scan: Scan, tables: dict[int, Table], every: int, filled: dict[int, list[int]]
) -> bytes:
    """A scan's data without stray bytes at its end and before its restart markers. Raises Damaged where it has others.

    every: MCUs between restart markers, 0 for none. filled: of a progressive JPEG, component → for each block the bits
    of the coefficients that are not zero; kept up to date.
    """
    blocks = _blocks(frame, scan, tables, filled)
    total, done = _count_mcus(frame, scan), 0
    parts = re.split(rb"(\xff+[\xd0-\xd7])", coded)
    for place in range(0, len(parts), 2):
        wanted = min(every or total, total - done)
        if wanted == 0:
            if any(parts[place:]):
                raise Damaged("data behind the last block")
            break
        parts[place] = _cut(parts[place], blocks, wanted, done)
        done += wanted
    if done < total:
        raise Damaged("blocks are missing")
    return b"".join(part[-2:] if place % 2 else part for place, part in enumerate(parts))


def _cut(coded: bytes, blocks: Blocks, mcus: int, first: int) -> bytes:
    """The data between two restart markers, up to the end of its last block."""
    data = re.sub(rb"\xff+\x00", b"\xff", coded)
    bits, padded, at = 8 * len(data), data + _ROOM, 0
    blocks.restart()
    for mcu in range(first, first + mcus):
        for read in blocks.readers:
            at = read(padded, at, mcu)
        if at > bits:
            raise Damaged("it ends too early")
    length = (at + 7) // 8
    if length < len(data) and _is_data(data, at, blocks):
        raise Damaged("what is left over is data")
    return data[:length].replace(b"\xff", b"\xff\x00")


def _is_data(data: bytes, at: int, blocks: Blocks) -> bool:
    """Whether the bytes from bit `at` on are blocks of the image: after damage, codes may give more blocks than it has.

    Then the last byte of the last block is not filled up with ones, as encoders do, or what is left over reads as
    further blocks whose last byte is filled up so. Both may be so, or not, by chance: of damage after which libjpeg
    speaks of nothing but left-over bytes, about one in a hundred passes.
    """
    end = 8 * ((at + 7) // 8)
    return not _only_ones(data, at, end) or (blocks.may_slip and _reads_on(data, at, blocks))


def _reads_on(data: bytes, start: int, blocks: Blocks) -> bool:
    """Whether blocks follow from bit `start` on, whichever of an MCU's comes first, up to a last byte's filling."""
    bits, padded = 8 * len(data), data + _ROOM
    for phase in range(len(blocks.readers)):
        at = start
        try:
            while at < bits:
                for read in blocks.readers[phase:] + blocks.readers[:phase]:
                    at = read(padded, at, -1)
                    if bits - 8 < at <= bits - blocks.ones and _only_ones(data, at, bits):
                        return True
        except Damaged:  # not blocks, if read from this component on
            continue
    return False


def _only_ones(data: bytes, start: int, end: int) -> bool:
    """Whether the bits from start to end, less than a byte, are ones."""
    count = end - start
    return count == 0 or data[(end - 1) // 8] & (1 << count) - 1 == (1 << count) - 1


class Blocks(NamedTuple):
    """How to read an MCU: a reader for each of its blocks, and what holds for the scan.

    may_slip: whether damage can change where blocks end. ones: how many bits that fill up a last byte are needed to
    tell an end of data; where codes are of few bits, any bytes seem to end with one.
    """

    readers: list[Block]
    restart: Callable[[], None]
    may_slip: bool
    ones: int


def _count_mcus(frame: Frame, scan: Scan) -> int:
    across = max(h for h, _ in frame.components.values())
    down = max(v for _, v in frame.components.values())
    if len(scan.components) > 1:
        return -(-frame.width // (8 * across)) * -(-frame.height // (8 * down))
    h, v = frame.components[scan.components[0][0]]
    return -(-frame.width * h // (8 * across)) * -(-frame.height * v // (8 * down))


def _blocks(frame: Frame, scan: Scan, tables: dict[int, Table], filled: dict[int, list[int]]) -> Blocks:
    try:
        if frame.progressive and scan.first:
            (component, _, ac), *_ = scan.components
            masks = filled.setdefault(component, [0] * _count_mcus(frame, scan))
            band = _Band(tables[16 | ac], scan.first, scan.last, masks)
            return Blocks([band.refine if scan.high else band.read], band.restart, True, ones=2)
        readers = []
        for component, dc, ac in scan.components:
            h, v = frame.components[component] if len(scan.components) > 1 else (1, 1)
            if frame.progressive:
                readers += [_one_bit if scan.high else _dc(tables[dc])] * (h * v)
            else:
                readers += [_sequential(tables[dc], tables[16 | ac])] * (h * v)
    except KeyError:
        raise Damaged("a component or table that was not defined") from None
    return Blocks(readers, lambda: None, not (frame.progressive and scan.high), ones=0)


def _symbol(table: Table, data: bytes, at: int) -> int:
    byte = at >> 3
    found = table[(data[byte] << 16 | data[byte + 1] << 8 | data[byte + 2]) >> (8 - (at & 7)) & 0xFFFF]
    if not found:
        raise Damaged("bits that are no code")
    return found


def _number(data: bytes, at: int, bits: int) -> int:
    return int.from_bytes(data[at >> 3 : (at >> 3) + 4], "big") >> (32 - (at & 7) - bits) & (1 << bits) - 1


def _one_bit(_data: bytes, at: int, _block: int) -> int:
    return at + 1


def _dc(table: Table) -> Block:
    def read(data: bytes, at: int, _block: int) -> int:
        """Skip one code and its bits."""
        found = _symbol(table, data, at)
        return at + (found >> 8) + (found & 255)

    return read


def _sequential(dc: Table, ac: Table) -> Block:
    def read(data: bytes, at: int, _block: int) -> int:
        found = _symbol(dc, data, at)
        at += (found >> 8) + (found & 15)
        place = 1
        while place < 64:
            byte = at >> 3
            found = ac[(data[byte] << 16 | data[byte + 1] << 8 | data[byte + 2]) >> (8 - (at & 7)) & 0xFFFF]
            run, size = found >> 4 & 15, found & 15
            at += (found >> 8) + size
            if size or run == 15:
                place += run + 1
            elif found:
                break
            else:
                raise Damaged("bits that are no code")
        if place > 64:
            raise Damaged("more than 64 coefficients in a block")
        return at

    return read


class _Band:
    """The blocks of a progressive scan of AC coefficients `first` to `last`."""

    def __init__(self, table: Table, first: int, last: int, masks: list[int]) -> None:
        self.table, self.first, self.last, self.masks, self.run = table, first, last, masks, 0
        self.whole = sum(1 << place for place in range(first, last + 1))

    def restart(self) -> None:
        """Begin at a restart marker: no run of ended blocks is open."""
        self.run = 0

    def read(self, data: bytes, at: int, block: int) -> int:
        """First bits of the coefficients."""
        if self.run:
            self.run -= 1
            return at
        place, mask = self.first, 0
        while place <= self.last:
            found = _symbol(self.table, data, at)
            at, run, size = at + (found >> 8), found >> 4 & 15, found & 15
            if size:
                place += run
                mask |= 1 << place
                place, at = place + 1, at + size
            elif run == 15:
                place += 16
            else:
                self.run, at = (1 << run) + _number(data, at, run) - 1, at + run
                break
        if place > self.last + 1:
            raise Damaged("more coefficients than the scan has")
        if block >= 0:
            self.masks[block] |= mask
        return at

    def refine(self, data: bytes, at: int, block: int) -> int:
        """One bit more of each coefficient that is not zero, and some that become so."""
        known = self.masks[block] if block >= 0 else 0
        place, new = self.first, 0
        while not self.run and place <= self.last:
            found = _symbol(self.table, data, at)
            at, run, size = at + (found >> 8), found >> 4 & 15, found & 15
            if not size and run < 15:
                self.run, at = (1 << run) + _number(data, at, run), at + run
                break
            if size > 1:
                raise Damaged("more than one bit")
            at += size
            while place <= self.last and (known >> place & 1 or run):
                if known >> place & 1:
                    at += 1
                else:
                    run -= 1
                place += 1
            if size and place > self.last:
                raise Damaged("more coefficients than the scan has")
            new |= size << place
            place += 1
        if self.run:
            at += bin(known & self.whole & -1 << place).count("1")
            self.run -= 1
        if block >= 0:
            self.masks[block] |= new
        return at
