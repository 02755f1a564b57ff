"""Ranks: the processes of a run, found in the environment that torchrun or srun sets."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from shard.errors import InputError

FIRST_PORT, PORTS = 16384, 16384  # srun sets no port, so it is derived from the job id


@dataclass
class Ranks:
    """This process among the processes of its run, and how to reach the others.

    local_rank: its number on its node, which selects the GPU. local_world_size: processes that share its cores.
    host, port: where the first rank listens. control_group: a gloo group for messages between CPUs, which do not wait
    for the GPU's queue; None for a run of one process. saving: held while this rank writes a checkpoint.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    host: str = ""
    port: int = 0
    control_group: Any = None
    saving: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def name(self) -> str:
        """How messages name this rank."""
        return f"rank {self.rank} on {socket.gethostname()}"

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return, for each flag, whether it is true on any rank."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control_group)
        return [bool(vote) for vote in votes]

    def print(self, text: str) -> None:
        """Print a line on the first rank only."""
        if self.first:
            print(text, flush=True)

    def broadcast(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control_group)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on every rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control_group)
        return values


def find_ranks() -> Ranks:
    """Read the ranks from torchrun's or srun's environment variables; without them the run has one rank.

    MASTER_ADDR and MASTER_PORT override srun's first node and the port derived from the job id. Raises InputError
    if a variable cannot be read.
    """
    variables = os.environ
    if "RANK" in variables and "WORLD_SIZE" in variables:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        host, port = "127.0.0.1", 29500
    elif "SLURM_STEP_NUM_TASKS" in variables:  # absent in a batch script, which is one process whatever --ntasks
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "MASTER_PORT")
        host, port = _slurm_address()
    else:
        return Ranks()
    try:
        defaults = zip(names, (0, 1, 0, port), strict=True)
        rank, world, local_rank, port = (int(variables.get(name, default)) for name, default in defaults)
    except ValueError:
        raise InputError(f"{_shown(names)}: not whole numbers; start with torchrun or srun") from None
    if world == 1:
        return Ranks()
    # torchrun leaves a node's cores to all of its ranks; srun gives each rank its own.
    local_world_size = int(variables.get("LOCAL_WORLD_SIZE", "1"))
    return Ranks(rank, world, local_rank, local_world_size, variables.get("MASTER_ADDR", host), port)


def _slurm_address() -> tuple[str, int]:
    """Return the first node's name or address, and a port derived from the job id."""
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), os.environ.get("SLURM_JOB_ID", "")
    if not nodes or not job.isdigit():
        raise InputError(f"{_shown(('SLURM_STEP_NODELIST', 'SLURM_JOB_ID'))}: not what srun sets; start with srun or "
                         "torchrun")  # fmt: skip
    host = first_host(nodes)
    if not resolves(host):  # a name that only Slurm knows; srun most often runs on the first node itself
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host, FIRST_PORT + int(job) * 8 % PORTS


def _shown(names: Sequence[str]) -> str:
    return ", ".join(f"{name}={os.environ.get(name)}" for name in names)


def first_host(nodes: str) -> str:
    """Return the first node of a Slurm node list: "gpu[003-010,12],cpu1" → "gpu003"."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def resolves(host: str) -> bool:
    """Return whether a host name resolves to an address on this machine."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False
