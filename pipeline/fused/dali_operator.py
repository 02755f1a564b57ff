"""The kernel as callbacks of DALI's numba_function.

They are compiled and cached here: DALI would compile them in every process, for seconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray
from numba.core import types

from pipeline.augmentation import Augmentation
from pipeline.fused.atomics import as_pointer
from pipeline.fused.jit import c_callback, jit
from pipeline.fused.kernel import make_views
from pipeline.fused.workspaces import Workspaces

# Signatures of numba_function's callbacks; addresses are uint64.
_ADDRESS, _COUNT = types.uint64, types.int32
_RUN = types.void(_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _ADDRESS, _COUNT)
_SETUP = types.void(_ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _COUNT)


def dali_constants(workspaces: Workspaces, augmentation: Augmentation) -> tuple[Any, Any, Any]:
    """Inputs of the operator that are equal for all samples.

    An array of length size, since the setup callback sees only the inputs' shapes; mean and standard deviation; and
    address and length of each of the workspaces' arrays.
    """
    arrays = [number for array in (workspaces.scratch, workspaces.starts, workspaces.locks)
              for number in (array.ctypes.data, array.size)]  # fmt: skip
    return np.zeros(augmentation.size, np.uint8), np.array([augmentation.mean, augmentation.std]), np.array(arrays)


@lru_cache
def dali_functions(*, half: bool) -> tuple[Any, Any]:
    """Compile the operator's run and setup callbacks. half: for float16 views."""
    return c_callback(_run_half if half else _run_float, _RUN), c_callback(_setup, _SETUP)


def _setup(
    out_shapes: int, out_ndims: int, outputs: int, in_shapes: int, in_ndims: int, inputs: int, samples: int
) -> None:  # fmt: skip
    """Set the shapes of both views of each sample; input 3 is the array of length size."""
    out_addresses = carray(as_pointer(out_shapes), outputs * samples, np.int64)
    in_addresses = carray(as_pointer(in_shapes), inputs * samples, np.int64)
    for i in range(outputs * samples):
        shape = carray(as_pointer(out_addresses[i]), 3, np.int64)
        shape[0] = 1
        shape[1] = shape[2] = carray(as_pointer(in_addresses[3 * samples + i % samples]), 1, np.int64)[0]


def _run_float(
    out: int, out_shapes: int, out_ndims: int, outputs: int, inputs: int, in_shapes: int, in_ndims: int, count: int
) -> None:  # fmt: skip
    """Compute both views of a sample, float32."""
    _run(out, out_shapes, inputs, in_shapes, np.float32)


def _run_half(
    out: int, out_shapes: int, out_ndims: int, outputs: int, inputs: int, in_shapes: int, in_ndims: int, count: int
) -> None:  # fmt: skip
    """Compute both views of a sample, float16 as uint16."""
    _run(out, out_shapes, inputs, in_shapes, np.uint16)


@jit
def _run(out: int, out_shapes: int, inputs: int, in_shapes: int, dtype: Any) -> None:
    """Compute both views of a sample. inputs: addresses of image1, image2, parameters and the three dali_constants."""
    size = carray(as_pointer(carray(as_pointer(out_shapes), 1, np.int64)[0]), 3, np.int64)[1]
    outputs = carray(as_pointer(out), 2, np.int64)
    view1 = carray(as_pointer(outputs[0]), (1, size, size), dtype)
    view2 = carray(as_pointer(outputs[1]), (1, size, size), dtype)
    arrays = carray(as_pointer(inputs), 6, np.int64)
    shapes = carray(as_pointer(in_shapes), 6, np.int64)
    shape1 = carray(as_pointer(shapes[0]), 3, np.int64)
    shape2 = carray(as_pointer(shapes[1]), 3, np.int64)
    image1 = carray(as_pointer(arrays[0]), (shape1[0], shape1[1], 1), np.uint8)
    image2 = carray(as_pointer(arrays[1]), (shape2[0], shape2[1], 1), np.uint8)
    parameters = carray(as_pointer(arrays[2]), (2, 8), np.float64)
    statistics = carray(as_pointer(arrays[4]), 2, np.float64)
    workspaces = carray(as_pointer(arrays[5]), 6, np.int64)
    make_views(view1, view2, image1, image2, parameters, statistics[0], statistics[1],
               carray(as_pointer(workspaces[0]), workspaces[1], np.float32),
               carray(as_pointer(workspaces[2]), workspaces[3], np.int64),
               carray(as_pointer(workspaces[4]), workspaces[5], np.int64))  # fmt: skip
