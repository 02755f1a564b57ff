"""Ranks: who they are, what they tell one another, and what becomes of the others when one fails."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from shard.errors import InputError

JOINING = timedelta(minutes=5)  # Python and PyTorch come off a shared disk, on some nodes later than on others
# A rank that ends closes its connections, which the others see at once. These are for one that is there and silent.
SILENT_GPU, SILENT_CPU = timedelta(minutes=10), timedelta(minutes=60)
# How long a rank waits to hear who else is there when another has ended: one may be at a checkpoint meanwhile, so it is
# the longer where more than one is silent.
LAST_WORDS_S, MORE_WORDS_S, HEARD_S = 5.0, 30.0, 1.0
FIRST_PORT, PORTS = 16384, 16384


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run. local: its number on its node, which is its GPU's; host, port: where they
    meet, the first rank's."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world_size: int = 1  # as many share this process's cores
    host: str = ""
    port: int = 0
    # A group of gloo's, for words between the CPUs: a GPU's queue need not be waited for. In a list, out of which it is
    # taken where its connections are to be closed.
    control: list[Any] = field(default_factory=list)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag, true where it is so on any rank."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control[0])
        return [bool(vote) for vote in votes]

    def print(self, text: str) -> None:
        """Print a line on the first rank."""
        if self.first:
            print(text, flush=True)

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on all."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control[0])
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, on all."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control[0])
        return values


def find_ranks() -> Ranks:
    """What torchrun's or srun's variables say of this process; a run of one rank where there are none.

    MASTER_ADDR and MASTER_PORT, where given, go before srun's first node and a port that follows from the job's number.
    Raises InputError where the variables can't be read.
    """
    said = os.environ
    if "RANK" in said and "WORLD_SIZE" in said:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        host, port = "127.0.0.1", 29500
    elif "SLURM_STEP_NUM_TASKS" in said:  # absent in a batch script, which is one process whatever --ntasks
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "MASTER_PORT")
        if not said.get("SLURM_STEP_NODELIST") or not said.get("SLURM_JOB_ID", "").isdigit():
            shown = ", ".join(f"{name}={said.get(name)}" for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_ID"))
            raise InputError(f"{shown}: not what srun sets; start with srun or torchrun")
        host, port = first_host(said["SLURM_STEP_NODELIST"]), FIRST_PORT + int(said["SLURM_JOB_ID"]) * 8 % PORTS
        if not is_known(host):  # its name is Slurm's alone; srun most often runs on the first node itself
            host = said.get("SLURM_LAUNCH_NODE_IPADDR", host)
    else:
        return Ranks()
    try:
        defaults = zip(names, (0, 1, 0, port), strict=True)
        rank, world, local, port = (int(said.get(name, default)) for name, default in defaults)
    except ValueError:
        shown = ", ".join(f"{name}={said.get(name)}" for name in names)
        raise InputError(f"{shown}: not whole numbers; start with torchrun or srun") from None
    if world == 1:
        return Ranks()
    # torchrun leaves a node's cores to all of its ranks; srun gives each its own.
    local_world_size = int(said.get("LOCAL_WORLD_SIZE", "1"))
    return Ranks(rank, world, local, local_world_size, said.get("MASTER_ADDR", host), port)


def first_host(nodes: str) -> str:
    """The first node of a list as Slurm writes it: "gpu[003-010,12],cpu1" → "gpu003"."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def is_known(host: str) -> bool:
    """Whether a host's name leads to an address here."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """This process among its ranks, connected within the block: by NCCL on a GPU, by gloo on a CPU.

    A rank that fails within tells the others why, and they end, each with an InputError that names it.
    """
    ranks = find_ranks()
    if ranks.world == 1:
        yield ranks
        return
    if device == "cuda":
        seen = torch.cuda.device_count()
        if 1 < seen <= ranks.local:
            raise InputError(f"rank {ranks.rank}: local rank {ranks.local} on {socket.gethostname()}, which has {seen} "
                             "GPUs; start one rank a GPU")  # fmt: skip
        torch.cuda.set_device(ranks.local if seen > 1 else 0)  # a task that sees one has been given it
    try:
        if not is_known(ranks.host):  # PyTorch would look for it for minutes
            raise OSError("there is no host of that name")
        store = _meet(ranks)
        backend, silent = ("nccl", SILENT_GPU) if device == "cuda" else ("gloo", SILENT_CPU)
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=silent)
        ranks.control.append(dist.new_group(backend="gloo", timeout=SILENT_CPU))
    except (RuntimeError, OSError) as error:  # DistError is a RuntimeError
        raise InputError(f"rank {ranks.rank}: could not join the {ranks.world} ranks at {ranks.host}:{ranks.port} "
                         f"({_one_line(error)}); did all start, is that port free? MASTER_ADDR "
                         "and MASTER_PORT set others, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME the network") from None
    try:
        dist.barrier(group=ranks.control[0])  # none fails before all are there to be told
        yield ranks
    except Exception as error:
        explained = _explain(error, ranks, PrefixStore("last-words", store))
        if explained is None:
            raise
        raise explained from error
    dist.destroy_process_group()


def _meet(ranks: Ranks) -> Store:
    """The store of the ranks: torchrun's own, or one that the first rank holds."""
    place = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"tcp://{ranks.host}:{ranks.port}"
    store: Store = next(iter(rendezvous(place, ranks.rank, ranks.world, timeout=JOINING)))[0]
    return store


def _explain(error: Exception, ranks: Ranks, store: PrefixStore) -> InputError | None:
    """This rank's failure as it is told to the others, or what another's was; None where a traceback tells more."""
    me = f"rank {ranks.rank} on {socket.gethostname()}"
    if not (isinstance(error, dist.DistError) or re.search(r"gloo|NCCL", str(error))):
        with contextlib.suppress(RuntimeError):  # the store is the first rank's, which may be gone
            store.set("why", f"{me} failed: {_one_line(error)}")
        _let_go(ranks, error)
        if ranks.first:
            time.sleep(LAST_WORDS_S)  # until the others have read it
        return InputError(f"{me}: {error}") if isinstance(error, InputError) else None
    _let_go(ranks, error)
    try:
        if store.check(["why"]):
            why = store.get("why").decode()
            time.sleep(LAST_WORDS_S)  # its error comes out above ours
            return InputError(f"{me}: ends because {why}")
        missing = _silent(ranks, store)
    except RuntimeError:
        missing = ["0"]
    said = f"rank {', '.join(missing)} ended" if missing else f"the connection broke ({_one_line(error)})"
    return InputError(f"{me}: {said} without a word: killed, or its node lost? Run the same command to go on")


def _let_go(ranks: Ranks, error: Exception) -> None:
    """Close the connections: a rank sees no more than its own, and may wait for this one rather than for the dead."""
    ranks.control.clear()
    traceback.clear_frames(error.__traceback__)  # they hold the groups
    dist.destroy_process_group()


def _silent(ranks: Ranks, store: PrefixStore) -> list[str]:
    """The ranks that do not say that they are there, as far as one can wait for it."""
    store.set(f"alive-{ranks.rank}", "")
    begun = time.monotonic()
    while True:
        silent = [str(rank) for rank in range(ranks.world) if not store.check([f"alive-{rank}"])]
        if time.monotonic() > begun + (LAST_WORDS_S if len(silent) <= 1 else MORE_WORDS_S):
            break
        time.sleep(HEARD_S / 5)
    if ranks.first:  # who holds the store leaves last
        time.sleep(HEARD_S)
    return silent


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300] if not isinstance(error, InputError) else str(error)
