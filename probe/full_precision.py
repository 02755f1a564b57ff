"""Arithmetic in full float32 by deterministic algorithms, and what its last bits depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within the block compute without TF32 and by deterministic algorithms of cuDNN; then restore the settings.

    It changes nothing on a CPU. On a GPU the gradients of a few operators, such as max-pooling, are still summed in an
    order that varies.
    """
    # NVIDIA's containers turn TF32 on for matrix products, too (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    matmul = torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = matmul


def device_name(device: torch.device) -> str:
    """Return "cpu", or the name of the GPU: the algorithms of other models round differently."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
