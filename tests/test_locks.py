"""Locks of a folder: released at once, also if a process was forked meanwhile, and granted by NFS."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import pytest

from shard.files import is_locked, locked


def test_a_forked_process_neither_keeps_nor_releases_a_lock(tmp_path: Path) -> None:
    """A loader forks its workers while other threads fetch shards into the cache, under locks."""
    waits, go_on = os.pipe()
    lock = locked(tmp_path, "tar")
    lock.__enter__()
    if (child := os.fork()) == 0:
        try:
            lock.__exit__(None, None, None)
            os.write(go_on, b"closed")
        finally:
            os._exit(0)
    os.read(waits, 6)
    assert is_locked(tmp_path, "tar")
    os.waitpid(child, 0)
    if (child := os.fork()) == 0:
        os.close(go_on)
        os.read(waits, 1)  # until the parent closes its end
        os._exit(0)
    lock.__exit__(None, None, None)
    try:
        assert not is_locked(tmp_path, "tar")
    finally:
        os.close(go_on)
        os.waitpid(child, 0)
        os.close(waits)


def test_a_lock_is_what_nfs_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, Linux refuses an exclusive lock on a file not open for writing, and a shared one if not for reading."""
    flock = fcntl.flock

    def flock_on_nfs(file: IO[bytes], operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if (operation & fcntl.LOCK_SH and mode == os.O_WRONLY) or (operation & fcntl.LOCK_EX and mode == os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_on_nfs)
    with locked(tmp_path, "whole", shared=True), locked(tmp_path, "whole", shared=True), locked(tmp_path, "part"):
        assert is_locked(tmp_path, "part") and not is_locked(tmp_path, "whole")
