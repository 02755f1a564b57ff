"""Memory for the kernel's intermediate results, reused by all calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.augmentation import Augmentation, blur_radius
from pipeline.fused.atomics import try_lock
from pipeline.fused.jit import jit
from pipeline.fused.simd import round_up
from pipeline.fused.taps import count_taps
from shard.kernels.llvm import LANES

CHUNK = 256  # columns of a strip that are resized at a time, so that their input rows stay in the L1 cache


class Workspaces:
    """One workspace for each of some threads: allocating memory for each view would take longer than its sums.

    Their size suffices for images of height × width. The kernel allocates memory for a larger image.
    """

    def __init__(self, threads: int, augmentation: Augmentation, height: int, width: int) -> None:
        floats = layout(height, width, augmentation.size, blur_radius(augmentation.blur_sigma[1]))[-1]
        memory = np.zeros(threads * floats + LANES, np.float32)
        skip = -memory.ctypes.data % (4 * LANES) // 4  # aligns vectors with cache lines
        self.scratch = memory[skip : skip + threads * floats]
        self.starts = np.zeros(threads * 2 * augmentation.size, np.int64)
        self.locks = np.zeros(threads, np.int64)


@jit
def lock_one(locks: Any) -> int:
    """Lock a free workspace and return its index, -1 if none is free."""
    for index in range(locks.size):
        if try_lock(locks, index):
            return index
    return -1


@jit
def layout(height: int, width: int, size: int, radius: int) -> tuple[int, int, int, int, int, int, int]:
    """Divide a workspace: offsets of its arrays, and its length in floats.

    The arrays are the weights of rows and of columns; the Gaussian; the plane before its vertical blur, radius +
    size + radius rows; the result, size rows; and the arrays of strip_layout. Rows have round_up(size) floats.
    """
    padded = round_up(size)
    column_weights = padded * count_taps(height, size)
    gaussian = column_weights + padded * count_taps(width, size)
    plane = gaussian + round_up(2 * radius + 1)
    result = plane + (padded + 2 * radius) * padded
    strip = result + padded * padded
    most_rows = min(height, LANES * height // size + count_taps(height, size) + 2)
    return 0, column_weights, gaussian, plane, result, strip, strip_layout(strip, most_rows, width, size, radius)[-1]


@jit
def strip_layout(strip: int, rows: int, width: int, size: int, radius: int) -> tuple[int, int, int, int, int, int]:
    """Divide the arrays of a strip, from offset `strip` on: their offsets, and the end of the last.

    The arrays are a chunk of the input [rows, CHUNK]; the same resized vertically [16, CHUNK]; all chunks transposed
    [W, 16]; resized horizontally [radius + size + radius, 16]; and blurred horizontally [size, 16].
    """
    padded = round_up(size)
    resized_rows = strip + rows * CHUNK
    transposed = resized_rows + LANES * CHUNK
    resized = transposed + round_up(width) * LANES
    blurred = resized + (padded + 2 * radius) * LANES
    return strip, resized_rows, transposed, resized, blurred, blurred + padded * LANES
