"""The kernel: an image and the parameters of two views → the two views."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pipeline.fused.atomics import unlock
from pipeline.fused.jit import jit
from pipeline.fused.simd import correlate, load_bytes, round_up, scale_and_clamp, stream_and_clamp, transpose
from pipeline.fused.taps import fill_gaussian, fill_resize_weights, radius_of
from pipeline.fused.workspaces import CHUNK, layout, lock_one, strip_layout
from shard.kernels.llvm import LANES


@jit
def make_views(
    view1: Any, view2: Any, image1: Any, image2: Any, parameters: Any, mean: float, std: float, scratch: Any,
    starts: Any, locks: Any,
) -> None:  # fmt: skip
    """Compute both views, equal to torchvision's within 0.01 of 255 grey levels.

    view1, view2: outputs, [1, size, size] float32, or float16 as uint16. image1, image2: the image of each view,
    often the same, [H, W, 1] uint8. parameters: [2, 8], in the order of augmentation.View. scratch, starts, locks:
    arrays of Workspaces.
    """
    size, slots = view1.shape[1], locks.size
    floats, needed = scratch.size // slots, 0
    for view in range(2):
        row = parameters[view]
        needed = max(needed, layout(int(row[2]), int(row[3]), size, radius_of(row[5]))[-1])
    slot = lock_one(locks) if needed <= floats else -1
    if slot >= 0:
        own, own_starts = scratch[slot * floats : (slot + 1) * floats], starts[slot * 2 * size : (slot + 1) * 2 * size]
    else:
        own, own_starts = np.zeros(needed, np.float32), np.zeros(2 * size, np.int64)
    _make_view(view1, image1, parameters[0], mean, std, own, own_starts)
    _make_view(view2, image2, parameters[1], mean, std, own, own_starts)
    if slot >= 0:
        unlock(locks, slot)


@jit
def _make_view(view: Any, image: Any, parameters: Any, mean: float, std: float, scratch: Any, starts: Any) -> None:
    """Compute one view. scratch, starts: one workspace; all arrays below are offsets into scratch."""
    top, left, height, width = int(parameters[0]), int(parameters[1]), int(parameters[2]), int(parameters[3])
    flip, sigma, brightness, contrast = parameters[4] > 0, parameters[5], parameters[6], parameters[7]
    size, radius = view.shape[1], radius_of(sigma)
    padded = round_up(size)
    row_weights, column_weights, gaussian, plane, result, strip, _ = layout(height, width, size, radius)
    row_starts, column_starts = starts[:size], starts[size:]
    row_taps = fill_resize_weights(scratch, row_weights, row_starts, height, size, 1 / 255, False)
    column_taps = fill_resize_weights(scratch, column_weights, column_starts, width, size, 1.0, flip)
    fill_gaussian(scratch, gaussian, sigma, radius)
    pixels, image_width = image.reshape(-1), image.shape[1]
    strips = plane + radius * padded if radius else result  # [size, padded]
    for row in range(0, size, LANES):
        rows, first = min(LANES, size - row), row_starts[row]
        input_rows = row_starts[row + rows - 1] + row_taps - first
        source, resized_rows, transposed, resized, blurred, _ = strip_layout(strip, input_rows, width, size, radius)
        # Input rows [input_rows, CHUNK] → [16, CHUNK] → transposed [W, 16], a chunk of columns at a time.
        for x in range(0, width, CHUNK):
            chunk = min(CHUNK, round_up(width - x))
            _load_rows(scratch, source, pixels, (top + first) * image_width + left + x, input_rows, image_width, chunk)
            _resize_rows(scratch, resized_rows, CHUNK, source, first, row_starts[row : row + rows], CHUNK,
                         row_weights + row, padded, row_taps, chunk)  # fmt: skip
            for i in range(0, chunk, LANES):
                transpose(scratch, transposed + (x + i) * LANES, LANES, scratch, resized_rows + i, CHUNK)
        # [W, 16] → [size, 16], blurred → transposed back, 16 rows of the view.
        inner = resized + radius * LANES
        _resize_rows(scratch, inner, LANES, transposed, 0, column_starts, LANES, column_weights, padded, column_taps,
                     LANES)  # fmt: skip
        if radius:
            _pad_by_reflection(scratch, inner, size, LANES, radius)
            correlate(scratch, blurred, scratch, resized, LANES, scratch, gaussian, 1, 2 * radius + 1, size * LANES)
            inner = blurred
        for x in range(0, padded, LANES):
            transpose(scratch, strips + row * padded + x, padded, scratch, inner + x * LANES, LANES)
    if radius:
        _pad_by_reflection(scratch, strips, size, padded, radius)
        correlate(scratch, result, scratch, plane, padded, scratch, gaussian, 1, 2 * radius + 1, size * padded)
    _jitter_and_normalise(view.reshape(-1), scratch[result:], size, padded, brightness, contrast, mean, std)


@njit(inline="always")
def _resize_rows(
    scratch: Any, out: int, out_stride: int, rows: int, first: int, starts: Any, stride: int, weights: int,
    weight_stride: int, taps: int, count: int,
) -> None:  # fmt: skip
    """Compute each output row i of a resize, `count` columns: the weighted sum of `taps` input rows from starts[i] on.

    rows: offset of input row number `first`. The usual numbers of taps are literals, so that the compiler unrolls the
    sum and keeps the weights in registers.
    """
    if taps == 3:
        _sum_rows(scratch, out, out_stride, rows, first, starts, stride, weights, weight_stride, 3, count)
    elif taps == 4:
        _sum_rows(scratch, out, out_stride, rows, first, starts, stride, weights, weight_stride, 4, count)
    elif taps == 5:
        _sum_rows(scratch, out, out_stride, rows, first, starts, stride, weights, weight_stride, 5, count)
    else:
        _sum_rows(scratch, out, out_stride, rows, first, starts, stride, weights, weight_stride, taps, count)


@njit(inline="always")
def _sum_rows(
    scratch: Any, out: int, out_stride: int, rows: int, first: int, starts: Any, stride: int, weights: int,
    weight_stride: int, taps: int, count: int,
) -> None:  # fmt: skip
    for i in range(starts.size):
        correlate(scratch, out + i * out_stride, scratch, rows + (starts[i] - first) * stride, stride,
                  scratch, weights + i, weight_stride, taps, count)  # fmt: skip


@jit
def _load_rows(scratch: Any, out: int, pixels: Any, first: int, rows: int, image_width: int, count: int) -> None:
    """Convert `count` pixels of some rows to float32, [rows, CHUNK], without reading beyond the image's end."""
    for row in range(rows):
        start = first + row * image_width
        inside = min(count, pixels.size - start)
        vectors = count if inside == count else inside // LANES * LANES
        load_bytes(scratch, out + row * CHUNK, pixels, start, vectors)
        for i in range(vectors, inside):
            scratch[out + row * CHUNK + i] = pixels[start + i]


