"""Compile the kernels, or load them from numba's cache, when this module is imported.

The server that forks the workers of a build imports it. They share the compiled code and its memory; otherwise each of
them would load it, or compile it if the cache is empty.
"""

import contextlib

from shard.image import compile_kernels

with contextlib.suppress(OSError):  # write_shard raises it
    compile_kernels()
