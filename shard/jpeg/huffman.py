"""Step through the Huffman codes of a JPEG's blocks without decoding pixels; ITU-T T.81, annexes F and G."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

HuffmanTable = list[int]  # next 16 bits → code length << 8 | symbol, or 0 if no code matches
BlockReader = Callable[[bytes, int, int], int]  # (data, bit position, block number) → bit position after the block


class CorruptJpeg(ValueError):
    """Data that does not conform to its JPEG's headers."""


class FrameHeader(NamedTuple):
    """The content of a start-of-frame segment. components: id → horizontal and vertical sampling factors."""

    progressive: bool
    width: int
    height: int
    components: dict[int, tuple[int, int]]


class ScanHeader(NamedTuple):
    """The content of a start-of-scan segment.

    components: (id, DC table, AC table) each. first and last: the range of coefficients. high and low: the bit
    positions of successive approximation.
    """

    components: tuple[tuple[int, int, int], ...]
    first: int
    last: int
    high: int
    low: int


class McuReader(NamedTuple):
    """A reader for each block of an MCU, in order, and properties of the scan.

    restart: to be called at restart markers. may_slip: whether damage can change where blocks end.
    min_padding: how many padding bits in a last byte prove an end of data. Short codes need some, because any bytes
    may appear to end with a code.
    """

    blocks: list[BlockReader]
    restart: Callable[[], None]
    may_slip: bool
    min_padding: int


def build_tables(body: bytes) -> dict[int, HuffmanTable]:
    """Build the tables of a DHT segment: class << 4 | number → table. Raises CorruptJpeg if they are not valid."""
    tables = {}
    while body:
        counts, symbols = body[1:17], body[17 : 17 + sum(body[1:17])]
        table: HuffmanTable = []
        for length, count in enumerate(counts, 1):
            symbols_of_length, symbols = symbols[:count], symbols[count:]
            for symbol in symbols_of_length:
                table += [length << 8 | symbol] * (1 << 16 - length)
        if len(table) > 1 << 16:
            raise CorruptJpeg("more Huffman codes than their lengths allow")
        tables[body[0]] = table + [0] * ((1 << 16) - len(table))
        body = body[17 + sum(counts) :]
    return tables


