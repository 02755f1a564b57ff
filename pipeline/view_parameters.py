"""Chance: the parameters of views, and shuffling, by seed, epoch, sample and view, and by nothing else.

A counter-based generator (Philox4x64-10: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") needs no
state, so a sample's views depend neither on the ranks nor on the batch, nor on who draws them or in which order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from pipeline.augmentation import Augmentation
from shard.caches import numba_can_cache

VIEW_NUMBERS = 8  # parameters of a view, in the order of augmentation.View
UNIFORMS = 28  # seven blocks of four: top, left, flip, blurred, sigma, brightness, contrast, spare; 10 × (area, ratio)
SPARE = 7  # the one of them that no parameter is made of
TRIES = 10

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_STEPS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_HALF, _LOW, _ONE = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1)
_TO_53_BITS = np.uint64(11)

_compiled = njit(cache=numba_can_cache(), nogil=True)


def sample_view_parameters(augmentation: Augmentation, seed: int, epoch: int, samples: Any, shapes: Any) -> Any:
    """Parameters of both views of some images: float64 [B, 2, 8], in the order of augmentation.View.

    samples: their numbers in the split, [B]. shapes: heights and widths in pixels, [B, 2], or, where the views are of
    two images, [B, 2, 2].
    """
    low, high = augmentation.crop_ratio
    ranges = np.array([
        augmentation.crop_area, (math.log(low), math.log(high)), (augmentation.flip_probability,
                                                                  augmentation.blur_probability),
        augmentation.blur_sigma, (1 - augmentation.brightness, 1 + augmentation.brightness),
        (1 - augmentation.contrast, 1 + augmentation.contrast),
    ])  # fmt: skip
    of_views = np.asarray(shapes, np.int64)
    if of_views.ndim == 2:
        of_views = np.repeat(of_views[:, None], 2, axis=1)
    parameters = np.empty((len(samples), 2, VIEW_NUMBERS))
    _draw(parameters, ranges, np.uint64(seed), np.uint64(epoch), np.asarray(samples, np.uint64),
          of_views)  # fmt: skip
    return parameters


def sample_partners(probability: float, seed: int, epoch: int, samples: Any, starts: Any, members: Any) -> Any:
    """Of which image view 2 is made, [B] int64: with that probability a partner of the sample's, each as likely.

    members: images of the split, group by group, [N]; starts: where each sample's group begins and ends in there,
    [B, 2]. The numbers are those that a view's parameters leave over.
    """
    partners = np.empty(len(samples), np.int64)
    _draw_partners(partners, probability, np.uint64(seed), np.uint64(epoch), np.asarray(samples, np.uint64), starts,
                   members)  # fmt: skip
    return partners


def shuffle_keys(seed: int, epoch: int, count: int, stream: int) -> Any:
    """A number in [0, 1) for each of `count` things, float64 [count]: sorted by it, they are shuffled.

    stream: 2 or more, another for each kind of thing (0 and 1 are the views').
    """
    keys = np.empty(count)
    _fill_keys(keys, np.uint64(seed), np.uint64(epoch), np.uint64(stream))
    return keys


@_compiled
def _fill_keys(keys: Any, seed: Any, epoch: Any, stream: Any) -> None:
    uniforms = np.empty(4)
    for i in range(keys.size):
        fill_uniforms(uniforms, seed, epoch, np.uint64(i), stream)
        keys[i] = uniforms[0]


@_compiled
def _draw(parameters: Any, ranges: Any, seed: Any, epoch: Any, samples: Any, shapes: Any) -> None:
    uniforms = np.empty(UNIFORMS)
    for i in range(samples.size):
        for view in range(2):
            fill_uniforms(uniforms, seed, epoch, samples[i], np.uint64(view))
            _draw_view(parameters[i, view], ranges, shapes[i, view, 0], shapes[i, view, 1], uniforms)


@_compiled
def _draw_partners(
    partners: Any, probability: float, seed: Any, epoch: Any, samples: Any, starts: Any, members: Any
) -> None:  # fmt: skip
    uniforms = np.empty(SPARE + 1)
    for i in range(samples.size):
        partners[i] = samples[i]
        start, others = starts[i, 0], starts[i, 1] - starts[i, 0] - 1
        fill_uniforms(uniforms, seed, epoch, samples[i], np.uint64(1))
        if others > 0 and uniforms[SPARE] < probability:
            fill_uniforms(uniforms, seed, epoch, samples[i], np.uint64(0))
            chosen = start + int(uniforms[SPARE] * others)
            # The last stands in for the sample itself, which is then as unlikely as it should be.
            partners[i] = members[chosen] if members[chosen] != samples[i] else members[start + others]


@_compiled
def _draw_view(view: Any, ranges: Any, height: int, width: int, uniforms: Any) -> None:
    view[2], view[3] = _draw_crop(ranges, height, width, uniforms)
    if view[2] > 0:
        view[0] = math.floor(uniforms[0] * (height - view[2] + 1))
        view[1] = math.floor(uniforms[1] * (width - view[3] + 1))
    else:  # no try fitted: the largest central crop whose ratio is allowed
        view[2] = min(height, round(width / math.exp(ranges[1, 0])))
        view[3] = min(width, round(height * math.exp(ranges[1, 1])))
        view[0], view[1] = (height - view[2]) // 2, (width - view[3]) // 2
    view[4] = 1.0 if uniforms[2] < ranges[2, 0] else 0.0
    view[5] = _between(ranges[3], uniforms[4]) if uniforms[3] < ranges[2, 1] else 0.0
    view[6] = _between(ranges[4], uniforms[5])
    view[7] = _between(ranges[5], uniforms[6])


@_compiled
def _draw_crop(ranges: Any, height: int, width: int, uniforms: Any) -> tuple[int, int]:
    """Height and width of torchvision's RandomResizedCrop, (0, 0) where none of its ten tries fits in the image."""
    for attempt in range(TRIES):
        area = height * width * _between(ranges[0], uniforms[8 + 2 * attempt])
        ratio = math.exp(_between(ranges[1], uniforms[9 + 2 * attempt]))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            return crop_height, crop_width
    return 0, 0


@_compiled
def _between(ends: Any, uniform: float) -> float:
    low: float = ends[0]
    return low + uniform * (ends[1] - low)


@_compiled
def fill_uniforms(uniforms: Any, seed: Any, epoch: Any, sample: Any, view: Any) -> None:
    """Fill an array, a multiple of four long, with numbers in [0, 1): those of numpy.random.Philox with the key
    [seed, epoch] and the counter [0, sample, view, 0]."""
    for block in range(uniforms.size // 4):
        # numpy counts up before it draws.
        words = _philox(np.uint64(block) + _ONE, sample, view, np.uint64(0), seed, epoch)
        for i in range(4):
            uniforms[4 * block + i] = (words[i] >> _TO_53_BITS) * 2.0**-53


@_compiled
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _STEPS[0], k1 + _STEPS[1]
    return c0, c1, c2, c3


@_compiled
def _multiply(a: Any, b: Any) -> Any:
    """The high and the low word of a product of two 64-bit words."""
    a1, a0, b1, b0 = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a1 * b0 + (a0 * b0 >> _HALF)
    low_middle = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _HALF) + (low_middle >> _HALF), a * b
