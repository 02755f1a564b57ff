"""Check the entropy-coded data of a grey baseline JPEG against its picture (ITU-T T.81, annex F)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shard.kernels.byte_vectors import load_bits
from shard.kernels.jit import jit

PAIR_BITS = 12  # index bits of a table of several codes, which then fits into the L1 cache
END_OF_BLOCK = 64  # as a number of coefficients: more than a block has left
_SLACK = 512  # bytes after the data: a block may be read past its end
FAULTS = ("", "a marker within the data", "truncated data", "an invalid Huffman code", "more than 64 coefficients in a "
          "block", "a block that differs from the picture", "data after the last block")  # fmt: skip
_MARKER, _TRUNCATED, _CODE, _COEFFICIENTS, _PICTURE, _REST = range(1, 7)


class ScanTables(NamedTuple):
    """What the data is decoded with. step: of the quantisation of DC coefficients.

    dc [2¹⁶] int32: next 16 bits → bits of a code and of the value that follows, plus bits of the value << 16.
    ac [2¹⁶] int32: next 16 bits → bits of a code and of its value, plus coefficients << 8. 0: no code matches.
    codes [2¹²] int32: next 12 bits → the same for as many codes as they determine; 0 if they determine none.
    """

    step: int
    dc: npt.NDArray[np.int32]
    ac: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]


def build_scan_tables(step: int, dc_codes: list[int], ac_codes: list[int]) -> ScanTables:
    """Build the tables. dc_codes, ac_codes: next 16 bits → code length << 8 | symbol, or 0, as in a HuffmanTable."""
    dc, ac = np.array(dc_codes), np.array(ac_codes)
    dc_sizes, lengths, run, size = dc & 255, ac >> 8, ac >> 4 & 15, ac & 15
    coefficients = np.where((size > 0) | (run == 15), run + 1, END_OF_BLOCK)
    valid = (lengths > 0) & ((coefficients < END_OF_BLOCK) | (run == 0))
    singles = np.where(valid, lengths + size | coefficients << 8, 0)
    window, used, done = np.arange(1 << PAIR_BITS), np.zeros(1 << PAIR_BITS, int), np.zeros(1 << PAIR_BITS, int)
    for _ in range(PAIR_BITS // 2):
        # Up to 16 coefficients, and no more before the last code: check_scan relies on it.
        index = window << 16 - PAIR_BITS << used & 0xFFFF
        known = (singles[index] > 0) & (lengths[index] <= PAIR_BITS - used) & (done <= 16)
        used, done = used + known * (singles[index] & 255), done + known * (singles[index] >> 8)
    tables = (np.where(dc > 0, (dc >> 8) + dc_sizes | dc_sizes << 16, 0), singles, used | done << 8)
    return ScanTables(step, *(table.astype(np.int32) for table in tables))


@jit
def check_scan(
    content: Any, start: int, stop: int, pixels: Any, step: int, dc_table: Any, ac_table: Any, codes: Any
) -> int:  # fmt: skip
    """Check the data from `start` to `stop` in `content`; return an index of FAULTS, 0 if it is intact.

    It must consist of the codes of all blocks of `pixels` [H, W], in order, and of padding; and the mean of each block
    must be that of the picture, up to the quantisation. Other arguments: see ScanTables.
    """
    data = np.empty(stop - start + _SLACK, np.uint8)
    size = _remove_stuffing(data, content, start, stop)
    if size < 0:
        return _MARKER
    sums = np.empty((pixels.shape[1] + 7) // 8, np.int64)
    lines = np.empty(sums.size * 8, np.uint16)
    # bits: the next `count` bits as the highest of 64; at: the byte that follows.
    bits, count, at, dc = np.uint64(0), 0, 0, 0
    for top in range(0, pixels.shape[0], 8):
        _sum_blocks(sums, lines, pixels, top)
        for block in range(sums.size):
            if at > size + 8:
                return _TRUNCATED
            bits, count, at = _refill(data, bits, count, at)
            entry = dc_table[bits >> np.uint64(48)]
            if entry == 0:
                return _CODE
            used, length = entry & 255, entry >> 16
            if length:
                value = np.int64(bits << np.uint64(used - length) >> np.uint64(64 - length))
                dc += value if value >> (length - 1) else value - (1 << length) + 1
            # A DC coefficient is an eighth of the sum over a block of the differences to 128, a multiple of `step`.
            if abs(sums[block] - 64 * 128 - 8 * step * dc) > 4 * step + 8:
                return _PICTURE
            bits, count = bits << np.uint64(used), count - used
            bits, count, at, fault = _skip_coefficients(data, bits, count, at, ac_table, codes)
            if fault:
                return fault
    rest = 8 * (size - at) + count
    if rest < 0:
        return _TRUNCATED
    padding = (1 << rest % 8) - 1
    return 0 if rest < 8 and (rest == 0 or data[size - 1] & padding == padding) else _REST


@jit
def _remove_stuffing(data: Any, content: Any, start: int, stop: int) -> int:
    """Copy content[start:stop] without the zero after each 0xFF, and append zeros.

    Returns the length of the copy, or -1 if there is a marker.
    """
    size, i = 0, start
    while i < stop:
        data[size] = content[i]
        size += 1
        i += 1
        if content[i - 1] == 0xFF:
            if content[i] != 0:
                return -1
            i += 1
    data[size:] = 0
    return size


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
def _refill(data: Any, bits: Any, count: int, at: int) -> Any:
    """Append bits until there are at least 56."""
    return bits | load_bits(data, at) >> np.uint64(count), count | 56, at + ((63 - count) >> 3)


@jit
def _skip_coefficients(data: Any, bits: Any, count: int, at: int, ac_table: Any, codes: Any) -> Any:
    """Skip the AC coefficients of a block; return the new state and a fault or 0.

    A code and its value have up to 26 bits, and `codes` gives up to 22: 56 bits suffice for two steps. An entry of
    `codes` must not go on in the next block, so it is used only up to coefficient 47.
    """
    coefficient, entry = 1, 0
    while coefficient < 64:
        bits, count, at = _refill(data, bits, count, at)
        for _ in range(2):
            entry = codes[bits >> np.uint64(64 - PAIR_BITS)] if coefficient < 48 else 0
            if entry == 0:
                entry = ac_table[bits >> np.uint64(48)]
                if entry == 0:
                    return bits, count, at, _CODE
            bits, count, coefficient = bits << np.uint64(entry & 255), count - (entry & 255), coefficient + (entry >> 8)
            if coefficient >= 64:
                break
    return bits, count, at, 0 if coefficient == 64 or entry >> 8 >= END_OF_BLOCK else _COEFFICIENTS
