"""The CPU's view operator: a grey image and the parameters of two views → the two views, in one compiled pass.

Crop, resize and blur are sums of neighbouring rows, once over rows and, transposed, once over columns; flip reverses
the order in which the columns are resized; brightness, contrast and normalising scale what comes out. It all happens
a strip of 16 output rows at a time, in the processor's nearest cache.

The inner loops are LLVM vector code: numba compiles what it is given, but does not keep sums of many rows in
registers, or transpose in them; the intrinsics say it outright, for any processor that LLVM knows. They stand in this
file because numba's cache looks for changes in a function's own file alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from pipeline.augmentation import Augmentation, blur_radius
from shard.caches import numba_can_cache

LANES = 16
INDEX, INT = ir.IntType(64), ir.IntType(32)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
NUMBERS_LOW, NUMBERS_HIGH, PAIRS_LOW, PAIRS_HIGH = (
    [quarter + lane for quarter in range(0, LANES, 4) for lane in lanes]
    for lanes in ((0, 16, 1, 17), (2, 18, 3, 19), (0, 1, 16, 17), (2, 3, 18, 19))
)
QUARTERS_EVEN, QUARTERS_ODD = (
    [row + quarter * 4 + lane for row in (0, LANES) for quarter in quarters for lane in range(4)]
    for quarters in ((0, 2), (1, 3))
)
UNROLL = 6  # vectors summed at once: hides the adder's latency, and fits the registers of AVX2 too
CHUNK = 256  # columns made at a time, so that what they are made from stays in the nearest cache

_KEPT = numba_can_cache()
# Sums may be regrouped (the mean of a view is one); nothing here is ever infinite or not a number.
_compiled = njit(cache=_KEPT, nogil=True, fastmath={"contract", "reassoc", "nsz", "nnan", "ninf"})


class Workspaces:
    """Scratch memory for some threads at once: to fetch it anew for each view costs more than the view's sums.

    Sized for images of height × width; a larger one is made in fresh memory.
    """

    def __init__(self, threads: int, augmentation: Augmentation, height: int, width: int) -> None:
        floats = _layout(height, width, augmentation.size, blur_radius(augmentation.blur_sigma[1]))[-1]
        memory = np.zeros(threads * floats + LANES, np.float32)
        skip = -memory.ctypes.data % (4 * LANES) // 4  # so that vectors do not straddle cache lines
        self.numbers = memory[skip : skip + threads * floats]
        self.starts = np.zeros(threads * 2 * augmentation.size, np.int64)
        self.taken = np.zeros(threads, np.int64)


@_compiled
def make_views(
    view1: Any, view2: Any, image1: Any, image2: Any, parameters: Any, mean: float, std: float, numbers: Any,
    starts: Any, taken: Any,
) -> None:  # fmt: skip
    """Both views, as the reference makes them to within 0.01 of 255 grey levels.

    view1, view2: where they go, [1, size, size], float32 or, as uint16, float16. image1, image2: what each is made of,
    often one image, [H, W, 1] uint8. parameters: [2, 8], in the order of augmentation.View. numbers, starts,
    taken: those of
    Workspaces.
    """
    size, slots = view1.shape[1], taken.size
    floats, needed = numbers.size // slots, 0
    for view in range(2):
        row = parameters[view]
        needed = max(needed, _layout(int(row[2]), int(row[3]), size, _radius(row[5]))[-1])
    slot = _free_slot(taken) if needed <= floats else -1
    if slot >= 0:
        mine, places = numbers[slot * floats : (slot + 1) * floats], starts[slot * 2 * size : (slot + 1) * 2 * size]
    else:
        mine, places = np.zeros(needed, np.float32), np.zeros(2 * size, np.int64)
    _make_view(view1, image1, parameters[0], mean, std, mine, places)
    _make_view(view2, image2, parameters[1], mean, std, mine, places)
    if slot >= 0:
        release(taken, slot)


@_compiled
def _free_slot(taken: Any) -> int:
    for slot in range(taken.size):
        if claim(taken, slot):
            return slot
    return -1


@_compiled
def _make_view(
    view: Any, image: Any, parameters: Any, mean: float, std: float, numbers: Any, starts: Any
) -> None:  # fmt: skip
    top, left = int(parameters[0]), int(parameters[1])
    height, width = int(parameters[2]), int(parameters[3])
    flip, sigma, brightness, contrast = parameters[4] > 0, parameters[5], parameters[6], parameters[7]
    size, radius = view.shape[1], _radius(sigma)
    padded = _whole_vectors(size)
    row_weights, column_weights, gaussian, plane, result, strip, _ = _layout(height, width, size, radius)
    row_starts, column_starts = starts[:size], starts[size:]
    row_taps = _resize(numbers, row_weights, row_starts, height, size, 1 / 255, False)
    column_taps = _resize(numbers, column_weights, column_starts, width, size, 1.0, flip)
    _gauss(numbers, gaussian, sigma, radius)
    pixels, across = image.reshape(-1), image.shape[1]
    resized = plane + radius * padded if radius else result
    for row in range(0, size, LANES):
        rows, begin = min(LANES, size - row), row_starts[row]
        source_rows = row_starts[row + rows - 1] + row_taps - begin
        source, tall, columns, narrow, blurred, _ = _strip_layout(strip, source_rows, width, size, radius)
        # The source rows of this strip → 16 rows of the view's height → their columns, a chunk at a time.
        # The numbers of taps are written out for the compiler, which then keeps the weights in registers.
        for x in range(0, width, CHUNK):
            chunk = min(CHUNK, _whole_vectors(width - x))
            _widen_rows(numbers, source, pixels, (top + begin) * across + left + x, source_rows, across, chunk)
            places = row_starts[row : row + rows]
            if row_taps == 3:
                _sum_rows(numbers, tall, CHUNK, source, begin, places, CHUNK, row_weights + row, padded, 3, chunk)
            elif row_taps == 4:
                _sum_rows(numbers, tall, CHUNK, source, begin, places, CHUNK, row_weights + row, padded, 4, chunk)
            elif row_taps == 5:
                _sum_rows(numbers, tall, CHUNK, source, begin, places, CHUNK, row_weights + row, padded, 5, chunk)
            else:
                _sum_rows(numbers, tall, CHUNK, source, begin, places, CHUNK, row_weights + row, padded, row_taps,
                          chunk)  # fmt: skip
            for i in range(0, chunk, LANES):
                transpose(numbers, columns + (x + i) * LANES, LANES, numbers, tall + i, CHUNK)
        # Those columns → the view's columns, blurred, and back to rows.
        inner = narrow + radius * LANES
        if column_taps == 3:
            _sum_rows(numbers, inner, LANES, columns, 0, column_starts, LANES, column_weights, padded, 3, LANES)
        elif column_taps == 4:
            _sum_rows(numbers, inner, LANES, columns, 0, column_starts, LANES, column_weights, padded, 4, LANES)
        elif column_taps == 5:
            _sum_rows(numbers, inner, LANES, columns, 0, column_starts, LANES, column_weights, padded, 5, LANES)
        else:
            _sum_rows(numbers, inner, LANES, columns, 0, column_starts, LANES, column_weights, padded, column_taps,
                      LANES)  # fmt: skip
        if radius:
            _reflect(numbers, inner, size, LANES, radius)
            correlate(numbers, blurred, numbers, narrow, LANES, numbers, gaussian, 1, 2 * radius + 1, size * LANES)
            inner = blurred
        for x in range(0, padded, LANES):
            transpose(numbers, resized + row * padded + x, padded, numbers, inner + x * LANES, LANES)
    if radius:
        _reflect(numbers, resized, size, padded, radius)
        correlate(numbers, result, numbers, plane, padded, numbers, gaussian, 1, 2 * radius + 1, size * padded)
    _tone(view.reshape(-1), numbers[result:], size, padded, brightness, contrast, mean, std)


@njit(inline="always")
def _sum_rows(
    numbers: Any, into: int, into_stride: int, rows: int, begin: int, starts: Any, stride: int, weights: int,
    between: int, taps: int, count: int,
) -> None:  # fmt: skip
    """Each row of a resize: `count` sums of `taps` rows, from its start on, with its weights."""
    for i in range(starts.size):
        correlate(numbers, into + i * into_stride, numbers, rows + (starts[i] - begin) * stride, stride,
                  numbers, weights + i, between, taps, count)  # fmt: skip


@_compiled
def _layout(height: int, width: int, size: int, radius: int) -> tuple[int, int, int, int, int, int, int]:
    """Where in a workspace lie: row weights, column weights, Gaussian, the plane before its vertical blur, the
    result, a strip's own rows; and, last, how many floats all that takes."""
    padded = _whole_vectors(size)
    column_weights = padded * _taps(height, size)
    gaussian = column_weights + padded * _taps(width, size)
    plane = gaussian + _whole_vectors(2 * radius + 1)
    result = plane + (padded + 2 * radius) * padded
    strip = result + padded * padded
    most_rows = min(height, LANES * height // size + _taps(height, size) + 2)
    return 0, column_weights, gaussian, plane, result, strip, _strip_layout(strip, most_rows, width, size, radius)[-1]


@_compiled
def _strip_layout(strip: int, rows: int, width: int, size: int, radius: int) -> tuple[int, int, int, int, int, int]:
    """Where lie a chunk of the source rows, and of 16 rows of the view's height; all columns of those; the view's
    columns; those blurred; and the end."""
    padded = _whole_vectors(size)
    tall = strip + rows * CHUNK
    columns = tall + LANES * CHUNK
    narrow = columns + _whole_vectors(width) * LANES
    blurred = narrow + (padded + 2 * radius) * LANES
    return strip, tall, columns, narrow, blurred, blurred + padded * LANES


@_compiled
def _whole_vectors(count: int) -> int:
    return (count + LANES - 1) // LANES * LANES


@_compiled
def _radius(sigma: float) -> int:
    return math.ceil(3 * sigma)  # augmentation.blur_radius, which a compiled function can't call


@_compiled
def _taps(source: int, target: int) -> int:
    """How many source rows an antialiased bilinear resize sums for one of the target's."""
    return min(math.ceil(2 * max(source / target, 1.0)) + 1, source)


@_compiled
def _resize(
    numbers: Any, weights: int, starts: Any, source: int, target: int, gain: float, flip: bool
) -> int:  # fmt: skip
    """First rows and weights of an antialiased bilinear resize, times gain; returns how many weights a target row has.

    Row i's weight t comes to lie at weights + t · (whole vectors of target) + i. A triangle as wide as the larger of
    the two pixels, cut at the image's edge and made to sum to 1: PyTorch's upsample_bilinear2d_aa, which is what
    torchvision's antialias=True runs.
    """
    scale, taps, stride = source / target, _taps(source, target), _whole_vectors(target)
    support = max(scale, 1.0)
    first_centre, step = (0.5 * scale, scale) if not flip else ((target - 0.5) * scale, -scale)
    totals = np.zeros(target)
    for i in range(target):
        starts[i] = min(max(int(first_centre + step * i - support + 0.5), 0), source - taps)
    for tap in range(taps):
        row = numbers[weights + tap * stride : weights + tap * stride + target]
        for i in range(target):
            away = starts[i] + (tap + 0.5) - (first_centre + step * i)
            weight = max(0.0, 1.0 - abs(away) * (1.0 / support))
            row[i] = weight
            totals[i] += weight
    for tap in range(taps):
        row = numbers[weights + tap * stride : weights + tap * stride + target]
        for i in range(target):
            row[i] *= gain / totals[i]
    return taps


@_compiled
def _gauss(numbers: Any, at: int, sigma: float, radius: int) -> None:
    """A Gaussian cut at `radius`, summing to 1."""
    if radius:
        total = 0.0
        for tap in range(2 * radius + 1):
            weight = math.exp(-0.5 * ((tap - radius) / sigma) ** 2)
            numbers[at + tap] = weight
            total += weight
        for tap in range(2 * radius + 1):
            numbers[at + tap] /= total


@_compiled
def _widen_rows(numbers: Any, at: int, pixels: Any, first: int, rows: int, across: int, count: int) -> None:
    """`count` pixels of some rows as floats, without a look past the image's end."""
    for row in range(rows):
        start = first + row * across
        inside = min(count, pixels.size - start)
        vectors = count if inside == count else inside // LANES * LANES
        widen(numbers, at + row * CHUNK, pixels, start, vectors)
        for i in range(vectors, inside):
            numbers[at + row * CHUNK + i] = pixels[start + i]


@_compiled
def _reflect(numbers: Any, first: int, rows: int, stride: int, radius: int) -> None:
    """Rows beyond the first and the last, mirrored about them."""
    last = first + (rows - 1) * stride
    for row in range(1, radius + 1):
        for i in range(stride):
            numbers[first - row * stride + i] = numbers[first + row * stride + i]
            numbers[last + row * stride + i] = numbers[last - row * stride + i]


@_compiled
def _tone(
    view: Any, values: Any, size: int, padded: int, brightness: float, contrast: float, mean: float, std: float
) -> None:
    """Brightness, contrast about the mean of what that gives, normalise: values in 0…1 → the view."""
    total = 0.0
    for row in range(size):
        total += _brighten(values[row * padded : row * padded + size], np.float32(brightness))
    pivot = (1 - contrast) * total / (size * size)
    gain, offset = np.float32(contrast / std), np.float32((pivot - mean) / std)
    low, high = np.float32(-mean / std), np.float32((1 - mean) / std)
    if size == padded and view.ctypes.data % (4 * LANES) == 0:
        scale_streamed(view, 0, values, 0, size * size, gain, offset, low, high)
        return
    for row in range(size):
        scale(view, row * size, values, row * padded, size // LANES * LANES, gain, offset, low, high)
        rest = size - LANES  # the last vector may overlap the one before
        scale(view, row * size + rest, values, row * padded + rest, LANES, gain, offset, low, high)


@_compiled
def _brighten(values: Any, brightness: float) -> float:
    total = np.float32(0)
    for i in range(values.size):
        values[i] = min(values[i] * brightness, np.float32(1))
        total += values[i]
    return total


# What DALI calls, by the convention of its numba_function. Compiled here and kept, for DALI would compile it again in
# each process, for seconds.
_ADDRESS, _NUMBER = types.uint64, types.int32
_RUN = types.void(_ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER)
_SETUP = types.void(_ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER)


def dali_constants(spaces: Workspaces, augmentation: Augmentation) -> tuple[Any, Any, Any]:
    """What the operator is fed beside images and parameters, the same for every sample.

    An array as long as a view is wide, since DALI asks for shapes before it shows what is in them; mean and standard
    deviation; and where the workspaces lie and how long they are.
    """
    places = [number for array in (spaces.numbers, spaces.starts, spaces.taken)
              for number in (array.ctypes.data, array.size)]  # fmt: skip
    return np.zeros(augmentation.size, np.uint8), np.array([augmentation.mean, augmentation.std]), np.array(places)


@lru_cache
def dali_functions(*, half: bool) -> tuple[Any, Any]:
    """The operator, float16 or float32, and the function that says which shapes it makes."""
    views = cfunc(_RUN, cache=_KEPT)(_dali_half_views if half else _dali_views)
    return views, cfunc(_SETUP, cache=_KEPT)(_dali_shapes)


def _dali_shapes(into: int, into_ndims: int, outputs: int, shapes: int, ndims: int, inputs: int, samples: int) -> None:
    """The shapes of both views of each sample; inputs: an image for each, parameters and dali_constants."""
    theirs = carray(_pointer(into), outputs * samples, np.int64)
    ours = carray(_pointer(shapes), inputs * samples, np.int64)
    for i in range(outputs * samples):
        shape = carray(_pointer(theirs[i]), 3, np.int64)
        shape[0] = 1
        shape[1] = shape[2] = carray(_pointer(ours[3 * samples + i % samples]), 1, np.int64)[0]


def _dali_views(
    into: int, into_shapes: int, into_ndims: int, outputs: int, inputs: int, shapes: int, ndims: int, count: int
) -> None:
    """Both views of a sample, float32."""
    _run(into, into_shapes, inputs, shapes, np.float32)


def _dali_half_views(
    into: int, into_shapes: int, into_ndims: int, outputs: int, inputs: int, shapes: int, ndims: int, count: int
) -> None:
    """Both views of a sample, float16 as uint16."""
    _run(into, into_shapes, inputs, shapes, np.uint16)


@_compiled
def _run(into: int, into_shapes: int, inputs: int, shapes: int, kind: Any) -> None:
    size = carray(_pointer(carray(_pointer(into_shapes), 1, np.int64)[0]), 3, np.int64)[1]
    places = carray(_pointer(into), 2, np.int64)
    view1 = carray(_pointer(places[0]), (1, size, size), kind)
    view2 = carray(_pointer(places[1]), (1, size, size), kind)
    given = carray(_pointer(inputs), 6, np.int64)
    theirs = carray(_pointer(shapes), 6, np.int64)
    shape1 = carray(_pointer(theirs[0]), 3, np.int64)
    shape2 = carray(_pointer(theirs[1]), 3, np.int64)
    image1 = carray(_pointer(given[0]), (shape1[0], shape1[1], 1), np.uint8)
    image2 = carray(_pointer(given[1]), (shape2[0], shape2[1], 1), np.uint8)
    parameters = carray(_pointer(given[2]), (2, 8), np.float64)
    statistics = carray(_pointer(given[4]), 2, np.float64)
    spaces = carray(_pointer(given[5]), 6, np.int64)
    make_views(view1, view2, image1, image2, parameters, statistics[0], statistics[1],
               carray(_pointer(spaces[0]), spaces[1], np.float32), carray(_pointer(spaces[2]), spaces[3], np.int64),
               carray(_pointer(spaces[4]), spaces[5], np.int64))  # fmt: skip



# The vector loops. Every array is flat; a place in it is its number of elements from the start. Nothing is checked.


@intrinsic(prefer_literal=True)
def correlate(typing: Any, into: Any, at: Any, rows: Any, first: Any, stride: Any, weights: Any, weight: Any,
              between: Any, taps: Any, count: Any) -> Any:  # fmt: skip
    """into[at + i] = sum over t < taps of weights[weight + t · between] · rows[first + t · stride + i], for i < count.

    count: a multiple of 16. Where taps is written out as a number, the weights stay in registers.
    """
    known = taps.literal_value if isinstance(taps, types.IntegerLiteral) else None
    signature = types.void(into, types.intp, rows, types.intp, types.intp, weights, types.intp, types.intp,
                           taps if known else types.intp, types.intp)  # fmt: skip

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        """Its LLVM code."""
        into, at, rows, first, stride, weights, weight, between, taps, count = arguments
        target = _address(context, build, signature.args[0], into, at)
        source = _address(context, build, signature.args[2], rows, first)
        factors = _address(context, build, signature.args[5], weights, weight)

        def factor(tap: Any) -> Any:
            return _spread(build, build.load(build.gep(factors, [build.mul(tap, between)])))

        def row(tap: Any, i: Any) -> Any:
            return build.gep(source, [build.add(build.mul(tap, stride), i)])

        if known:
            held = [factor(INDEX(tap)) for tap in range(known)]
            with _steps(build, INDEX(0), count, LANES) as i:
                total = FLOATS([0.0] * LANES)
                for tap, weight in enumerate(held):
                    total = _call(build, "fmuladd", weight, _load(build, row(INDEX(tap), i), FLOATS), total)
                _store(build, total, build.gep(target, [i]))
            return context.get_dummy_value()
        whole = build.mul(build.sdiv(count, INDEX(LANES * UNROLL)), INDEX(LANES * UNROLL))
        for start, stop, vectors in ((INDEX(0), whole, UNROLL), (whole, count, 1)):
            with _steps(build, start, stop, LANES * vectors) as i:
                sums = [cgutils.alloca_once(build, FLOATS) for _ in range(vectors)]
                for total in sums:
                    build.store(FLOATS([0.0] * LANES), total)
                with cgutils.for_range(build, taps) as loop:
                    weight, place = factor(loop.index), row(loop.index, i)
                    for number, total in enumerate(sums):
                        vector = _load(build, build.gep(place, [INDEX(LANES * number)]), FLOATS)
                        build.store(_call(build, "fmuladd", weight, vector, build.load(total)), total)
                for number, total in enumerate(sums):
                    _store(build, build.load(total), build.gep(target, [build.add(i, INDEX(LANES * number))]))
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def transpose(typing: Any, into: Any, at: Any, into_stride: Any, rows: Any, first: Any, stride: Any) -> Any:
    """into[at + i · into_stride + j] = rows[first + j · stride + i], for i, j < 16."""
    signature = types.void(into, types.intp, types.intp, rows, types.intp, types.intp)

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        """Its LLVM code."""
        into, at, into_stride, rows, first, stride = arguments
        target = _address(context, build, signature.args[0], into, at)
        source = _address(context, build, signature.args[3], rows, first)
        a = [_load(build, build.gep(source, [build.mul(stride, INDEX(j))]), FLOATS) for j in range(LANES)]
        # Rows change numbers, then pairs of numbers, within quarters of a vector, which is cheap; then quarters. After
        # the second step vector 4k + j holds, in its quarter q, column 4q + j of rows 4k to 4k + 3.
        a = [_shuffle(build, a[k & ~1], a[k | 1], (NUMBERS_LOW, NUMBERS_HIGH)[k & 1]) for k in range(LANES)]
        a = [_shuffle(build, a[k & ~3 | k >> 1 & 1], a[k & ~3 | k >> 1 & 1 | 2], (PAIRS_LOW, PAIRS_HIGH)[k & 1])
             for k in range(LANES)]  # fmt: skip
        for j in range(4):
            for odd in range(2):
                quarters = (QUARTERS_EVEN, QUARTERS_ODD)[odd]
                upper, lower = (_shuffle(build, a[k + j], a[k + 4 + j], quarters) for k in (0, 8))
                for q, take in ((odd, QUARTERS_EVEN), (odd + 2, QUARTERS_ODD)):
                    place = build.gep(target, [build.mul(into_stride, INDEX(4 * q + j))])
                    _store(build, _shuffle(build, upper, lower, take), place)
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def widen(typing: Any, into: Any, at: Any, pixels: Any, first: Any, count: Any) -> Any:
    """into[at + i] = pixels[first + i] as a float, for i < count; count: a multiple of 16."""
    signature = types.void(into, types.intp, pixels, types.intp, types.intp)

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        """Its LLVM code."""
        into, at, pixels, first, count = arguments
        target = _address(context, build, signature.args[0], into, at)
        source = _address(context, build, signature.args[2], pixels, first)
        with _steps(build, INDEX(0), count, LANES) as i:
            vector = build.uitofp(_load(build, build.gep(source, [i]), BYTES), FLOATS)
            _store(build, vector, build.gep(target, [i]))
        return context.get_dummy_value()

    return signature, emit


def _make_scale(streamed: bool) -> Any:
    @intrinsic
    def scale(typing: Any, into: Any, at: Any, values: Any, first: Any, count: Any, gain: Any, offset: Any,
              low: Any, high: Any) -> Any:  # fmt: skip
        """into[at + i] = values[first + i] · gain + offset, held within low…high, for i < count, a multiple of 16.

        into: float32, or float16 as uint16.
        """
        signature = types.void(into, types.intp, values, types.intp, types.intp, *[types.float32] * 4)

        def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            """Its LLVM code."""
            into, at, values, first, count, *factors = arguments
            target = _address(context, build, signature.args[0], into, at)
            source = _address(context, build, signature.args[2], values, first)
            gain, offset, low, high = (_spread(build, factor) for factor in factors)
            halves = signature.args[0].dtype == types.uint16
            with _steps(build, INDEX(0), count, LANES) as i:
                vector = _load(build, build.gep(source, [i]), FLOATS)
                vector = _call(build, "fmuladd", vector, gain, offset)
                vector = _call(build, "minnum", _call(build, "maxnum", vector, low), high)
                vector = build.fptrunc(vector, HALVES) if halves else vector
                _store(build, vector, build.gep(target, [i]), streamed)
            return context.get_dummy_value()

        return signature, emit

    return scale


scale = _make_scale(streamed=False)
# Past the caches, straight to memory: a view is next read by another thread or device. Wants addresses that are
# multiples of 64 bytes (32 for float16).
scale_streamed = _make_scale(streamed=True)


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """An address as what carray takes."""

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return build.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), emit


@intrinsic
def claim(typing: Any, flags: Any, slot: Any) -> Any:
    """Whether flags[slot] was 0; it is 1 now. One thread of many is told so."""
    signature = types.boolean(flags, types.intp)

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = _address(context, build, signature.args[0], *arguments)
        before = build.cmpxchg(place, INDEX(0), INDEX(1), "acq_rel", "monotonic")
        return build.extract_value(before, 1)

    return signature, emit


@intrinsic
def release(typing: Any, flags: Any, slot: Any) -> Any:
    """flags[slot] = 0, after all that was written before."""
    signature = types.void(flags, types.intp)

    def emit(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = _address(context, build, signature.args[0], *arguments)
        build.store_atomic(INDEX(0), place, "release", 8)
        return context.get_dummy_value()

    return signature, emit


def _address(context: Any, build: ir.IRBuilder, kind: Any, array: Any, at: Any) -> Any:
    return build.gep(context.make_array(kind)(context, build, array).data, [at])


def _load(build: ir.IRBuilder, place: Any, kind: Any) -> Any:
    return build.load(build.bitcast(place, kind.as_pointer()), align=1)


def _store(build: ir.IRBuilder, vector: Any, place: Any, streamed: bool = False) -> None:
    bytes_each = 2 if vector.type == HALVES else 4
    place = build.bitcast(place, vector.type.as_pointer())
    stored = build.store(vector, place, align=LANES * bytes_each if streamed else bytes_each)
    if streamed:
        stored.set_metadata("nontemporal", build.module.add_metadata([INT(1)]))


def _spread(build: ir.IRBuilder, number: Any) -> Any:
    """The number in all lanes."""
    lane = build.insert_element(FLOATS(ir.Undefined), number, INT(0))
    return _shuffle(build, lane, lane, [0] * LANES)


def _shuffle(build: ir.IRBuilder, left: Any, right: Any, lanes: list[int]) -> Any:
    return build.shuffle_vector(left, right, ir.VectorType(INT, LANES)(lanes))


def _call(build: ir.IRBuilder, name: str, *vectors: Any) -> Any:
    kind = ir.FunctionType(FLOATS, [FLOATS] * len(vectors))
    return build.call(cgutils.get_or_insert_function(build.module, kind, f"llvm.{name}.v{LANES}f32"), vectors)


@contextmanager
def _steps(build: ir.IRBuilder, start: Any, stop: Any, step: int) -> Iterator[Any]:
    loop: Callable[..., Any] = cgutils.for_range_slice
    with loop(build, start, stop, INDEX(step)) as (index, _):
        yield index
