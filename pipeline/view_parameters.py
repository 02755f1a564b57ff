"""Random sampling of view parameters, partners and shuffle keys as a function of seed, epoch, image and view.

The counter-based generator Philox4x64-10 has no state (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2,
3"). So the views of an image do not depend on ranks, batches, workers or the order of sampling.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from pipeline.augmentation import Augmentation
from shard.caches import numba_can_cache

VIEW_PARAMETERS = 8  # the fields of augmentation.View
# Uniform numbers per view: top, left, flip, blur, sigma, brightness, contrast, partner; then 10 × (area, ratio).
UNIFORMS = 28
PARTNER = 7  # index of the uniform number that decides on the partner
ATTEMPTS = 10  # as in torchvision's RandomResizedCrop

# Philox4x64's multipliers and Weyl constants.
_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_HALF, _LOW, _ONE = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1)
_SHIFT_TO_53_BITS = np.uint64(11)

_jit = njit(cache=numba_can_cache(), nogil=True)


def sample_view_parameters(augmentation: Augmentation, seed: int, epoch: int, indices: Any, shapes: Any) -> Any:
    """Sample the parameters of both views of some images, float64 [B, 2, 8], in the order of augmentation.View.

    indices: of the images in the split, [B]. shapes: heights and widths in pixels, [B, 2], or [B, 2, 2] if the two
    views are computed from different images.
    """
    low, high = augmentation.crop_ratio
    ranges = np.array([
        augmentation.crop_area, (math.log(low), math.log(high)),
        (augmentation.flip_probability, augmentation.blur_probability), augmentation.blur_sigma,
        (1 - augmentation.brightness, 1 + augmentation.brightness),
        (1 - augmentation.contrast, 1 + augmentation.contrast),
    ])  # fmt: skip
    view_shapes = np.asarray(shapes, np.int64)
    if view_shapes.ndim == 2:
        view_shapes = np.repeat(view_shapes[:, None], 2, axis=1)
    parameters = np.empty((len(indices), 2, VIEW_PARAMETERS))
    _fill_parameters(parameters, ranges, np.uint64(seed), np.uint64(epoch), np.asarray(indices, np.uint64),
                     view_shapes)  # fmt: skip
    return parameters


def sample_partners(probability: float, seed: int, epoch: int, indices: Any, bounds: Any, members: Any) -> Any:
    """Sample the image of each second view, [B] int64: a partner with the given probability, else the image itself.

    All partners of an image are equally likely. members: the images of the split sorted by group, [N]. bounds: start
    and end of each image's group in `members`, [B, 2]. Uses uniform numbers that no view parameter uses.
    """
    partners = np.empty(len(indices), np.int64)
    _fill_partners(partners, probability, np.uint64(seed), np.uint64(epoch), np.asarray(indices, np.uint64), bounds,
                   members)  # fmt: skip
    return partners


def shuffle_keys(seed: int, epoch: int, count: int, stream: int) -> Any:
    """Sample uniform sort keys in [0, 1), float64 [count]; sorting by them shuffles.

    stream: 2 or more and different for each kind of item; streams 0 and 1 belong to the views.
    """
    keys = np.empty(count)
    _fill_keys(keys, np.uint64(seed), np.uint64(epoch), np.uint64(stream))
    return keys


@_jit
def _fill_keys(keys: Any, seed: Any, epoch: Any, stream: Any) -> None:
    uniforms = np.empty(4)
    for i in range(keys.size):
        fill_uniforms(uniforms, seed, epoch, np.uint64(i), stream)
        keys[i] = uniforms[0]


@_jit
def _fill_parameters(parameters: Any, ranges: Any, seed: Any, epoch: Any, indices: Any, shapes: Any) -> None:
    uniforms = np.empty(UNIFORMS)
    for i in range(indices.size):
        for view in range(2):
            fill_uniforms(uniforms, seed, epoch, indices[i], np.uint64(view))
            _fill_view(parameters[i, view], ranges, shapes[i, view, 0], shapes[i, view, 1], uniforms)


@_jit
def _fill_partners(
    partners: Any, probability: float, seed: Any, epoch: Any, indices: Any, bounds: Any, members: Any
) -> None:  # fmt: skip
    uniforms = np.empty(PARTNER + 1)
    for i in range(indices.size):
        partners[i] = indices[i]
        start, others = bounds[i, 0], bounds[i, 1] - bounds[i, 0] - 1
        fill_uniforms(uniforms, seed, epoch, indices[i], np.uint64(1))
        if others > 0 and uniforms[PARTNER] < probability:
            fill_uniforms(uniforms, seed, epoch, indices[i], np.uint64(0))
            chosen = start + int(uniforms[PARTNER] * others)
            # Choose from all but the last member, and replace the image itself by the last: all others equally likely.
            partners[i] = members[chosen] if members[chosen] != indices[i] else members[start + others]


@_jit
def _fill_view(view: Any, ranges: Any, height: int, width: int, uniforms: Any) -> None:
    view[2], view[3] = _sample_crop_size(ranges, height, width, uniforms)
    if view[2] > 0:
        view[0] = math.floor(uniforms[0] * (height - view[2] + 1))
        view[1] = math.floor(uniforms[1] * (width - view[3] + 1))
    else:  # no attempt fitted: take the largest central crop of an allowed ratio
        view[2] = min(height, round(width / math.exp(ranges[1, 0])))
        view[3] = min(width, round(height * math.exp(ranges[1, 1])))
        view[0], view[1] = (height - view[2]) // 2, (width - view[3]) // 2
    view[4] = 1.0 if uniforms[2] < ranges[2, 0] else 0.0
    view[5] = _scale_to(ranges[3], uniforms[4]) if uniforms[3] < ranges[2, 1] else 0.0
    view[6] = _scale_to(ranges[4], uniforms[5])
    view[7] = _scale_to(ranges[5], uniforms[6])


@_jit
def _sample_crop_size(ranges: Any, height: int, width: int, uniforms: Any) -> tuple[int, int]:
    """Sample height and width as torchvision's RandomResizedCrop; (0, 0) if none of its attempts fits in the image."""
    for attempt in range(ATTEMPTS):
        area = height * width * _scale_to(ranges[0], uniforms[8 + 2 * attempt])
        ratio = math.exp(_scale_to(ranges[1], uniforms[9 + 2 * attempt]))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            return crop_height, crop_width
    return 0, 0


@_jit
def _scale_to(limits: Any, uniform: float) -> float:
    low: float = limits[0]
    return low + uniform * (limits[1] - low)


@_jit
def fill_uniforms(uniforms: Any, seed: Any, epoch: Any, index: Any, stream: Any) -> None:
    """Fill an array, a multiple of four long, with uniform numbers in [0, 1).

    Equal to numpy.random.Philox with key [seed, epoch] and counter [0, index, stream, 0].
    """
    for block in range(uniforms.size // 4):
        # NumPy increments the counter before it generates a block.
        words = _philox(np.uint64(block) + _ONE, index, stream, np.uint64(0), seed, epoch)
        for i in range(4):
            uniforms[4 * block + i] = (words[i] >> _SHIFT_TO_53_BITS) * 2.0**-53


@_jit
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1, c2, c3


@_jit
def _multiply(a: Any, b: Any) -> Any:
    """Multiply two 64-bit words: the high and the low word of the product."""
    a1, a0, b1, b0 = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a1 * b0 + (a0 * b0 >> _HALF)
    low_middle = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _HALF) + (low_middle >> _HALF), a * b
