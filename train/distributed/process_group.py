"""Connect the ranks of a run; if one fails, tell the others why, so that all end."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from shard.errors import InputError
from train.distributed.gpu import check_gpus, current_gpu, set_gpu
from train.distributed.ranks import Ranks, find_ranks, resolves
from train.distributed.watcher import ENDED, Watcher

JOIN_TIMEOUT = timedelta(minutes=5)  # nodes load Python and PyTorch from a shared disk at different speeds
# For a rank that hangs: the connections of a rank that ends close, and a rank that fails reports it in the store. When
# NCCL's time is over, PyTorch aborts the process (TORCH_NCCL_ASYNC_ERROR_HANDLING, set by default). Ten minutes are
# enough, since NCCL runs only the collectives within a step; ranks wait for anything longer, such as a checkpoint, by
# gloo.
GPU_TIMEOUT, CPU_TIMEOUT = timedelta(minutes=10), timedelta(minutes=60)
CLOSE_TIMEOUT_S = 5.0  # for a rank to close its process groups after a failure


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """Connect this process with the other ranks within the block: by NCCL on a GPU, by gloo on a CPU.

    If a rank fails within the block, all ranks end with an InputError that names that rank and its error. The process
    of a rank that failed must end then: its process groups are closed when it exits, after the error was printed.
    """
    ranks = find_ranks()
    if ranks.world == 1:
        yield ranks
        return
    if device == "cuda":
        set_gpu(ranks)
    watcher = _join(ranks, device)
    try:
        if device == "cuda":
            check_gpus(ranks.all_gather(current_gpu()))
        dist.barrier(group=ranks.control_group)  # a rank that failed before all have joined could not tell them
        yield ranks
        dist.destroy_process_group()  # while the watcher runs, since NCCL waits for the other ranks here
    except (Exception, KeyboardInterrupt) as error:
        close_at_exit(watcher)
        explained = _explain_failure(error, ranks, watcher)
        if explained is None:
            raise
        raise explained from error
    watcher.stop()


def _join(ranks: Ranks, device: str) -> Watcher:
    """Create the process groups of all ranks, and watch their store, which the first rank serves, or torchrun."""
    address = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"tcp://{ranks.host}:{ranks.port}"
    backend, timeout = ("nccl", GPU_TIMEOUT) if device == "cuda" else ("gloo", CPU_TIMEOUT)
    try:
        if not resolves(ranks.host):  # PyTorch would retry for minutes
            raise OSError("there is no host of that name")
        store = next(iter(rendezvous(address, ranks.rank, ranks.world, timeout=JOIN_TIMEOUT)))[0]
        # Without device_id, which would start NCCL here: the GPUs are compared first. The current device is enough for
        # collectives of tensors, and barriers and objects go by gloo.
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
        ranks.control_group = dist.new_group(backend="gloo", timeout=CPU_TIMEOUT)
        return Watcher(ranks, store)
    except (RuntimeError, OSError) as error:  # DistError is a RuntimeError
        raise InputError(f"rank {ranks.rank}: could not join the {ranks.world} ranks at {ranks.host}:{ranks.port} "
                         f"({_one_line(error)}); check that all ranks started and that the port is free: MASTER_ADDR "
                         "and MASTER_PORT set another, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME the network") from None


def _explain_failure(error: BaseException, ranks: Ranks, watcher: Watcher) -> InputError | None:
    """Return the InputError to end this rank with, or None if the traceback of `error` shows more."""
    if isinstance(error, InputError):
        watcher.report(f"{ranks.name} failed: {error}")
        return InputError(f"{ranks.name}: {error}")
    if isinstance(error, dist.DistError) or re.search(r"gloo|NCCL", str(error)):
        return InputError(f"{ranks.name}: {_explain_lost_connection(error, watcher)}")
    watcher.report(f"{ranks.name} failed: {_one_line(error)}")
    return None


def _explain_lost_connection(error: BaseException, watcher: Watcher) -> str:
    """Explain, after the connection to the other ranks broke, which of them failed and why."""
    missing = [] if watcher.find_reason() else watcher.find_missing()
    if watcher.reason:
        watcher.explained = True
        return f"ends because {watcher.reason}"
    named = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    cause = (f"{named} {ENDED}" if missing else
             f"the connection broke ({_one_line(error)}); run the same command to resume")  # fmt: skip
    watcher.report(cause)
    return cause


def close_at_exit(watcher: Watcher) -> None:
    """Have the process groups closed when this process exits after a failure; it exits even if closing them hangs.

    By then its error is printed: closing may wait for a collective that never ends, or crash.
    """
    exiting, closed = threading.Event(), threading.Event()

    def close_when_exiting() -> None:
        exiting.wait()
        with contextlib.suppress(Exception):
            _close_process_groups()
            closed.set()

    closing = threading.Thread(target=close_when_exiting, daemon=True)
    closing.start()  # now, since Python >= 3.12 starts no threads when it exits

    def exit_in_time() -> None:
        exiting.set()
        closing.join(CLOSE_TIMEOUT_S)
        watcher.stop()
        if not closed.is_set():  # the destructors of the groups would hang as well
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed
                    stream.flush()
            os._exit(1)

    atexit.register(exit_in_time)


def _close_process_groups() -> None:
    """Destroy the process groups; abort NCCL's collectives first, which may never end.

    Since PyTorch 2.6, destroy_process_group waits for them, and after a failure "a hang is expected"
    (https://github.com/pytorch/pytorch/pull/141510).
    """
    if dist.get_backend() == "nccl":
        world = dist.group.WORLD
        assert world is not None
        world._get_backend(torch.device("cuda")).abort()
    dist.destroy_process_group()


def _one_line(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    lines = f"{type(error).__name__}: {error}".partition("Exception raised from")[0].splitlines()
    # NCCL states the cause on the last of several lines.
    return " ".join(lines if isinstance(error, dist.DistError) else lines[:1])[:600].rstrip(": ")
