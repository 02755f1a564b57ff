"""What a figure was measured on: hardware, versions, commit."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import torchvision

from shard.machine import commit, cores, version_of


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

