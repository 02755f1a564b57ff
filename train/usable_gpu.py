"""Whether PyTorch can use the GPU that this process was given and, if not, why and what to do."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import warnings
from pathlib import Path

import torch

DEVICES = Path("/dev")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
# The oldest driver for each major version of CUDA: docs.nvidia.com/deploy/cuda-compatibility, table 1
NEEDED_DRIVER = {12: 525, 13: 580}
OLDER_CAPABILITY = (7, 0)  # the lowest of the PyTorch in constraints-cuda12.txt
OLDER_PYTORCH = "PyTorch for CUDA 12 (pip install -c constraints-cuda12.txt; docs/cluster.md)"


def sees_gpu() -> bool:
    """Return whether PyTorch finds a GPU. Unlike torch.cuda.is_available, it prints no warning if it can't use one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def given_gpu() -> str:
    """Return what shows that this process was given a GPU, such as SLURM_JOB_GPUS=0; "" if it has none.

    CUDA_VISIBLE_DEVICES= hides all GPUs. /dev/nvidia0 counts only if this process may open it: a job without a GPU
    can't on a node where Slurm constrains devices.
    """
    if _are_hidden():
        return ""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    files = sorted(DEVICES.glob("nvidia[0-9]*"))
    return next((str(file) for file in files if os.access(file, os.R_OK | os.W_OK)), "")


def explain_missing_gpu() -> str:
    """Explain in one line why PyTorch finds no GPU: its own words, the driver, its wheel, and the cure."""
    reason, driver, cuda = _reason_of_pytorch(), driver_version(), torch.version.cuda
    return (f"{reason}; NVIDIA's driver here is {driver or 'missing'}, PyTorch {torch.__version__} is "
            f"{_describe_wheel(cuda)}; {_cure(reason, driver, cuda)}")  # fmt: skip


def explain_missing_kernels() -> str:
    """Explain in one line why PyTorch can't compute on the current GPU: it was not compiled for it. "" if it was."""
    architectures = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not architectures:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of the same in a dozen lines
        device = torch.cuda.current_device()
        capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    if any(_runs_on(architecture, capability) for architecture in architectures):
        return ""
    built = sorted({divmod(int(digits), 10) for digits in re.findall(r"_(\d+)", " ".join(architectures))})
    if capability > built[0]:
        cure = "install a newer PyTorch"
    elif capability >= OLDER_CAPABILITY and built[0] > OLDER_CAPABILITY:
        cure = f"install {OLDER_PYTORCH}"
    else:
        cure = f"use a GPU of compute capability {_dotted(built[0])} or higher"
    return (f"{name} has compute capability {_dotted(capability)}, and PyTorch {torch.__version__} has kernels for "
            f"{', '.join(map(_dotted, built))} only; {cure}")  # fmt: skip


def driver_version() -> str:
    """Return the version of NVIDIA's driver, such as 550.54.15; "" if none is loaded."""
    text = ""
    with contextlib.suppress(OSError):
        text = DRIVER_FILE.read_text().partition("Module")[2]  # NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54
    if not text:  # as in Windows' subsystem for Linux
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    found = re.search(r"(?<!\S)\d+(\.\d+)+", text)
    return found[0] if found else ""


def _reason_of_pytorch() -> str:
    """Return the first sentence of PyTorch's error."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        return re.split(r"\. |\n", f"{error} ".lstrip())[0].strip().rstrip(".")
    return "no GPU is visible"


def _are_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs: it is empty, -1, none, void or, in Slurm, NoDevFiles.

    Any other value was meant to name a GPU, even if CUDA can't read it, such as cuda:0.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and re.match(r"\s*($|-|(none|void|nodevfiles)\b)", visible, re.IGNORECASE) is not None


def _describe_wheel(cuda: str | None) -> str:
    if cuda is None:
        return "a build without CUDA"
    needed = NEEDED_DRIVER.get(int(cuda.split(".")[0]))
    return f"for CUDA {cuda}" + (f", which needs driver {needed} or newer" if needed else "")


def _cure(reason: str, driver: str, cuda: str | None) -> str:
    if cuda is None:
        return "install a wheel with CUDA (docs/cluster.md)"
    if _are_hidden():
        return "unset CUDA_VISIBLE_DEVICES, which hides all GPUs"
    if not driver or "no NVIDIA driver" in reason:  # a container may show the host's /proc without its libraries
        return "load the driver, or let the container see it (apptainer exec --nv, docker run --gpus=all)"
    major, release = int(cuda.split(".")[0]), int(driver.split(".")[0])
    needed = NEEDED_DRIVER.get(major, 0)
    if release >= needed:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        named = f" as CUDA_VISIBLE_DEVICES={visible} names it" if visible else ""
        return f"check that nvidia-smi lists one{named}, and that the job asks for one (--gres=gpu:1)"
    older = f", or {OLDER_PYTORCH}" if major > 12 and release >= NEEDED_DRIVER[12] else ""
    return f"install driver {needed}{older}"


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs code compiled for an architecture such as sm_80, or compute_80, which is compiled further."""
    found = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", architecture)
    if not found:
        return True  # an unknown kind
    built = divmod(int(found[2]), 10)
    if found[3] == "a":  # for this capability alone
        return built == capability
    return built <= capability and (found[1] == "compute" or built[0] == capability[0])


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
