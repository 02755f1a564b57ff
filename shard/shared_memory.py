"""/dev/shm: worker processes hand over results and locks through it, and a container may have 64 MB of it, or none."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from math import ceil

from shard.errors import InputError

PLACE = "/dev/shm"
# What the system says of a lock or a file that can't be made there; of other files it says their names.
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSYS)


def free_bytes() -> int:
    """How much of it is free."""
    return _size()[1]


def _size() -> tuple[int, int]:
    """How large it is and how much of it is free; 0 where there is none."""
    try:
        found = os.statvfs(PLACE)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def shared_memory_error(lower: str, *, why: str = "", wanted_bytes: int = 0) -> InputError:
    """What to say where there is too little shared memory. lower: the flags that want less of it, with their values.

    why: what the system says, where it isn't that there is no room. wanted_bytes: as far as is known.
    """
    total, free = map(_megabytes, _size())
    wanted = f", and about {_megabytes(wanted_bytes)} are wanted" if wanted_bytes else ""
    state = f"can't be used ({why})" if why else f"is too small (it has {total}, {free} of them free{wanted})"
    gigabytes = max(1, ceil(wanted_bytes / 2**30))
    return InputError(f"{PLACE} {state}: worker processes hand over what they make through it; give the container more "
                      f"(docker run --shm-size={gigabytes}g, or --ipc=host), or lower {lower}")  # fmt: skip


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.{1 if size < 10 * 2**20 else 0}f} MB"


@contextlib.contextmanager
def explain_lock_errors(lower: str) -> Iterator[None]:
    """Within the block locks and queues for worker processes are made; where they can't be, an InputError says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS or (error.filename and not str(error.filename).startswith(PLACE)):
            raise
        raise shared_memory_error(lower, why="" if error.errno == errno.ENOSPC else str(error.strerror)) from error
