"""Worker processes of a DataLoader: batches in shared memory, and errors that say what to change."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import get_worker_info

from shard.errors import InputError
from shard.shared_memory import explain_lock_errors, shared_memory_error

PREFETCH_FACTOR = 2  # batches that each worker prefetches, DataLoader's default
IN_USE = 2  # batches that the training loop references: the current one, and the previous one until it is freed


def move_to_shared_memory(batch: Any) -> Any:
    """Move a tensor or a tuple of tensors into shared memory and return it; called in a worker.

    Raises InputError if shared memory is full. DataLoader itself would move the batch in a background thread, which
    drops a batch that does not fit, and the main process would wait for it forever.
    """
    try:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    except RuntimeError as error:
        info = get_worker_info()
        if info is None or not _is_shared_memory_error(error):
            raise
        needed = (PREFETCH_FACTOR * info.num_workers + IN_USE) * _bytes(batch)
        raise shared_memory_error(_flags(info.num_workers), needed_bytes=needed) from error
    return batch


def check_shared_memory(batch: Any, workers: int, batches: int, free: int) -> None:
    """Raise InputError if the prefetched batches do not fit into `free` bytes of shared memory.

    batch: the first one. batches: their total number, 0 if infinite. All are prefetched whenever the training loop
    pauses, for instance to write a checkpoint; this check fails at the start instead.
    """
    prefetched = min(PREFETCH_FACTOR * workers, batches or PREFETCH_FACTOR * workers)
    if prefetched * _bytes(batch) > free:
        raise shared_memory_error(_flags(workers), needed_bytes=(prefetched + IN_USE) * _bytes(batch))


def _tensors(batch: Any) -> list[torch.Tensor]:
    return [item for item in (batch if isinstance(batch, tuple) else (batch,)) if isinstance(item, torch.Tensor)]


def _bytes(batch: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(batch))


@contextlib.contextmanager
def translate_worker_errors(workers: int) -> Iterator[None]:
    """Context in which a DataLoader is created and iterated.

    Raises InputError if a worker process dies or shared memory is too small.
    """
    try:
        with explain_lock_errors(_flags(workers)):
            # Create as many locks as DataLoader will: if it fails to create one, its iterator is left half built.
            _ = [multiprocessing.Lock() for _ in range(3 * workers + 8)]
            yield
    except RuntimeError as error:
        if _is_shared_memory_error(error):
            raise shared_memory_error(_flags(workers)) from error
        if "DataLoader worker (pid" in str(error):
            raise InputError(f"a worker process died ({str(error).splitlines()[0]}), perhaps out of memory; lower "
                             f"--workers={workers} or --batch-size") from error
        raise


def _flags(workers: int) -> str:
    return f"--workers={workers} or --batch-size"


def _is_shared_memory_error(error: RuntimeError) -> bool:
    """Whether PyTorch reports full shared memory. Writing to a page that does not fit kills a worker with SIGBUS."""
    return any(phrase in str(error) for phrase in ("shared memory", "Bus error"))
