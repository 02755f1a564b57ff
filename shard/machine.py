"""The machine this runs on: cores this process may use, its place in a Slurm array, versions and commit of the code."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import subprocess
from pathlib import Path

from shard.errors import InputError


def cores() -> int:
    """Cores this process may use, which on a cluster or in a container is not how many there are: those of its
    affinity, and no more than its cgroup's quota of CPU time is worth."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def cpu_quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """How many cores' time the cgroups of this process allow, of version 1 or 2; infinite where none limits it.

    cgroups: where they are mounted; own: which of them this process is in. The limits of a group's parents hold too.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2; beside version 1 it is mounted as "unified"
                mounts = [cgroups, cgroups / "unified"]
            elif "cpu" in controllers.split(","):
                mounts = [cgroups / name for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu"))]
            else:
                continue
            quotas += [_quota(group) for mount in mounts for group in _groups(mount, path)]
    return min(quotas)


def _groups(mount: Path, path: str) -> list[Path]:
    """A group's folder and those of its parents. A container may see its own group, or one above, as the mount."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    inside = next((mount.joinpath(*parts[first:]) for first in range(len(parts) + 1)
                   if mount.joinpath(*parts[first:]).is_dir()), mount)  # fmt: skip
    return [inside, *(parent for parent in inside.parents if parent.is_relative_to(mount))]


def _quota(group: Path) -> float:
    """Microseconds of CPU time that a group may have in a period, by the period."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf


def version_of(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of this code, "-dirty" after it where files differ; "not in a git checkout" where that is so."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"


def choose_part(part: int | None, parts: int | None) -> tuple[int, int]:
    """(part, parts) as flags say or, where they don't, as this task of a Slurm job array has them; else (0, 1)."""
    if (part is None) != (parts is None):
        raise InputError(f"--part={part} --parts={parts}: give both, or neither")
    if part is not None and parts is not None:
        return part, parts
    return array_task() or (0, 1)


def array_task() -> tuple[int, int] | None:
    """(part, parts) of this task in its Slurm job array, the first part being 0; None outside one.

    Raises InputError where the array leaves open which part this is.
    """
    names = ("ID", "MIN", "MAX", "COUNT")
    found = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not found[0]:
        return None
    shown = f"SLURM_ARRAY_TASK_ID={found[0]}"
    if not all(text.isdigit() for text in found):
        raise InputError(f"{shown}: its array can't be read; give --part and --parts")
    task, low, high, parts = map(int, found)
    if parts == 1 and task > 0:  # one task of an array, submitted again alone
        raise InputError(f"{shown}: the only task of its array, of how many parts? Give --part and --parts")
    step = (high - low) // (parts - 1) if parts > 1 else 1
    if low + step * (parts - 1) != high or (task - low) % max(step, 1):
        raise InputError(f"{shown}: {parts} tasks from {low} to {high} are not evenly spaced; give --part and --parts")
    return (task - low) // max(step, 1), parts
