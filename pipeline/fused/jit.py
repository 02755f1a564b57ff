"""numba's compiler with the kernel's options, and a cache that depends on all source files of the kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import cfunc, njit

from shard.caches import numba_can_cache

CACHE = numba_can_cache()
# Sums may be reordered, for instance in a view's mean; no value is infinite or NaN.
FASTMATH = {"contract", "reassoc", "nsz", "nnan", "ninf"}


def _hash_sources() -> str:
    folder = Path(__file__).parent
    files = (*sorted(folder.glob("*.py")), folder.parent / "augmentation.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


SOURCE_HASH = _hash_sources()


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function of the kernel on its first call, and cache the code."""
    return njit(cache=CACHE, nogil=True, fastmath=FASTMATH)(_with_source_hash(function))


def c_callback(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function with a C signature now, and cache the code; `address` of the result points to it."""
    return cfunc(signature, cache=CACHE)(_with_source_hash(function))


def _with_source_hash(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a hash of all source files to the name under which numba caches a function.

    numba itself checks only the file that defines the function, but its code contains the functions it calls.
    """
    if not function.__qualname__.endswith(SOURCE_HASH):
        function.__qualname__ += f"_{SOURCE_HASH}"
    return function
