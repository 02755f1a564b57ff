"""Files that are whole or not there: written under a temporary name, synced, renamed; their hashes; and locks."""

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
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]  # a module's name, to mypy

TEMPORARY = ".tmp"


@contextlib.contextmanager
def atomic_write(path: Path, *, shared: bool = False, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes the name `path` when the block ends well, and leaves nothing when it does not.

    shared: other processes may be writing the same file; the last to end well wins. Else what a killed process left
    under the temporary name is overwritten by the next. private: for its owner alone to read.
    """
    owner = f".{socket.gethostname()}-{os.getpid()}" if shared else ""
    temporary = path.with_name(f".{path.name}{owner}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            if private:
                temporary.chmod(0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk doesn't say where
        raise


def write_bytes(path: Path, content: bytes | memoryview, *, shared: bool = False, private: bool = False) -> None:
    """Write `content` to `path`, whole or not at all. shared, private: as in atomic_write."""
    with atomic_write(path, shared=shared, private=private) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path, name: str, *, shared: bool = False, timeout_s: float = 0) -> Iterator[None]:
    """Hold the lock `name` of a folder; it ends with its owner, however that ends.

    shared: any number may hold it at once, but nobody beside one who doesn't share it. timeout_s: how long to wait for
    it, as where an owner that was killed has workers that take a moment to notice.
    Raises InputError where another process holds it. A file system without locks gives none.
    """
    path = folder / f".{name}.lock"
    with path.open("ab") as file:
        until = time.monotonic() + timeout_s
        while not _lock(file, shared):
            if time.monotonic() >= until:
                raise InputError(f"{folder}: another process is writing there, who holds {path.name}; let it end, or "
                                 "end it")
            time.sleep(0.1)
        yield


def is_locked(folder: Path, name: str) -> bool:
    """Whether somebody holds the lock `name` of a folder alone. Where there are no locks, nobody does."""
    path = folder / f".{name}.lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _lock(file, shared=True)


def _lock(file: IO[bytes], shared: bool) -> bool:
    """Whether the file could be locked, or there are no locks here."""
    try:
        if fcntl is not None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True
