"""Worker processes of a DataLoader: pass their batches through shared memory, and explain when that fails."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import get_worker_info

from shard.errors import InputError
from shard.shared_memory import explain_lock_errors, shared_memory_error

PREFETCHED = 2  # batches made ahead by each worker, as a DataLoader has it
HELD = 2  # by the trainer: the one it works on, and the one before until it is dropped


def share(made: Any) -> Any:
    """A batch, a tensor or a tuple of them, moved into shared memory; called in a worker.

    Raises InputError where it is full. A DataLoader would move it later, in a thread that drops what it can't: the
    batch would be waited for forever.
    """
    try:
        for tensor in _tensors(made):
            tensor.share_memory_()
    except RuntimeError as error:
        info = get_worker_info()
        if info is None or not _is_of_shared_memory(error):
            raise
        wanted = (PREFETCHED * info.num_workers + HELD) * _bytes(made)
        raise shared_memory_error(_flags(info.num_workers), wanted_bytes=wanted) from error
    return made


def check_room(made: Any, workers: int, batches: int, free: int) -> None:
    """Raise InputError where `free` bytes of shared memory don't hold the batches that the workers make ahead.

    made: the first of them. batches: how many there are at all, 0 for no end. Whenever the trainer pauses, as it does
    to write a checkpoint, all are made; better to say so now than then.
    """
    ahead = min(PREFETCHED * workers, batches or PREFETCHED * workers)
    if ahead * _bytes(made) > free:
        raise shared_memory_error(_flags(workers), wanted_bytes=(ahead + HELD) * _bytes(made))


def _tensors(made: Any) -> list[torch.Tensor]:
    return [one for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, torch.Tensor)]


def _bytes(made: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(made))


@contextlib.contextmanager
def explaining_workers(workers: int) -> Iterator[None]:
    """Within the block a DataLoader with so many workers is begun and iterated; raises InputError where a worker ended
    before its time, or there is too little shared memory."""
    try:
        with explain_lock_errors(_flags(workers)):
            # As many as a DataLoader is about to make, which leaves its iterator half made where it can't make one.
            _ = [multiprocessing.Lock() for _ in range(3 * workers + 8)]
            yield
    except RuntimeError as error:
        if _is_of_shared_memory(error):
            raise shared_memory_error(_flags(workers)) from error
        if "DataLoader worker (pid" in str(error):
            raise InputError(f"a process that makes views has ended ({str(error).splitlines()[0]}): is there too "
                             f"little memory? Lower --workers={workers} or --batch-size") from error
        raise


def _flags(workers: int) -> str:
    return f"--workers={workers} or --batch-size"


def _is_of_shared_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says that shared memory ran out; a page of it that isn't there ends a worker by SIGBUS."""
    return any(said in str(error) for said in ("shared memory", "Bus error"))
