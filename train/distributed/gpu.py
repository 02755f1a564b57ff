"""The GPU of each rank: chosen by its number on its node, and not shared with another rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import torch

from shard.errors import InputError
from train.distributed.ranks import Ranks


def set_gpu(ranks: Ranks) -> None:
    """Make this rank's GPU the current one: the only one it sees, or the one of its number on its node."""
    torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())


def current_gpu() -> tuple[str, str]:
    """Return this node's name and the UUID of the current GPU, or of the part of a GPU (MIG)."""
    part = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    if part.startswith("MIG-"):  # CUDA shows a process one part, and some versions give it the UUID of the whole GPU
        return socket.gethostname(), part
    return socket.gethostname(), str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def check_gpus(gpus: Sequence[tuple[str, str]]) -> None:
    """Raise InputError if two ranks have the same GPU. NCCL's own error would only say "invalid usage".

    gpus: what current_gpu returns on each rank. Parts of one GPU (MIG) have UUIDs of their own; whether NCCL takes
    several of them depends on its version.
    """
    for host, uuid in dict.fromkeys(gpus):
        ranks = [str(rank) for rank, gpu in enumerate(gpus) if gpu == (host, uuid)]
        if len(ranks) > 1:
            raise InputError(f"ranks {', '.join(ranks[:-1])} and {ranks[-1]} use the same GPU of {host} ({uuid}), but "
                             "each needs one of its own: start as many ranks per node as it gives the job GPUs N, "
                             "with srun --gres=gpu:N --ntasks-per-node=N (or --gpus-per-task=1), or with torchrun "
                             "--nproc-per-node=N")  # fmt: skip