def count_mcus(frame: FrameHeader, scan: ScanHeader) -> int:
    """Count the MCUs of a scan. If it has one component, each of its blocks is an MCU."""
    h_max = max(h for h, _ in frame.components.values())
    v_max = max(v for _, v in frame.components.values())
    if len(scan.components) > 1:
        return -(-frame.width // (8 * h_max)) * -(-frame.height // (8 * v_max))
    h, v = frame.components[scan.components[0][0]]
    return -(-frame.width * h // (8 * h_max)) * -(-frame.height * v // (8 * v_max))


def build_mcu_reader(
    frame: FrameHeader, scan: ScanHeader, tables: dict[int, HuffmanTable], nonzero: dict[int, list[int]]
) -> McuReader:
    """Build the reader of a scan's MCUs. Raises CorruptJpeg if a component or table is not defined.

    nonzero: for a progressive JPEG, component → a bit mask per block of its nonzero coefficients. Readers update it.
    """
    try:
        if frame.progressive and scan.first:
            (component, _, ac), *_ = scan.components
            masks = nonzero.setdefault(component, [0] * count_mcus(frame, scan))
            band = _ProgressiveAC(tables[16 | ac], scan.first, scan.last, masks)
            return McuReader([band.refine if scan.high else band.read], band.restart, True, min_padding=2)
        readers = []
        for component, dc, ac in scan.components:
            h, v = frame.components[component] if len(scan.components) > 1 else (1, 1)
            if frame.progressive:
                readers += [_read_one_bit if scan.high else _dc_reader(tables[dc])] * (h * v)
            else:
                readers += [_sequential_reader(tables[dc], tables[16 | ac])] * (h * v)
    except KeyError:
        raise CorruptJpeg("a component or table is not defined") from None
    return McuReader(readers, lambda: None, not (frame.progressive and scan.high), min_padding=0)


def _read_code(table: HuffmanTable, data: bytes, at: int) -> int:
    """Return the code at bit `at`: its length << 8 | its symbol."""
    byte = at >> 3
    code = table[(data[byte] << 16 | data[byte + 1] << 8 | data[byte + 2]) >> (8 - (at & 7)) & 0xFFFF]
    if not code:
        raise CorruptJpeg("invalid Huffman code")
    return code


def _read_bits(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at >> 3 : (at >> 3) + 4], "big") >> (32 - (at & 7) - count) & (1 << count) - 1


def _read_one_bit(_data: bytes, at: int, _block: int) -> int:
    return at + 1


def _dc_reader(table: HuffmanTable) -> BlockReader:
    def read(data: bytes, at: int, _block: int) -> int:
        """Skip a code and its additional bits."""
        code = _read_code(table, data, at)
        return at + (code >> 8) + (code & 255)

    return read


def _sequential_reader(dc: HuffmanTable, ac: HuffmanTable) -> BlockReader:
    def read(data: bytes, at: int, _block: int) -> int:
        code = _read_code(dc, data, at)
        at += (code >> 8) + (code & 15)
        coefficient = 1
        while coefficient < 64:
            byte = at >> 3  # inlined _read_code: this is the hottest loop
            code = ac[(data[byte] << 16 | data[byte + 1] << 8 | data[byte + 2]) >> (8 - (at & 7)) & 0xFFFF]
            run, size = code >> 4 & 15, code & 15
            at += (code >> 8) + size
            if size or run == 15:
                coefficient += run + 1
            elif code:
                break
            else:
                raise CorruptJpeg("invalid Huffman code")
        if coefficient > 64:
            raise CorruptJpeg("more than 64 coefficients in a block")
        return at

    return read


class _ProgressiveAC:
    """Readers of a progressive scan of AC coefficients `first` to `last`. masks: the nonzero coefficients per block."""

    def __init__(self, table: HuffmanTable, first: int, last: int, masks: list[int]) -> None:
        self.table, self.first, self.last, self.masks = table, first, last, masks
        self.end_of_band_run = 0
        self.band_mask = sum(1 << coefficient for coefficient in range(first, last + 1))

    def restart(self) -> None:
        """End the current end-of-band run."""
        self.end_of_band_run = 0

    def read(self, data: bytes, at: int, block: int) -> int:
        """Read the first bits of a block's coefficients."""
        if self.end_of_band_run:
            self.end_of_band_run -= 1
            return at
        coefficient, mask = self.first, 0
        while coefficient <= self.last:
            code = _read_code(self.table, data, at)
            at, run, size = at + (code >> 8), code >> 4 & 15, code & 15
            if size:
                coefficient += run
                mask |= 1 << coefficient
                coefficient, at = coefficient + 1, at + size
            elif run == 15:
                coefficient += 16
            else:
                self.end_of_band_run, at = (1 << run) + _read_bits(data, at, run) - 1, at + run
                break
        if coefficient > self.last + 1:
            raise CorruptJpeg("more coefficients than the scan has")
        if block >= 0:
            self.masks[block] |= mask
        return at

    def refine(self, data: bytes, at: int, block: int) -> int:
        """Read one more bit of each nonzero coefficient of a block, and the coefficients that become nonzero."""
        nonzero = self.masks[block] if block >= 0 else 0
        coefficient, new = self.first, 0
        while not self.end_of_band_run and coefficient <= self.last:
            code = _read_code(self.table, data, at)
            at, run, size = at + (code >> 8), code >> 4 & 15, code & 15
            if not size and run < 15:
                self.end_of_band_run, at = (1 << run) + _read_bits(data, at, run), at + run
                break
            if size > 1:
                raise CorruptJpeg("a refinement of more than one bit")
            at += size
            while coefficient <= self.last and (nonzero >> coefficient & 1 or run):
                if nonzero >> coefficient & 1:
                    at += 1
                else:
                    run -= 1
                coefficient += 1
            if size and coefficient > self.last:
                raise CorruptJpeg("more coefficients than the scan has")
            new |= size << coefficient
            coefficient += 1
        if self.end_of_band_run:
            at += bin(nonzero & self.band_mask & -1 << coefficient).count("1")
            self.end_of_band_run -= 1
        if block >= 0:
            self.masks[block] |= new
        return at
