"""Vector loops as LLVM code, for any processor that LLVM supports.

Arrays are flat and an offset is a number of elements; nothing checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from pipeline.fused.jit import jit
from shard.kernels.llvm import (
    BYTES,
    FLOATS,
    HALVES,
    INDEX,
    LANES,
    address,
    call,
    load,
    loop,
    prefetch,
    shuffle,
    splat,
    store,
)

# Lanes of two vectors that a shuffle of `transpose` takes: single numbers and pairs within each quarter of a vector,
# then whole quarters.
NUMBERS_LOW, NUMBERS_HIGH, PAIRS_LOW, PAIRS_HIGH = (
    [quarter + lane for quarter in range(0, LANES, 4) for lane in lanes]
    for lanes in ((0, 16, 1, 17), (2, 18, 3, 19), (0, 1, 16, 17), (2, 3, 18, 19))
)
QUARTERS_EVEN, QUARTERS_ODD = (
    [row + quarter * 4 + lane for row in (0, LANES) for quarter in quarters for lane in range(4)]
    for quarters in ((0, 2), (1, 3))
)
AHEAD = 2048  # bytes that load_bytes prefetches ahead: a few rows, which mostly follow each other in memory
UNROLL = 6  # vectors summed at once: hides the latency of additions, and fits into the registers of AVX2


@jit
def round_up(count: int) -> int:
    """Round up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@intrinsic(prefer_literal=True)
def correlate(typing: Any, out: Any, out_at: Any, rows: Any, rows_at: Any, stride: Any, weights: Any, weights_at: Any,
              weight_stride: Any, taps: Any, count: Any) -> Any:  # fmt: skip
    """out[out_at + i] = sum over t < taps of weights[weights_at + t · weight_stride] · rows[rows_at + t · stride + i].

    For i < count, a multiple of 16. If `taps` is a literal, the weights stay in registers.
    """
    literal = taps.literal_value if isinstance(taps, types.IntegerLiteral) else None
    signature = types.void(out, types.intp, rows, types.intp, types.intp, weights, types.intp, types.intp,
                           taps if literal else types.intp, types.intp)  # fmt: skip

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, out_at, rows, rows_at, stride, weights, weights_at, weight_stride, taps, count = arguments
        target = address(context, builder, signature.args[0], out, out_at)
        source = address(context, builder, signature.args[2], rows, rows_at)
        factors = address(context, builder, signature.args[5], weights, weights_at)

        def factor(tap: Any) -> Any:
            return splat(builder, builder.load(builder.gep(factors, [builder.mul(tap, weight_stride)])))

        def row(tap: Any, i: Any) -> Any:
            return builder.gep(source, [builder.add(builder.mul(tap, stride), i)])

        if literal:
            _sum_unrolled(builder, target, factor, row, literal, count)
        else:
            _sum_in_loop(builder, target, factor, row, taps, count)
        return context.get_dummy_value()

    return signature, codegen


def _sum_unrolled(
    builder: ir.IRBuilder, target: Any, factor: Callable[..., Any], row: Callable[..., Any], taps: int, count: Any
) -> None:
    factors = [factor(INDEX(tap)) for tap in range(taps)]
    with loop(builder, INDEX(0), count, LANES) as i:
        total = FLOATS([0.0] * LANES)
        for tap, weight in enumerate(factors):
            total = call(builder, "fmuladd", weight, load(builder, row(INDEX(tap), i), FLOATS), total)
        store(builder, total, builder.gep(target, [i]))


def _sum_in_loop(
    builder: ir.IRBuilder, target: Any, factor: Callable[..., Any], row: Callable[..., Any], taps: Any, count: Any
) -> None:
    """Sum UNROLL vectors at a time, then single vectors."""
    for start, stop, vectors in _blocks(builder, count, UNROLL):
        with loop(builder, start, stop, LANES * vectors) as i:
            sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(vectors)]
            for total in sums:
                builder.store(FLOATS([0.0] * LANES), total)
            with cgutils.for_range(builder, taps) as inner:
                weight, pointer = factor(inner.index), row(inner.index, i)
                for k, total in enumerate(sums):
                    vector = load(builder, builder.gep(pointer, [INDEX(LANES * k)]), FLOATS)
                    builder.store(call(builder, "fmuladd", weight, vector, builder.load(total)), total)
            for k, total in enumerate(sums):
                store(builder, builder.load(total), builder.gep(target, [builder.add(i, INDEX(LANES * k))]))


def _blocks(builder: ir.IRBuilder, count: Any, vectors: int) -> tuple[tuple[Any, Any, int], tuple[Any, Any, int]]:
    """Divide `count` numbers into blocks of some vectors, and the rest into vectors: start, stop, vectors of each."""
    block = INDEX(LANES * vectors)
    whole = builder.mul(builder.sdiv(count, block), block)
    return (INDEX(0), whole, vectors), (whole, count, 1)


