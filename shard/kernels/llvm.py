"""Building blocks of LLVM code on vectors of 16 numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
INDEX, INT = ir.IntType(64), ir.IntType(32)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
INTS = ir.VectorType(INT, LANES)


def address(context: Any, builder: ir.IRBuilder, array_type: Any, array: Any, offset: Any) -> Any:
    """Return a pointer to an element of an array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


def load(builder: ir.IRBuilder, pointer: Any, vector_type: Any) -> Any:
    """Load a vector from an unaligned address."""
    return builder.load(builder.bitcast(pointer, vector_type.as_pointer()), align=1)


def prefetch(builder: ir.IRBuilder, pointer: Any) -> None:
    """Ask for the cache line of an address, which may be anywhere, before it is read."""
    arguments = [pointer, INT(0), INT(3), INT(1)]  # for reading, into all caches, data
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type), arguments)


def store(builder: ir.IRBuilder, vector: Any, pointer: Any, streamed: bool = False) -> None:
    """Store a vector; streamed: past the caches, to an address aligned with the vector."""
    itemsize = 1 if vector.type == BYTES else 2 if vector.type == HALVES else 4
    pointer = builder.bitcast(pointer, vector.type.as_pointer())
    instruction = builder.store(vector, pointer, align=LANES * itemsize if streamed else itemsize)
    if streamed:
        instruction.set_metadata("nontemporal", builder.module.add_metadata([INT(1)]))


def splat(builder: ir.IRBuilder, number: Any, vector_type: Any = FLOATS) -> Any:
    """Copy a number into all lanes."""
    vector = builder.insert_element(vector_type(ir.Undefined), number, INT(0))
    return shuffle(builder, vector, vector, [0] * LANES)


def shuffle(builder: ir.IRBuilder, left: Any, right: Any, lanes: list[int]) -> Any:
    """Take 16 lanes of two vectors, numbered 0 to 31."""
    return builder.shuffle_vector(left, right, ir.VectorType(INT, LANES)(lanes))


def call(builder: ir.IRBuilder, name: str, *vectors: Any) -> Any:
    """Call an LLVM intrinsic on vectors of floats."""
    function_type = ir.FunctionType(FLOATS, [FLOATS] * len(vectors))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, vectors)


@contextmanager
def loop(builder: ir.IRBuilder, start: Any, stop: Any, step: int) -> Iterator[Any]:
    """Build a loop over range(start, stop, step); the with block builds its body."""
    for_range: Callable[..., Any] = cgutils.for_range_slice
    with for_range(builder, start, stop, INDEX(step)) as (index, _):
        yield index
