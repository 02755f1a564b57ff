"""Sums over the pixels of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shard.kernels.jit import jit
from shard.kernels.resize import as_input

_CHUNK = 1 << 15  # pixels whose squares sum to less than 2³²


def sum_pixels(grey: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Return the sum of all pixels, uint8, and the sum of their squares."""
    return _sum_pixels(as_input(grey.reshape(-1)))


@jit
def _sum_pixels(pixels: Any) -> tuple[int, int]:
    total, squares = 0, 0
    for start in range(0, pixels.size, _CHUNK):
        chunk_total, chunk_squares = np.uint32(0), np.uint32(0)
        for value in pixels[start : start + _CHUNK]:
            chunk_total = np.uint32(chunk_total + value)
            chunk_squares = np.uint32(chunk_squares + np.uint32(value) * np.uint32(value))
        total += np.int64(chunk_total)
        squares += np.int64(chunk_squares)
    return total, squares
