"""All ranks end, and say why, if one fails and cannot close its connections; two ranks on one GPU are refused."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shard.errors import InputError
from tests.conftest import DALI, ROOT, Shards, train_here
from tests.test_ranks import start, wait_for_end
from train.distributed.gpu import check_gpus, current_gpu
from train.distributed.ranks import Ranks
from train.distributed.watcher import Watcher

END_S = 90  # a job must end within this time
HOST = socket.gethostname()
Ended = dict[str, list[tuple[int, str, str]]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Exit status, stdout and stderr of both ranks of each case, which run at the same time."""
    out = tmp_path_factory.mktemp("stuck")
    commands = {"stuck": [f"--out={out}"], "killed": [], "healthy": [], "one-gpu": []}
    jobs = {case: start([["tests.failing_rank", case, *flags]] * 2) for case, flags in commands.items()}
    ended = {case: wait_for_end(job, END_S) for case, job in jobs.items()}
    assert (out / "saved").exists(), "a rank was ended while it saved"
    return ended


def test_watcher_ends_a_rank_that_waits_for_a_failed_one(ended: Ended) -> None:
    (status, _, said), (failed_status, _, failed) = ended["stuck"]
    assert (status, failed_status) == (1, 1), ended["stuck"]
    assert said == f"error: rank 0 on {HOST}: ends because rank 1 on {HOST} failed: ValueError: no luck\n"
    assert "Traceback" in failed and failed.endswith("ValueError: no luck\nclosing\n"), failed


def test_watcher_ends_a_rank_when_the_process_that_serves_the_store_is_killed(ended: Ended) -> None:
    (killed_status, _, _), (status, _, said) = ended["killed"]
    assert (killed_status, status) == (-signal.SIGKILL, 1), ended["killed"]
    assert f"error: rank 1 on {HOST}: ends because rank 0 ended without reporting an error: killed, or" in said
    assert "Traceback" not in said


def test_watchers_do_nothing_where_ranks_end_at_different_times(ended: Ended) -> None:
    # PyTorch 2.10 prints a line for each rank that connects.
    assert [(status, said) for status, _, said in ended["healthy"]] == [(0, "")] * 2


def test_watchers_respond_for_their_ranks_and_keep_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.distributed.watcher.POLL_S", 0.05)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
    watchers = [Watcher(Ranks(rank, 3, host=store.host, port=store.port), store) for rank in range(3)]
    assert watchers[0].find_missing() == []
    watchers[1].report("/data/\udce9.tar: one")  # a path that is not UTF-8
    watchers[2].report("two")
    assert [watcher.find_reason() for watcher in watchers] == [r"/data/\udce9.tar: one"] * 3
    for watcher in watchers:
        watcher.stop()


def test_rank_whose_process_ended_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.distributed.watcher.ALIVE_TIMEOUT_S", 2.0)
    monkeypatch.setattr("train.distributed.watcher.POLL_S", 0.05)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
    watchers = [Watcher(Ranks(rank, 3, host=store.host, port=store.port), store) for rank in (0, 2)]
    assert watchers[0].find_missing() == [1]
    for watcher in watchers:
        watcher.stop()


def test_two_ranks_on_one_gpu_are_refused_by_both(ended: Ended) -> None:
    for rank, (status, _, said) in enumerate(ended["one-gpu"]):
        assert status == 1 and said.count("\n") == 1, said
        assert f"error: rank {rank} on {HOST}: ranks 0 and 1 use the same GPU of node1 (GPU-12)" in said


def test_shared_gpus_are_named_with_their_ranks_and_the_cure() -> None:
    own = [("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1"), ("a", "MIG-1"), ("a", "MIG-2")]
    check_gpus(own)
    cure = r"--gres=gpu:N --ntasks-per-node=N .*--gpus-per-task=1.*torchrun --nproc-per-node=N"
    with pytest.raises(InputError, match=rf"ranks 1, 5 and 6 use the same GPU of a \(GPU-2\).*{cure}"):
        check_gpus([*own, ("a", "GPU-2"), ("a", "GPU-2")])


def test_rank_holds_its_lock_while_it_writes_a_checkpoint(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, saving = Ranks(), list[bool]()

    @contextlib.contextmanager
    def init_distributed(device: str) -> Iterator[Ranks]:
        yield ranks

    monkeypatch.setattr("train.loop.init_distributed", init_distributed)
    monkeypatch.setattr("train.checkpointer.save_checkpoint", lambda *content: saving.append(ranks.saving.locked()))
    train_here(shards, tmp_path, limit_steps=1)
    assert saving == [True] and not ranks.saving.locked()


def test_part_of_a_gpu_is_known_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3,MIG-4")
    assert current_gpu() == (HOST, "MIG-3")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_train_refuses_two_ranks_on_one_gpu(shards: Shards, tmp_path: Path) -> None:
    flags = [f"--shards={shards.folder}", f"--out={tmp_path}", DALI, "--device=cuda", "--arch=resnet18", "--size=32"]
    commands = [["train", *flags, "--batch-size=16"]] * (torch.cuda.device_count() + 1)
    for rank, (status, _, said) in enumerate(wait_for_end(start(commands), END_S)):
        assert status == 1 and "Traceback" not in said, said
        assert said.count("use the same GPU of") == 1 and f"error: rank {rank} on {HOST}: ranks 0 and " in said, said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_failed_process_exits_with_a_process_group_of_nccl() -> None:
    """Of one rank, so that one GPU is enough."""
    code = """if True:
        import types, torch, torch.distributed as dist
        from train.distributed.process_group import close_at_exit
        torch.cuda.set_device(0)
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(torch.ones(3, device="cuda"))
        close_at_exit(types.SimpleNamespace(stop=lambda: print("initialised:", dist.is_initialized())))
        raise SystemExit("no luck")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 1 and done.stderr.startswith("no luck\n"), done.stderr
    assert done.stdout == "initialised: False\n", (done.stdout, done.stderr)