@jit
def _pad_by_reflection(scratch: Any, first: int, rows: int, stride: int, radius: int) -> None:
    """Fill `radius` rows before the first and after the last row with their mirror images."""
    last = first + (rows - 1) * stride
    for row in range(1, radius + 1):
        for i in range(stride):
            scratch[first - row * stride + i] = scratch[first + row * stride + i]
            scratch[last + row * stride + i] = scratch[last - row * stride + i]


@jit
def _jitter_and_normalise(
    view: Any, values: Any, size: int, padded: int, brightness: float, contrast: float, mean: float, std: float
) -> None:  # fmt: skip
    """Apply brightness, contrast about the mean of the result, and normalisation: values [size, padded] in 0…1 → view.

    Contrast and normalisation are one linear function; its limits are the normalised 0 and 1.
    """
    total = 0.0
    for row in range(size):
        total += _adjust_brightness(values[row * padded : row * padded + size], np.float32(brightness))
    pivot = (1 - contrast) * total / (size * size)
    gain, offset = np.float32(contrast / std), np.float32((pivot - mean) / std)
    low, high = np.float32(-mean / std), np.float32((1 - mean) / std)
    if size == padded and view.ctypes.data % (4 * LANES) == 0:
        stream_and_clamp(view, 0, values, 0, size * size, gain, offset, low, high)
        return
    for row in range(size):
        scale_and_clamp(view, row * size, values, row * padded, size // LANES * LANES, gain, offset, low, high)
        rest = size - LANES  # the last vector may overlap the previous one
        scale_and_clamp(view, row * size + rest, values, row * padded + rest, LANES, gain, offset, low, high)


@jit
def _adjust_brightness(values: Any, brightness: float) -> float:
    """Multiply in place, clamp at 1 and return the sum."""
    total = np.float32(0)
    for i in range(values.size):
        values[i] = min(values[i] * brightness, np.float32(1))
        total += values[i]
    return total
