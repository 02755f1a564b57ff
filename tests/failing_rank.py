"""One rank of test_failing_ranks.py and test_ranks.py, in a separate process: python -m tests.failing_rank COMMAND."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from shard.cache import CacheFlags
from shard.cli import run
from shard.errors import InputError
from train.config import Config
from train.distributed import process_group, watcher
from train.distributed.process_group import init_distributed
from train.distributed.ranks import Ranks, find_ranks


def block_closing(wait: Callable[[], object]) -> None:
    """Make destroy_process_group and the end of the process wait, as with collectives of NCCL that never end."""

    def destroy() -> None:
        print("closing", file=sys.stderr, flush=True)
        wait()

    dist.destroy_process_group = destroy  # type: ignore[assignment]
    atexit.register(wait)  # as the destructors of the groups do


def train(config: Config) -> None:
    """Train as the command of that name does, on a rank that can't close its process groups.

    Rank 1 exits all the same when the time for that is over. Rank 0 has more time, and is ended by its watcher.
    """
    from train.__main__ import train

    process_group.CLOSE_TIMEOUT_S, watcher.GRACE_S = (1.0, 120.0) if find_ranks().rank else (120.0, 2.0)
    block_closing(threading.Event().wait)
    train(config, CacheFlags())


def stuck(out: Path) -> None:
    """Fail on rank 1, whose connections stay open as long as rank 0 lives, which waits for it and saves meanwhile."""
    watcher.GRACE_S = 1.0
    with init_distributed("cpu") as ranks:
        first = ranks.all_gather(os.getpid())[0]
        if ranks.first:
            threading.Thread(target=save, args=(ranks, out / "saved"), daemon=True).start()
            store = distributed_c10d._get_default_store()  # occupied, as by the start of NCCL
            threading.Thread(target=store.get, args=("never",), daemon=True).start()
        else:
            watcher.GRACE_S = process_group.CLOSE_TIMEOUT_S = 120.0
            block_closing(lambda: wait_for_end_of(first))
            raise ValueError("no luck")
        ranks.any_of([True])


def killed() -> None:
    """Kill rank 0, which serves the store, while rank 1 waits for it as in a collective of NCCL."""
    watcher.GRACE_S = 1.0
    with init_distributed("cpu") as ranks:
        if ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


def save(ranks: Ranks, file: Path) -> None:
    """Write a file like a checkpoint, for longer than the time that a rank has to end by itself."""
    with ranks.saving:
        time.sleep(watcher.GRACE_S + 3 * watcher.POLL_S)
        file.touch()


def wait_for_end_of(process: int) -> None:
    """Wait until a process has ended."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            time.sleep(0.1)


def healthy() -> None:
    """End on rank 1 some seconds after rank 0, with no time for ranks to end."""
    watcher.GRACE_S = 0.0
    with init_distributed("cpu") as ranks:
        ranks.any_of([True])
        if not ranks.first:
            time.sleep(5 * watcher.POLL_S)  # longer than the first rank waits for watchers


def one_gpu() -> None:
    """Begin on ranks that see the same GPU. Gloo stands in for NCCL, which needs one."""
    init: Any = dist.init_process_group
    dist.init_process_group = lambda backend, **options: init("gloo", **options)  # type: ignore[assignment]
    torch.cuda.device_count, torch.cuda.set_device = lambda: 1, lambda device: None
    process_group.current_gpu = lambda: ("node1", "GPU-12")
    with init_distributed("cuda"):
        raise InputError("the ranks began")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {"train": train, "stuck": stuck, "killed": killed, "healthy": healthy, "one-gpu": one_gpu}
    run("python -m tests.failing_rank", cases)
