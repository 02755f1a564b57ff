"""The environment of this process: CPU cores, allocator, Slurm array task, and versions of libraries and code."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

from shard.errors import InputError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # mallopt(3)
TOP_PAD_BYTES = 1 << 28


def cores() -> int:
    """Return the number of cores that this process may use, by its CPU affinity and its cgroup's CPU quota.

    On a cluster or in a container this is often less than the machine has.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def cpu_quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPU quota of this process's cgroups (version 1 or 2) in cores; infinite without a limit.

    cgroups: the mount point. own: the file that lists the cgroups of this process. Limits of parent groups apply too.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2; mounted as "unified" if version 1 is in use too
                mounts = [cgroups, cgroups / "unified"]
            elif "cpu" in controllers.split(","):
                mounts = [cgroups / name for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu"))]
            else:
                continue
            quotas += [_quota(group) for mount in mounts for group in _group_folders(mount, path)]
    return min(quotas)


def _group_folders(mount: Path, path: str) -> list[Path]:
    """List a cgroup's folder and its parents. In a container the mount may be the cgroup itself or one above it."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    inside = next((mount.joinpath(*parts[first:]) for first in range(len(parts) + 1)
                   if mount.joinpath(*parts[first:]).is_dir()), mount)  # fmt: skip
    return [inside, *(parent for parent in inside.parents if parent.is_relative_to(mount))]


def _quota(group: Path) -> float:
    """Return a cgroup's quota in cores: its CPU time per period, divided by the period."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Return the commit of this code, with "-dirty" if files differ from it, or "not in a git checkout"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"


def choose_part(part: int | None, parts: int | None) -> tuple[int, int]:
    """Choose (part, parts): from the flags if given, else from the Slurm array task, else (0, 1)."""
    if (part is None) != (parts is None):
        raise InputError(f"--part={part} --parts={parts}: give both, or neither")
    if part is not None and parts is not None:
        return part, parts
    return array_task() or (0, 1)


def array_task() -> tuple[int, int] | None:
    """Return (part, parts) of this task in its Slurm job array, counted from 0; None outside an array.

    Raises InputError if the array does not determine the part.
    """
    names = ("ID", "MIN", "MAX", "COUNT")
    found = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not found[0]:
        return None
    shown = f"SLURM_ARRAY_TASK_ID={found[0]}"
    if not all(text.isdigit() for text in found):
        raise InputError(f"{shown}: the variables of its array can't be read; give --part and --parts")
    task, low, high, parts = map(int, found)
    if parts == 1 and task > 0:  # a single task of an array, submitted again
        raise InputError(f"{shown}: the only task of its array, so the number of parts is unknown; give --part and "
                         "--parts")
    step = (high - low) // (parts - 1) if parts > 1 else 1
    if low + step * (parts - 1) != high or (task - low) % max(step, 1):
        raise InputError(f"{shown}: {parts} tasks from {low} to {high} are not evenly spaced; give --part and --parts")
    return (task - low) // max(step, 1), parts


def retain_freed_memory() -> None:
    """Make glibc keep the memory that this process frees, and reuse it.

    By default it returns large arrays to the system, which clears their pages again when the next one is allocated.
    That takes a third of a training step's time on a CPU (python -m bench.step), a quarter to two fifths of the time
    to compute features there, and 5 % of the time to make a batch of views (python -m bench.io).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)
