"""Redirect the caches of libraries to a writable folder when their default locations are not writable.

In a container the code is often read-only and there is no home directory, as under Apptainer, `docker run --user
--read-only`, or a service account. numba then raises when it defines functions; Matplotlib and Triton warn or raise.
All of them read environment variables, which worker processes inherit.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # the last resort: writable even without a writable disk
PROBE = b"\0" * 4096  # a home over its quota accepts an empty file, but no bytes in it


def ensure_caches() -> None:
    """Set the cache variables of numba, Matplotlib, PyTorch and Triton whose locations are not writable.

    Leaves a variable alone if its location is writable, or if no writable folder exists at all.
    """
    temporary = _ensure_temporary()
    home = _expand("~")
    config = _path_from_env("XDG_CONFIG_HOME") or home / ".config"
    locations = {
        "XDG_CACHE_HOME": _cache_home(),  # numba's if the code is read-only, PyTorch's hub, Matplotlib's fonts
        "MPLCONFIGDIR": _path_from_env("MPLCONFIGDIR") or config / "matplotlib",
        "TRITON_CACHE_DIR": _path_from_env("TRITON_CACHE_DIR") or home / ".triton",
    }
    for name in ("NUMBA_CACHE_DIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"):  # have an effect only if set
        if location := _path_from_env(name):
            locations[name] = location
    unwritable = [name for name, location in locations.items() if not _is_writable(location)]
    if unwritable and temporary and (fallback := _private_folder(temporary)):
        os.environ.update({name: str(fallback / name.lower()) for name in unwritable})


def numba_can_cache() -> bool:
    """Return whether numba has a folder for compiled code, next to the source or in the cache folder.

    Without one, numba raises for every function with cache=True.
    """
    return _is_writable(Path(__file__).parent / "__pycache__") or _is_writable(_cache_home())


def _cache_home() -> Path:
    return _path_from_env("XDG_CACHE_HOME") or _expand("~") / ".cache"


def _path_from_env(name: str) -> Path | None:
    return _expand(os.environ[name]) if os.environ.get(name) else None


def _expand(path: str) -> Path:
    """Expand "~"; keep it if there is no home directory: no HOME, and no entry in passwd."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _ensure_temporary() -> Path | None:
    """Return the folder for temporary files, or None if there is none.

    Python silently skips a TMPDIR that is not writable. TMPDIR is then corrected for C libraries and worker processes.
    """
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:
        if not _is_writable(SHARED_MEMORY):
            return None
        found = tempfile.tempdir = str(SHARED_MEMORY)
    given = os.environ.get("TMPDIR")
    if found == str(SHARED_MEMORY) or (given and Path(given).absolute() != Path(found)):
        os.environ["TMPDIR"] = found
    return Path(found)


def _is_writable(folder: Path) -> bool:
    """Return whether a non-empty file can be written to the folder, or to its nearest existing parent."""
    if not folder.is_absolute():  # "~" was not expanded
        return False
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            return file.write(PROBE) == len(PROBE)
    except OSError:
        return False


def _private_folder(temporary: Path) -> Path | None:
    """Create or reuse a folder that only this user can write to: numba and Triton execute what their caches contain."""
    folder = temporary / f"cxr-simclr-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        return folder if stat.S_ISDIR(status.st_mode) and private else Path(tempfile.mkdtemp(dir=temporary))
    except OSError:
        return None
