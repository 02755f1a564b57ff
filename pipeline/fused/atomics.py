"""Locks and pointers for compiled functions, as LLVM code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from shard.kernels.llvm import INDEX, address


@intrinsic
def as_pointer(typing: Any, address: Any) -> Any:
    """Convert an address to a pointer for carray."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


@intrinsic
def try_lock(typing: Any, locks: Any, index: Any) -> Any:
    """Atomically set locks[index] to 1; return whether it was 0."""
    signature = types.boolean(locks, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], *arguments)
        before = builder.cmpxchg(pointer, INDEX(0), INDEX(1), "acq_rel", "monotonic")
        return builder.extract_value(before, 1)

    return signature, codegen


@intrinsic
def unlock(typing: Any, locks: Any, index: Any) -> Any:
    """Atomically set locks[index] to 0, after all previous writes."""
    signature = types.void(locks, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], *arguments)
        builder.store_atomic(INDEX(0), pointer, "release", 8)
        return context.get_dummy_value()

    return signature, codegen