@intrinsic
def transpose(typing: Any, out: Any, out_at: Any, out_stride: Any, rows: Any, rows_at: Any, stride: Any) -> Any:
    """out[out_at + i · out_stride + j] = rows[rows_at + j · stride + i], for i, j < 16."""
    signature = types.void(out, types.intp, types.intp, rows, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, out_at, out_stride, rows, rows_at, stride = arguments
        target = address(context, builder, signature.args[0], out, out_at)
        source = address(context, builder, signature.args[3], rows, rows_at)
        a = [load(builder, builder.gep(source, [builder.mul(stride, INDEX(j))]), FLOATS) for j in range(LANES)]
        # Exchange numbers, then pairs of numbers, within quarters of the vectors, which is cheap; then quarters. After
        # the second step vector 4k + j contains, in its quarter q, column 4q + j of rows 4k to 4k + 3.
        a = [shuffle(builder, a[k & ~1], a[k | 1], (NUMBERS_LOW, NUMBERS_HIGH)[k & 1]) for k in range(LANES)]
        a = [shuffle(builder, a[k & ~3 | k >> 1 & 1], a[k & ~3 | k >> 1 & 1 | 2], (PAIRS_LOW, PAIRS_HIGH)[k & 1])
             for k in range(LANES)]  # fmt: skip
        for j in range(4):
            for odd in range(2):
                quarters = (QUARTERS_EVEN, QUARTERS_ODD)[odd]
                upper, lower = (shuffle(builder, a[k + j], a[k + 4 + j], quarters) for k in (0, 8))
                for q, lanes in ((odd, QUARTERS_EVEN), (odd + 2, QUARTERS_ODD)):
                    pointer = builder.gep(target, [builder.mul(out_stride, INDEX(4 * q + j))])
                    store(builder, shuffle(builder, upper, lower, lanes), pointer)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def load_bytes(typing: Any, out: Any, out_at: Any, pixels: Any, pixels_at: Any, count: Any) -> Any:
    """out[out_at + i] = float(pixels[pixels_at + i]), for i < count, a multiple of 16."""
    signature = types.void(out, types.intp, pixels, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, out_at, pixels, pixels_at, count = arguments
        target = address(context, builder, signature.args[0], out, out_at)
        source = address(context, builder, signature.args[2], pixels, pixels_at)
        for start, stop, vectors in _blocks(builder, count, 4):
            with loop(builder, start, stop, LANES * vectors) as i:
                prefetch(builder, builder.gep(source, [builder.add(i, INDEX(AHEAD))]))
                for k in range(vectors):
                    at = builder.add(i, INDEX(LANES * k))
                    vector = builder.uitofp(load(builder, builder.gep(source, [at]), BYTES), FLOATS)
                    store(builder, vector, builder.gep(target, [at]))
        return context.get_dummy_value()

    return signature, codegen


def _make_scale_and_clamp(streamed: bool) -> Any:
    @intrinsic
    def scale_and_clamp(typing: Any, out: Any, out_at: Any, values: Any, values_at: Any, count: Any, gain: Any,
                        offset: Any, low: Any, high: Any) -> Any:  # fmt: skip
        """out[out_at + i] = values[values_at + i] · gain + offset, clamped to low…high, for i < count.

        count: a multiple of 16. out: float32, or float16 as uint16.
        """
        signature = types.void(out, types.intp, values, types.intp, types.intp, *[types.float32] * 4)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            out, out_at, values, values_at, count, *scalars = arguments
            target = address(context, builder, signature.args[0], out, out_at)
            source = address(context, builder, signature.args[2], values, values_at)
            gain, offset, low, high = (splat(builder, scalar) for scalar in scalars)
            halves = signature.args[0].dtype == types.uint16
            with loop(builder, INDEX(0), count, LANES) as i:
                vector = load(builder, builder.gep(source, [i]), FLOATS)
                vector = call(builder, "fmuladd", vector, gain, offset)
                for sign, limit in ((">", low), ("<", high)):
                    vector = builder.select(builder.fcmp_ordered(sign, limit, vector), limit, vector)
                vector = builder.fptrunc(vector, HALVES) if halves else vector
                store(builder, vector, builder.gep(target, [i]), streamed)
            return context.get_dummy_value()

        return signature, codegen

    return scale_and_clamp


scale_and_clamp = _make_scale_and_clamp(streamed=False)
# Writes to memory without filling the caches: another thread or device reads the view next. The address must be a
# multiple of 64 bytes, for float16 of 32.
stream_and_clamp = _make_scale_and_clamp(streamed=True)
