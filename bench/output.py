"""Output shared by all benchmarks: statistics over rounds, and a JSON file that records the machine."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import commit, cores, cpu_name, version_of
from shard.plain_json import without_nan

CHEXPERT_IMAGES = 224_316


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, lowest and highest value over rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def prepare_output_path(path: Path) -> None:
    """Create the parent folder of an output file before anything is measured.

    Raises InputError if no file can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a file in another folder") from None


def write_results(path: Path, content: dict[str, Any], **versions: str) -> None:
    """Print the machine, and write it with `content` as JSON to `path`.

    versions: those of other libraries that this benchmark depends on.
    """
    machine = save_results(path, content, **versions)
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{path} written")


def save_results(path: Path, content: dict[str, Any], **versions: str) -> dict[str, str | int]:
    """Write the machine and `content` as JSON to `path`, and return the machine.

    A benchmark calls this after each measurement, so that what was measured survives if it is stopped.
    """
    machine = {**describe_machine(), **versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, to_json({"machine": machine, **content}))
    return machine


def to_json(content: Any) -> bytes:
    """Encode indented JSON, with null for NaN."""
    return (json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n").encode()


def describe_machine() -> dict[str, str | int]:
    """Return the processor, the cores available to this process, the GPU, versions and the commit of the code."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version_of("torchvision"),
        "dali": version_of("nvidia-dali-cuda120"),
        "commit": commit(),
    }
