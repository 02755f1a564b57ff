"""numba's compiler, with a cache that depends on all source files of the kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numba import njit

from shard.caches import numba_can_cache

CACHE = numba_can_cache()
KERNELS = Path(__file__).parent


def hash_sources(files: Iterable[Path]) -> str:
    """Hash the contents of source files, in this order."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def with_source_hash(function: Callable[..., Any], source_hash: str) -> Callable[..., Any]:
    """Add a hash of all source files to the name under which numba caches a function.

    numba itself checks only the file that defines the function, but its code contains the functions it calls.
    """
    if not function.__qualname__.endswith(source_hash):
        function.__qualname__ += f"_{source_hash}"
    return function


_SOURCE_HASH = hash_sources(sorted(KERNELS.glob("*.py")))


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function of this package on its first call, and cache the code.

    Without the fast-math flags of the fused operator: results must not depend on the processor.
    """
    return njit(cache=CACHE, nogil=True)(with_source_hash(function, _SOURCE_HASH))
