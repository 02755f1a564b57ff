"""Resize grey images with an antialiased bicubic filter, to the same bytes on every processor."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shard.kernels.byte_vectors import PRECISION, transpose, weigh
from shard.kernels.jit import jit
from shard.kernels.llvm import LANES

SUPPORT = 2.0  # half the width of the filter, in pixels of the larger of the two images


class Taps(NamedTuple):
    """For each of N output pixels: its first input pixel [N], the number of them [N], and their weights [N, T].

    The weights of a pixel sum to about 1 << PRECISION; those beyond its number of taps are 0.
    """

    first: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int32]


def resize(
    grey: npt.NDArray[np.uint8], width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> npt.NDArray[np.uint8]:  # fmt: skip
    """Resize [H, W] uint8 to [height, width].

    box: the part of the image to use, as left, top, right and bottom; None for all of it. First resizes each row, and
    rounds; then each column, and rounds. Equals Pillow's Image.resize with Resampling.BICUBIC, first to (width, H) and
    then to (width, height), bit for bit.
    """
    left, top, right, bottom = box or (0, 0, grey.shape[1], grey.shape[0])
    columns = _compute_taps(grey.shape[1], left, right, width)
    rows = _compute_taps(grey.shape[0], top, bottom, height)
    if grey.shape[1] < LANES:  # the kernel loads whole vectors
        grey = np.pad(grey, ((0, 0), (0, LANES - grey.shape[1])))
    out = np.empty(height * width + LANES, np.uint8)  # the kernel stores whole vectors
    _resize(out, as_input(grey), width, height, *columns, *rows)
    return out[: height * width].reshape(height, width)


def as_input(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a contiguous, read-only view: numba compiles a kernel for each combination of these properties."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@lru_cache(maxsize=256)
def _compute_taps(source: int, start: float, stop: float, target: int) -> Taps:
    """Compute the taps that resize the pixels from `start` to `stop`, of `source`, to `target` pixels.

    The filter is stretched over the larger of the two kinds of pixels, cut at the image's border, and normalised.
    Source: Keys' cubic convolution with a = -0.5, with Pillow's rounding (precompute_coeffs in Resample.c).
    """
    scale = float(np.float32(stop) - np.float32(start)) / target
    support = SUPPORT * max(scale, 1.0)
    centers = float(np.float32(start)) + (np.arange(target) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), source) - first
    offsets = np.arange(count.max())
    distances = (offsets + first[:, None] - centers[:, None] + 0.5) * (1.0 / max(scale, 1.0))
    weights = np.where(offsets < count[:, None], _cubic(np.abs(distances)), 0.0)
    weights /= weights.cumsum(axis=1)[:, -1:]  # cumsum adds in order, as Pillow does; sum does not
    fixed = (weights * (1 << PRECISION) + np.copysign(0.5, weights)).astype(np.int32)
    return Taps(first, count, fixed)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@jit
def _resize(
    out: Any, pixels: Any, width: int, height: int, column_first: Any, column_count: Any, column_weights: Any,
    row_first: Any, row_count: Any, row_weights: Any,
) -> None:  # fmt: skip
    """Resize `pixels` [H, W] to `out` [height · width + 16], 16 rows at a time.

    Vectors contain a pixel of each of 16 rows, so that the sums for an output pixel are sums of vectors: transpose 16
    rows, sum columns, transpose back. In the second pass, vectors contain 16 pixels of a row.
    """
    source_height, source_width = pixels.shape
    padded = (width + LANES - 1) // LANES * LANES
    source = pixels.reshape(-1)
    column_taps, row_taps = column_weights.shape[1], row_weights.shape[1]
    column_weights, row_weights = column_weights.reshape(-1), row_weights.reshape(-1)
    top, bottom = row_first[0], row_first[height - 1] + row_count[height - 1]
    strip = np.empty(source_width * LANES, np.uint8)
    resized = np.empty(padded * LANES, np.uint8)
    plane = np.empty((bottom - top + LANES) * padded, np.uint8)
    for y in range(top, bottom, LANES):
        for x in range(0, source_width, LANES):
            column = min(x, source_width - LANES)  # the last block may overlap the previous one
            transpose(strip, column * LANES, LANES, source, y * source_width + column, source_width,
                      source_height - 1 - y)  # fmt: skip
        for x in range(width):
            weigh(resized, x * LANES, strip, column_first[x] * LANES, LANES, column_weights, x * column_taps,
                  column_count[x], LANES)  # fmt: skip
        for x in range(0, padded, LANES):
            transpose(plane, (y - top) * padded + x, padded, resized, x * LANES, LANES, LANES - 1)
    for y in range(height):  # the last vector of a row may end in the next row, which is written afterwards
        weigh(out, y * width, plane, (row_first[y] - top) * padded, padded, row_weights, y * row_taps, row_count[y],
              padded)  # fmt: skip
