"""Out of memory: one line that names the work, the device's memory and what needs less, instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from shard.errors import InputError, OutOfMemory
from train.checkpoint import list_checkpoints
from train.config import Config
from train.large_batch import check_recompute

# In the texts of PyTorch's allocators and, for cuDNN and cuBLAS, of PyTorch issues 108645 and 17774: cuDNN skips the
# algorithms whose workspace does not fit, and then reports that none is left.
PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED", "bad_alloc",
           "unable to find an engine to execute this computation")  # fmt: skip
GB = 1e9
OTHERS_GB = 2.0  # if more is in use outside PyTorch, the message points to nvidia-smi; CUDA itself takes half a GB


@contextlib.contextmanager
def explain_out_of_memory(device: str, work: Callable[[], str], cures: Callable[[], str]) -> Iterator[None]:
    """Raise InputError if memory runs out within the block, on a CPU or a GPU.

    work: what needs the memory, as in "a step of 64 images". cures: what the user may change, as in "use --recompute".
    Both are called after the error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        memory = describe_memory(device)  # before the memory of the failed work is released
        traceback.clear_frames(error.__traceback__)
        raise InputError(f"out of memory: {work()} needs more than {memory}; {cures()}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU.

    Errors of collectives don't count: train.distributed.process_group explains them.
    """
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError, OutOfMemory)):
        return True
    return isinstance(error, RuntimeError) and not isinstance(error, dist.DistError) and any(
        phrase in str(error) for phrase in PHRASES)  # fmt: skip


def describe_memory(device: str) -> str:
    """Describe the memory of a device, "cpu" or "cuda", and who uses it."""
    if device == "cpu":
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"this process may use of the machine's {total / GB:.1f} GB"
    try:
        free, total = torch.cuda.mem_get_info()
        own, name = torch.cuda.memory_reserved(), torch.cuda.get_device_name()
    except RuntimeError:  # the GPU no longer answers
        return "the GPU has"
    others = total - free - own
    hint = ": see nvidia-smi" if others > OTHERS_GB * GB else ""
    return f"the {total / GB:.1f} GB of {name} (PyTorch holds {own / GB:.1f} GB, all else {others / GB:.1f} GB{hint})"


def describe_step(config: Config, world: int) -> str:
    """Describe a training step by what decides its memory."""
    ranks = f" on each of {world} ranks" if world > 1 else ""
    parts = f", {config.micro_batch} at a time," if config.micro_batch else ""
    return f"a step of {config.arch} on {config.batch_size // world} images of {config.size} px{parts}{ranks}"


def step_cures(config: Config, world: int) -> str:
    """Name the flags with which a training step needs less memory, those first that keep its gradient."""
    begun, share = bool(list_checkpoints(config.out)), config.batch_size // world
    cures = ["use --recompute"] if _can_recompute(config) else []
    smaller = [part for part in range(1, config.micro_batch or share) if share % part == 0]
    if smaller:
        cures.append(f"use --micro-batch={smaller[-1]}" + (" with --accept=micro_batch" if begun else ""))
    unit = world * (config.micro_batch or 1)  # what divides the batch
    if (half := config.batch_size // 2 // unit * unit) >= 2:
        cures.append(f"lower --batch-size to {half}" + (" in another --out" if begun else ""))
    return ", or ".join([*cures, "lower --size"])


def _can_recompute(config: Config) -> bool:
    if config.recompute or config.compile:
        return False
    try:
        check_recompute(config.arch, config.size)
    except InputError:  # nothing to recompute in this architecture
        return False
    return True
