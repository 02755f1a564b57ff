"""numba's compiler with the kernel's options, and a cache that depends on all source files of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import cfunc, njit

from shard.kernels.jit import CACHE, KERNELS, hash_sources, with_source_hash

# Sums may be reordered, for instance in a view's mean; no value is infinite or NaN.
FASTMATH = {"contract", "reassoc", "nsz", "nnan", "ninf"}
_FOLDER = Path(__file__).parent
SOURCE_HASH = hash_sources([*sorted(_FOLDER.glob("*.py")), _FOLDER.parent / "augmentation.py", KERNELS / "llvm.py"])


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function of the kernel on its first call, and cache the code."""
    return njit(cache=CACHE, nogil=True, fastmath=FASTMATH)(with_source_hash(function, SOURCE_HASH))


def c_callback(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function with a C signature now, and cache the code; `address` of the result points to it."""
    return cfunc(signature, cache=CACHE)(with_source_hash(function, SOURCE_HASH))
