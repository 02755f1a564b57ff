"""Shared memory, /dev/shm: worker processes pass results and locks through it. A container may have 64 MB or none."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from math import ceil

from shard.errors import InputError

PLACE = "/dev/shm"
# Errors from creating a lock or a file in it. The errors of other files carry a file name.
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSYS)


def free_bytes() -> int:
    """Return the free shared memory in bytes."""
    return _size()[1]


def _size() -> tuple[int, int]:
    """Return the total and the free shared memory in bytes; 0 if there is none."""
    try:
        found = os.statvfs(PLACE)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def shared_memory_error(lower: str, *, why: str = "", needed_bytes: int = 0) -> InputError:
    """Create the error for too little shared memory.

    lower: the flags to lower, with their values. why: the system's reason, if the cause is not a lack of space.
    needed_bytes: 0 if unknown.
    """
    total, free = map(_megabytes, _size())
    needed = f", and about {_megabytes(needed_bytes)} are needed" if needed_bytes else ""
    state = f"can't be used ({why})" if why else f"is too small (it has {total}, {free} of them free{needed})"
    gigabytes = max(1, ceil(needed_bytes / 2**30))
    return InputError(f"{PLACE} {state}: worker processes pass their results through it; give the container more "
                      f"(docker run --shm-size={gigabytes}g, or --ipc=host), or lower {lower}")  # fmt: skip


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.{1 if size < 10 * 2**20 else 0}f} MB"


@contextlib.contextmanager
def explain_lock_errors(lower: str) -> Iterator[None]:
    """Turn an error from creating locks or queues within the block into an InputError. lower: the flags to lower."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS or (error.filename and not str(error.filename).startswith(PLACE)):
            raise
        raise shared_memory_error(lower, why="" if error.errno == errno.ENOSPC else str(error.strerror)) from error
