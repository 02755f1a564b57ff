"""Connect the ranks of a run; if one fails, tell the others why, so that all end."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from shard.errors import InputError
from train.distributed.ranks import Ranks, find_ranks, resolves

JOIN_TIMEOUT = timedelta(minutes=5)  # nodes load Python and PyTorch from a shared disk at different speeds
# The connections of a rank that ends close, and the others notice at once. These are for a rank that hangs.
GPU_TIMEOUT, CPU_TIMEOUT = timedelta(minutes=10), timedelta(minutes=60)
ERROR_GRACE_S = 5.0  # for the other ranks to read the error, or to print theirs first
# How long to wait for the other ranks to respond after a connection broke. Several missing ranks are more likely
# busy, at a checkpoint for instance, than dead.
ALIVE_TIMEOUT_S, SEVERAL_ALIVE_TIMEOUT_S = 5.0, 30.0
STORE_GRACE_S = 1.0  # how much longer the first rank, which serves the store, stays


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """Connect this process with the other ranks within the block: by NCCL on a GPU, by gloo on a CPU.

    If a rank fails within the block, all ranks end with an InputError that names that rank and its error.
    """
    ranks = find_ranks()
    if ranks.world == 1:
        yield ranks
        return
    if device == "cuda":
        _set_gpu(ranks)
    store = _join(ranks, device)
    try:
        dist.barrier(group=ranks.control_group)  # a rank that failed before all have joined could not tell them
        yield ranks
    except Exception as error:
        explained = _explain_failure(error, ranks, PrefixStore("failure", store))
        if explained is None:
            raise
        raise explained from error
    dist.destroy_process_group()


def _set_gpu(ranks: Ranks) -> None:
    gpus = torch.cuda.device_count()
    if 1 < gpus <= ranks.local_rank:
        raise InputError(f"rank {ranks.rank}: local rank {ranks.local_rank} on {socket.gethostname()}, which has "
                         f"{gpus} GPUs; start one rank per GPU")  # fmt: skip
    torch.cuda.set_device(ranks.local_rank if gpus > 1 else 0)  # a task that sees a single GPU was assigned that one


def _join(ranks: Ranks, device: str) -> Store:
    """Create the process groups of all ranks and return their store, which the first rank serves, or torchrun."""
    address = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"tcp://{ranks.host}:{ranks.port}"
    backend, timeout = ("nccl", GPU_TIMEOUT) if device == "cuda" else ("gloo", CPU_TIMEOUT)
    try:
        if not resolves(ranks.host):  # PyTorch would retry for minutes
            raise OSError("there is no host of that name")
        store: Store = next(iter(rendezvous(address, ranks.rank, ranks.world, timeout=JOIN_TIMEOUT)))[0]
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
        ranks.control_group = dist.new_group(backend="gloo", timeout=CPU_TIMEOUT)
    except (RuntimeError, OSError) as error:  # DistError is a RuntimeError
        raise InputError(f"rank {ranks.rank}: could not join the {ranks.world} ranks at {ranks.host}:{ranks.port} "
                         f"({_one_line(error)}); check that all ranks started and that the port is free: MASTER_ADDR "
                         "and MASTER_PORT set another, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME the network") from None
    return store


def _explain_failure(error: Exception, ranks: Ranks, store: PrefixStore) -> InputError | None:
    """Return the InputError to end this rank with, or None if the traceback of `error` shows more."""
    name = f"rank {ranks.rank} on {socket.gethostname()}"
    if isinstance(error, dist.DistError) or re.search(r"gloo|NCCL", str(error)):
        return InputError(f"{name}: {_explain_lost_connection(error, ranks, store)}")
    with contextlib.suppress(RuntimeError):  # the first rank may have ended, and its store with it
        store.set("reason", f"{name} failed: {_one_line(error)}")
    _close_connections(ranks, error)
    if ranks.first:
        time.sleep(ERROR_GRACE_S)
    return InputError(f"{name}: {error}") if isinstance(error, InputError) else None


def _explain_lost_connection(error: Exception, ranks: Ranks, store: PrefixStore) -> str:
    """Explain, after the connection to the other ranks broke, which of them failed and why."""
    _close_connections(ranks, error)
    try:
        if store.check(["reason"]):
            reason = store.get("reason").decode()
            time.sleep(ERROR_GRACE_S)
            return f"ends because {reason}"
        missing = _find_missing(ranks, store)
    except RuntimeError:  # the store is gone
        missing = ["0"]
    cause = f"rank {', '.join(missing)} ended" if missing else f"the connection broke ({_one_line(error)})"
    return f"{cause} without reporting an error: killed, or its node failed; run the same command to resume"


def _close_connections(ranks: Ranks, error: Exception) -> None:
    """Close this rank's connections, since the other ranks may be waiting for it rather than for the failed one."""
    ranks.control_group = None
    traceback.clear_frames(error.__traceback__)  # frames hold references to the groups
    dist.destroy_process_group()


def _find_missing(ranks: Ranks, store: PrefixStore) -> list[str]:
    """Return the ranks that do not respond in time."""
    store.set(f"alive-{ranks.rank}", "")
    start = time.monotonic()
    while True:
        missing = [str(rank) for rank in range(ranks.world) if not store.check([f"alive-{rank}"])]
        if time.monotonic() > start + (ALIVE_TIMEOUT_S if len(missing) <= 1 else SEVERAL_ALIVE_TIMEOUT_S):
            break
        time.sleep(0.2)
    if ranks.first:
        time.sleep(STORE_GRACE_S)
    return missing


def _one_line(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}".splitlines()[0][:300]
