"""Taps of the antialiased resize and of the Gaussian blur."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from pipeline.augmentation import blur_radius
from pipeline.fused.jit import jit
from pipeline.fused.simd import round_up

radius_of = njit(inline="always")(blur_radius)


@jit
def count_taps(source: int, target: int) -> int:
    """Count the input pixels that an antialiased bilinear resize sums for one output pixel."""
    return min(math.ceil(2 * max(source / target, 1.0)) + 1, source)


@jit
def fill_resize_weights(
    scratch: Any, weights: int, starts: Any, source: int, target: int, gain: float, flip: bool
) -> int:  # fmt: skip
    """Compute the taps of an antialiased bilinear resize from `source` to `target` pixels; return their number T.

    Fills starts [target], the first input pixel of each output pixel, and T weights for each, multiplied by `gain`:
    weight t of output pixel i is scratch[weights + t · round_up(target) + i]. flip: in reverse order of output pixels.
    The kernel is a triangle as wide as the larger of the two pixels, cut at the image's border and normalised to sum
    1. Source: PyTorch's upsample_bilinear2d_aa, which torchvision's antialias=True calls.
    """
    scale, taps, stride = source / target, count_taps(source, target), round_up(target)
    support = max(scale, 1.0)
    first_center, step = (0.5 * scale, scale) if not flip else ((target - 0.5) * scale, -scale)
    totals = np.zeros(target)
    for i in range(target):
        starts[i] = min(max(int(first_center + step * i - support + 0.5), 0), source - taps)
    for tap in range(taps):
        row = scratch[weights + tap * stride : weights + tap * stride + target]
        for i in range(target):
            distance = starts[i] + (tap + 0.5) - (first_center + step * i)
            weight = max(0.0, 1.0 - abs(distance) * (1.0 / support))
            row[i] = weight
            totals[i] += weight
    for tap in range(taps):
        row = scratch[weights + tap * stride : weights + tap * stride + target]
        for i in range(target):
            row[i] *= gain / totals[i]
    return taps


@jit
def fill_gaussian(scratch: Any, offset: int, sigma: float, radius: int) -> None:
    """Compute the 2 · radius + 1 weights of a Gaussian, normalised to sum 1, from scratch[offset] on."""
    if radius:
        total = 0.0
        for tap in range(2 * radius + 1):
            weight = math.exp(-0.5 * ((tap - radius) / sigma) ** 2)
            scratch[offset + tap] = weight
            total += weight
        for tap in range(2 * radius + 1):
            scratch[offset + tap] /= total
