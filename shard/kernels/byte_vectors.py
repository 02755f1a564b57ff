"""Vector loops on bytes as LLVM code, for any processor that LLVM supports.

All arithmetic is in integers, so results do not depend on the processor. Arrays are flat, an offset is a number of
elements, and nothing checks bounds.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from shard.kernels.llvm import BYTES, INDEX, INTS, LANES, address, load, loop, shuffle, splat, store

PRECISION = 22  # fractional bits of weights: 9 bits remain for the integer part of a weighted sum of bytes, and a sign
UNROLL = 4  # vectors summed at once: their sums fit into the registers of AVX2
# Lanes of two vectors, interleaved.
LOW, HIGH = ([lane // 2 + half + LANES * (lane % 2) for lane in range(LANES)] for half in (0, LANES // 2))


@intrinsic
def weigh(typing: Any, out: Any, out_at: Any, rows: Any, rows_at: Any, stride: Any, weights: Any, weights_at: Any,
          taps: Any, count: Any) -> Any:  # fmt: skip
    """out[out_at + i] = sum over t < taps of weights[weights_at + t] · rows[rows_at + t · stride + i], for i < count.

    out, rows: uint8. weights: int32 with PRECISION fractional bits. The sum is rounded to nearest and clamped to
    0…255. count: a multiple of 16.
    """
    signature = types.void(out, types.intp, rows, types.intp, types.intp, weights, types.intp, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, out_at, rows, rows_at, stride, weights, weights_at, taps, count = arguments
        target = address(context, builder, signature.args[0], out, out_at)
        source = address(context, builder, signature.args[2], rows, rows_at)
        factors = address(context, builder, signature.args[5], weights, weights_at)
        block = INDEX(LANES * UNROLL)
        whole = builder.mul(builder.sdiv(count, block), block)
        for start, stop, vectors in ((INDEX(0), whole, UNROLL), (whole, count, 1)):
            with loop(builder, start, stop, LANES * vectors) as i:
                _weigh_vectors(builder, builder.gep(target, [i]), builder.gep(source, [i]), stride, factors, taps,
                               vectors)  # fmt: skip
        return context.get_dummy_value()

    return signature, codegen


def _weigh_vectors(
    builder: ir.IRBuilder, target: Any, source: Any, stride: Any, factors: Any, taps: Any, vectors: int
) -> None:  # fmt: skip
    sums = [cgutils.alloca_once(builder, INTS) for _ in range(vectors)]
    for total in sums:
        builder.store(INTS([1 << (PRECISION - 1)] * LANES), total)
    with cgutils.for_range(builder, taps) as inner:
        weight = splat(builder, builder.load(builder.gep(factors, [inner.index])), INTS)
        row = builder.gep(source, [builder.mul(inner.index, stride)])
        for k, total in enumerate(sums):
            vector = builder.zext(load(builder, builder.gep(row, [INDEX(LANES * k)]), BYTES), INTS)
            builder.store(builder.add(builder.load(total), builder.mul(weight, vector)), total)
    for k, total in enumerate(sums):
        shifted = builder.ashr(builder.load(total), INTS([PRECISION] * LANES))
        low, high = INTS([0] * LANES), INTS([255] * LANES)
        clamped = builder.select(builder.icmp_signed("<", shifted, low), low, shifted)
        clamped = builder.select(builder.icmp_signed(">", clamped, high), high, clamped)
        store(builder, builder.trunc(clamped, BYTES), builder.gep(target, [INDEX(LANES * k)]))


@intrinsic
def load_bits(typing: Any, data: Any, at: Any) -> Any:
    """Return the 64 bits from data[at] on, the first as the highest. data: uint8."""
    signature = types.uint64(data, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], *arguments)
        bits = builder.load(builder.bitcast(pointer, INDEX.as_pointer()), align=1)
        return builder.bswap(bits) if sys.byteorder == "little" else bits

    return signature, codegen


@intrinsic
def transpose(typing: Any, out: Any, out_at: Any, out_stride: Any, rows: Any, rows_at: Any, stride: Any,
              last: Any) -> Any:  # fmt: skip
    """out[out_at + i · out_stride + j] = rows[rows_at + min(j, last) · stride + i], for i, j < 16, of bytes."""
    signature = types.void(out, types.intp, types.intp, rows, types.intp, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, out_at, out_stride, rows, rows_at, stride, last = arguments
        target = address(context, builder, signature.args[0], out, out_at)
        source = address(context, builder, signature.args[3], rows, rows_at)
        a = []
        for j in range(LANES):
            row = builder.select(builder.icmp_signed("<", INDEX(j), last), INDEX(j), last)
            a.append(load(builder, builder.gep(source, [builder.mul(stride, row)]), BYTES))
        # Each step interleaves the first half of the vectors with the second; four steps transpose 16×16.
        for _ in range(4):
            a = [shuffle(builder, a[k // 2], a[k // 2 + LANES // 2], (LOW, HIGH)[k % 2]) for k in range(LANES)]
        for i, column in enumerate(a):
            store(builder, column, builder.gep(target, [builder.mul(out_stride, INDEX(i))]))
        return context.get_dummy_value()

    return signature, codegen
