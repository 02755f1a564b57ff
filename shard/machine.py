"""The machine this runs on: cores this process may use, versions of what is installed."""

from __future__ import annotations

import importlib.metadata
import os


def cores() -> int:
    """Cores this process may use, which on a cluster is not how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version_of(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
