"""Atomic writes, file hashes and file locks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shard.errors import InputError

try:
    import fcntl
except ImportError:  # Windows lacks these locks
    fcntl = None  # type: ignore[assignment]  # a module's name, to mypy

TEMPORARY = ".tmp"
BUFFER_BYTES = 1 << 18  # a shard is written in many small pieces


@contextlib.contextmanager
def atomic_write(path: Path, *, shared: bool = False, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that is synced and renamed to `path` if the block succeeds, and removed if it fails.

    shared: several processes may write the same file; the last to succeed wins. Otherwise the temporary name is fixed,
    so that the next process overwrites the leftover of a killed one. private: only the owner can read the file.
    """
    owner = f".{socket.gethostname()}-{os.getpid()}" if shared else ""
    temporary = path.with_name(f".{path.name}{owner}{TEMPORARY}")
    try:
        with temporary.open("wb", BUFFER_BYTES) as file:
            if private:
                temporary.chmod(0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None  # the error of a full disk lacks the path
        raise


def write_bytes(path: Path, content: bytes | memoryview, *, shared: bool = False, private: bool = False) -> None:
    """Write `content` to `path` atomically. shared, private: as in atomic_write."""
    with atomic_write(path, shared=shared, private=private) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hash_rest(file)


def hash_rest(file: IO[bytes]) -> str:
    """Return the sha256 of what is left to read of an open file, in hex."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path, name: str, *, shared: bool = False, timeout_s: float = 0) -> Iterator[None]:
    """Hold the lock `name` of a folder. The system releases it when the process ends, even if it is killed.

    shared: several processes may hold the lock if all of them share it. timeout_s: how long to wait for the lock, since
    workers of a killed process may hold it a little longer.
    Raises InputError if another process holds the lock. Does nothing on a file system without locks.
    """
    path, owner = folder / f".{name}.lock", os.getpid()
    with path.open("a+b") as file:  # NFS grants a shared lock only on a file that is open for reading
        deadline = time.monotonic() + timeout_s
        while not _lock(file, shared):
            if time.monotonic() >= deadline:
                raise InputError(f"{folder}: another process is writing there and holds {path.name}; wait until "
                                 "it ends, or stop it")
            time.sleep(0.1)
        try:
            yield
        finally:
            if os.getpid() == owner:
                _unlock(file)


def is_locked(folder: Path, name: str) -> bool:
    """Return whether a process holds the lock `name` of a folder exclusively; False on a file system without locks."""
    path = folder / f".{name}.lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _lock(file, shared=True)


def _lock(file: IO[bytes], shared: bool) -> bool:
    """Try to lock a file. Returns True also if the system or the file system lacks locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _unlock(file: IO[bytes]) -> None:
    """Release a lock at once: closing the file would not while a process that was forked meanwhile has it open."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # as in _lock
            fcntl.flock(file, fcntl.LOCK_UN)
