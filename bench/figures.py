"""Figures as every bench keeps them: spread over rounds, and a JSON file that says what they were measured on."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import commit, cores, version_of
from shard.plain_json import without_nan

ARCHIVE = 224_316  # CheXpert's images


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of what some rounds gave, the lowest and the highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def make_place(path: Path) -> None:
    """Make the folder of a file that a bench will write. Raises InputError, before anything is measured, where no file
    can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a file in another folder") from None


def write_figures(path: Path, content: dict[str, Any], **beside: str) -> None:
    """Print the machine, and write it and `content` as JSON to `path`; beside: versions that count for this bench."""
    machine = {**describe_machine(), **beside}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = without_nan({"machine": machine, **content})
    write_bytes(path, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
    print(f"{path} written")


def describe_machine() -> dict[str, str | int]:
    """Processor, cores this process may use, GPU, versions and the commit of the code."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dali": version_of("nvidia-dali-cuda120"),
        "commit": commit(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

