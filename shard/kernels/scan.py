"""Check the entropy-coded data of a grey baseline JPEG against its picture (ITU-T T.81, annex F)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shard.kernels.byte_vectors import load_bits
from shard.kernels.jit import jit

LOOKAHEAD = 12  # index bits of the tables that are used most, which then fit into the L1 cache
END_OF_BLOCK = 64  # as a number of coefficients: more than a block has left
FAULTS = ("", "a marker within the data", "truncated data", "an invalid Huffman code", "more than 64 coefficients in a "
          "block", "a block that differs from the picture", "data after the last block")  # fmt: skip
_ONES, _HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)  # of each byte: 1, and the highest bit
_MARKER, _TRUNCATED, _CODE, _COEFFICIENTS, _PICTURE, _REST = range(1, 7)


class ScanTables(NamedTuple):
    """What the data is decoded with. step: of the quantisation of DC coefficients.

    dc [2¹²] int16: next 12 bits → bits of a code and of the value that follows, plus bits of the value << 8.
    ac [2¹⁶] int32: next 16 bits → bits of a code and of its value, plus coefficients << 8. 0: no code matches.
    several [2¹²] int16: next 12 bits → the same for as many codes as they determine; 0 if they determine none.
    """

    step: int
    dc: npt.NDArray[np.int16]
    ac: npt.NDArray[np.int32]
    several: npt.NDArray[np.int16]


def build_scan_tables(step: int, dc_codes: list[int], ac_codes: list[int]) -> ScanTables:
    """Build the tables. dc_codes, ac_codes: next 16 bits → code length << 8 | symbol, or 0, as in a HuffmanTable.

    DC codes of more than 12 bits count as invalid: libjpeg's have up to 9, unless it optimises them.
    """
    dc, ac = np.array(dc_codes)[:: 1 << 16 - LOOKAHEAD], np.array(ac_codes)
    dc = np.where(dc >> 8 <= LOOKAHEAD, dc, 0)
    dc_entries = np.where(dc > 0, (dc >> 8) + (dc & 255) | (dc & 255) << 8, 0)
    lengths, run, size = ac >> 8, ac >> 4 & 15, ac & 15
    coefficients = np.where((size > 0) | (run == 15), run + 1, END_OF_BLOCK)
    valid = (lengths > 0) & ((coefficients < END_OF_BLOCK) | (run == 0))
    singles = np.where(valid, lengths + size | coefficients << 8, 0)
    window, used, done = np.arange(1 << LOOKAHEAD), np.zeros(1 << LOOKAHEAD, int), np.zeros(1 << LOOKAHEAD, int)
    for _ in range(LOOKAHEAD // 2):
        index = window << 16 - LOOKAHEAD << used & 0xFFFF
        # At most 16 coefficients before the last code: _skip_coefficients relies on it.
        known = (singles[index] > 0) & (lengths[index] <= LOOKAHEAD - used) & (done <= 16)
        used, done = used + known * (singles[index] & 255), done + known * (singles[index] >> 8)
    return ScanTables(step, dc_entries.astype(np.int16), singles.astype(np.int32), (used | done << 8).astype(np.int16))


@jit
def check_scan(
    content: Any, start: int, stop: int, pixels: Any, step: int, dc_table: Any, ac_table: Any, several: Any
) -> int:  # fmt: skip
    """Check the data from `start` to `stop` in `content`; return an index of FAULTS, 0 if it is intact.

    It must consist of the codes of all blocks of `pixels` [H, W], in order, and of padding, up to a marker at `stop`;
    and the mean of each block must be that of the picture, up to the quantisation. Other arguments: see ScanTables.
    """
    sums = np.empty((pixels.shape[1] + 7) // 8, np.int64)
    lines = np.empty(sums.size * 8, np.uint16)
    # bits: the next `count` bits as the highest of 64; at: the byte that follows. At a marker, zeros follow without
    # end; missing: how many of these bytes are in `bits` or were used.
    bits, count, at, missing, dc = np.uint64(0), 0, start, 0, 0
    for top in range(0, pixels.shape[0], 8):
        _sum_blocks(sums, lines, pixels, top)
        for block in range(sums.size):
            bits, count, at, missing = _refill(content, bits, count, at, missing)
            entry = np.int64(dc_table[bits >> np.uint64(64 - LOOKAHEAD)])
            if missing > 8:
                return _TRUNCATED if at >= stop else _MARKER
            if entry == 0:
                return _CODE
            used, length = entry & 255, entry >> 8
            if length:
                value = np.int64(bits << np.uint64(used - length) >> np.uint64(64 - length))
                dc += value if value >> (length - 1) else value - (1 << length) + 1
            # A DC coefficient is an eighth of the sum over a block of the differences to 128, a multiple of `step`.
            if abs(sums[block] - 64 * 128 - 8 * step * dc) > 4 * step + 8:
                return _PICTURE
            bits, count, at, missing, fault = _skip_coefficients(
                content, bits << np.uint64(used), count - used, at, missing, ac_table, several)  # fmt: skip
            if fault:
                return fault
    if missing and at < stop:
        return _MARKER
    rest = count - 8 * missing + 8 * (stop - at)  # bits
    if rest < 0:
        return _TRUNCATED
    return 0 if rest < 8 and bits >> np.uint64(57) >> np.uint64(7 - rest) == (1 << rest) - 1 else _REST


@jit
def _sum_blocks(sums: Any, lines: Any, pixels: Any, top: int) -> None:
    """Sum the pixels of each 8×8 block from row `top` on. Encoders repeat the last row and column in partial blocks."""
    height, width = pixels.shape
    lines[:] = 0
    for y in range(top, top + 8):
        row = pixels[min(y, height - 1)]
        for x in range(width):
            lines[x] += row[x]
    lines[width:] = lines[width - 1]
    for block in range(sums.size):
        total = 0
        for x in range(8 * block, 8 * block + 8):
            total += lines[x]
        sums[block] = total


@jit
def _refill(content: Any, bits: Any, count: int, at: int, missing: int) -> Any:
    """Append whole bytes until there are at least 56 bits."""
    if at + 8 <= content.size:
        word = load_bits(content, at)
        if not (~word - _ONES) & word & _HIGH_BITS:  # no byte is 0xFF
            return bits | word >> np.uint64(count), count | 56, at + ((63 - count) >> 3), missing
    while count < 56:
        byte = np.uint64(0)
        if content[at] != 0xFF:
            byte, at = np.uint64(content[at]), at + 1
        elif content[at + 1] == 0:  # stuffing
            byte, at = np.uint64(0xFF), at + 2
        else:
            missing += 1
        bits, count = bits | byte << np.uint64(56 - count), count + 8
    return bits, count, at, missing


@jit
def _skip_coefficients(
    content: Any, bits: Any, count: int, at: int, missing: int, ac_table: Any, several: Any
) -> Any:  # fmt: skip
    """Skip the AC coefficients of a block; return the new state and a fault or 0.

    A code and its value have up to 26 bits, an entry of `several` up to 22: 56 bits suffice for two steps. Codes of the
    next block must not be skipped, so `several` is used only up to coefficient 47.
    """
    coefficient, entry = 1, 0
    while coefficient < 64:
        bits, count, at, missing = _refill(content, bits, count, at, missing)
        for _ in range(2):
            entry = np.int64(several[bits >> np.uint64(64 - LOOKAHEAD)]) if coefficient < 48 else 0
            if entry == 0:
                entry = np.int64(ac_table[bits >> np.uint64(48)])
                if entry == 0:
                    return bits, count, at, missing, _CODE
            bits, count, coefficient = bits << np.uint64(entry & 255), count - (entry & 255), coefficient + (entry >> 8)
            if coefficient >= 64:
                break
    return bits, count, at, missing, 0 if coefficient == 64 or entry >> 8 >= END_OF_BLOCK else _COEFFICIENTS
