"""Caches of the libraries that we use: each gets a folder that can be written where its usual one can't.

In a container the code is often read-only, and there is no home: Apptainer, `docker run --user --read-only`, a service
account. numba then raises as its functions are defined, and Matplotlib and Triton warn or raise. They all read
environment variables, which worker processes inherit.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # the last resort: writable even where no disk is
ROOM = b"\0" * 4096  # a home that is over its quota takes an empty file, and no byte in it


def ensure_caches() -> None:
    """Set the variables that say where numba, Matplotlib, PyTorch and Triton keep files, where this process can't write
    to their usual places. Sets nothing where it can, or where no folder at all can be written.
    """
    temporary = _ensure_temporary()
    home = _expand("~")
    config = _of_variable("XDG_CONFIG_HOME") or home / ".config"
    usual = {
        "XDG_CACHE_HOME": _cache_home(),  # numba's where the code is read-only, PyTorch's hub, Matplotlib's fonts
        "MPLCONFIGDIR": _of_variable("MPLCONFIGDIR") or config / "matplotlib",
        "TRITON_CACHE_DIR": _of_variable("TRITON_CACHE_DIR") or home / ".triton",
    }
    for name in ("NUMBA_CACHE_DIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"):  # of no account unless they are set
        if place := _of_variable(name):
            usual[name] = place
    refused = [name for name, place in usual.items() if not _can_write(place)]
    if refused and temporary and (instead := _own_folder(temporary)):
        os.environ.update({name: str(instead / name.lower()) for name in refused})


def numba_can_cache() -> bool:
    """Whether numba has a folder to keep compiled code in: beside the source, or where ensure_caches has pointed it.

    Where it has none it raises when it is asked to keep any.
    """
    return _can_write(Path(__file__).parent / "__pycache__") or _can_write(_cache_home())


def _cache_home() -> Path:
    return _of_variable("XDG_CACHE_HOME") or _expand("~") / ".cache"


def _of_variable(name: str) -> Path | None:
    return _expand(os.environ[name]) if os.environ.get(name) else None


def _expand(path: str) -> Path:
    """The path with its "~" replaced, or left there where there is no home: no HOME, and no entry in passwd."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _ensure_temporary() -> Path | None:
    """The folder for temporary files, which C libraries and worker processes are told of too; None where there is none.

    Python passes over a TMPDIR that it can't write to.
    """
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:
        if not _can_write(SHARED_MEMORY):
            return None
        found = tempfile.tempdir = str(SHARED_MEMORY)
    given = os.environ.get("TMPDIR")
    if found == str(SHARED_MEMORY) or (given and Path(given).absolute() != Path(found)):
        os.environ["TMPDIR"] = found
    return Path(found)


def _can_write(folder: Path) -> bool:
    """Whether a file with something in it can be written there, or in the folder where it would be made."""
    if not folder.is_absolute():  # "~" of nobody's
        return False
    try:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            return file.write(ROOM) == len(ROOM)
    except OSError:
        return False


def _own_folder(temporary: Path) -> Path | None:
    """A folder of this user's alone, the same the next time: numba and Triton run what they find in their caches."""
    folder = temporary / f"cxr-simclr-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
        return folder if stat.S_ISDIR(found.st_mode) and mine else Path(tempfile.mkdtemp(dir=temporary))
    except OSError:
        return None
