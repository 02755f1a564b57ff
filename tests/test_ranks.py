"""Several ranks equal one process on the joint batch, and all end if one fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.errors import InputError
from tests.conftest import DALI, ROOT, SMALL, Shards, newest
from tests.one_rank import CASES, IMAGES, LONG_CASES, PATIENTS, joint_batch, take_step
from train.distributed.process_group import JOIN_TIMEOUT
from train.distributed.ranks import Ranks, find_ranks, first_host
from train.fingerprint import check_ranks
from train.journal import METRICS, SPEED, read_journal

END_S = 60  # a job must end within this time after a rank was killed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(commands: list[list[str]], *, slurm: bool = False, host: str = "127.0.0.1") -> list[subprocess.Popen[str]]:
    """Start a process per command, with the variables that torchrun or srun sets."""
    shared = {"MASTER_ADDR": host, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank, command in enumerate(commands):
        own = {"RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_RANK": rank}
        if slurm:
            own = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": len(commands), "SLURM_LOCALID": rank,
                   "SLURM_STEP_NODELIST": "node[1-3]", "SLURM_JOB_ID": 7}  # fmt: skip
        environment = {**os.environ, **shared, **{name: str(value) for name, value in own.items()}}
        processes.append(subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    return processes


def wait_for_end(processes: list[subprocess.Popen[str]], seconds: float = 200) -> list[tuple[int, str, str]]:
    """Return exit status, stdout and stderr of each process."""
    until = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=max(1, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def steps(request: pytest.FixtureRequest, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The results of 2 or 3 ranks, each on its part of the joint batch."""
    return run_ranks(shards, tmp_path_factory.mktemp("ranks"), request.param)


def run_ranks(shards: Shards, out: Path, world: int, *cases: str) -> list[Any]:
    ended = wait_for_end(start([["tests.one_rank", str(shards.folder), str(out), *cases]] * world))
    assert [status for status, _, _ in ended] == [0] * world, ended
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_step_equals_one_process_on_the_joint_batch(steps: list[Any], shards: Shards, case: str) -> None:
    assert_equal_to_one_process(steps, shards, case)


def assert_equal_to_one_process(steps: list[Any], shards: Shards, case: str) -> None:
    """Compare the loss, gradients, weights and embeddings of ranks after a step with one process on their images."""
    world, views, patients = len(steps), joint_batch(), PATIENTS
    micro_batch = (CASES | LONG_CASES)[case][0].get("micro_batch", 0)
    if micro_batch:  # BatchNorm sees a micro-batch of each rank
        share = IMAGES // world
        order = [rank * share + first + k for first in range(0, share, micro_batch) for rank in range(world)
                 for k in range(micro_batch)]  # fmt: skip
        views, patients = views[:, order], PATIENTS[order]
    expected = take_step(shards.folder, case, Ranks(), views, patients, micro_batch * world)
    for rank in steps:
        found = rank[case]
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
        for name, gradient in expected["gradients"].items():
            # Of a bias before another BatchNorm the gradient is 0, but for rounding.
            assert (found["gradients"][name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-13, name
        for name, value in expected["model"].items():
            assert torch.allclose(found["model"][name], value, rtol=1e-6, atol=1e-9), name
            assert torch.equal(found["model"][name], steps[0][case]["model"][name]), name
    if not micro_batch:
        together = torch.cat([rank[case]["z"] for rank in steps], dim=1)
        assert torch.allclose(together, expected["z"], rtol=1e-6, atol=1e-9)


@pytest.mark.long
def test_two_ranks_equal_one_with_models_of_timm(shards: Shards, tmp_path: Path) -> None:
    """densenet121 and efficientnet_b0: BatchNorm with an activation, over both ranks."""
    ranks = run_ranks(shards, tmp_path, 2, *LONG_CASES)
    for case in LONG_CASES:
        assert_equal_to_one_process(ranks, shards, case)


def test_micro_batches_use_the_patients(shards: Shards) -> None:
    """One micro-batch of the size of the batch, so that BatchNorm sees the same images."""
    whole = take_step(shards.folder, "masked", Ranks(), joint_batch(), PATIENTS)
    parts = take_step(shards.folder, "masked by micro-batches", Ranks(), joint_batch(), PATIENTS, IMAGES)
    assert float(parts["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-9)
    for name, gradient in whole["gradients"].items():
        assert (parts["gradients"][name] - gradient).norm() <= 1e-9 * gradient.norm(), name


def wait_for_step(processes: list[subprocess.Popen[str]], run: Path, step: int) -> None:
    while not any(line["step"] >= step for line in read_journal(run, SPEED) if line["kind"] == "step"):
        assert all(process.poll() is None for process in processes), wait_for_end(processes)
        time.sleep(0.02)


@pytest.mark.long
def test_three_ranks_resume_exactly_after_a_stop_and_a_kill(shards: Shards, tmp_path: Path, trained: Path) -> None:
    """torchrun starts the uninterrupted run, srun's variables the other: one rank is stopped, then one killed."""
    flags = [f"--shards={shards.folder}", DALI, "--epochs=2", "--batch-size=15", "--workers=1", "--log-every=1",
             "--checkpoint-minutes=0.02", "--device=cpu", "--arch=resnet18", "--size=32",
             "--precision=fp32"]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", f"--master-port={free_port()}"]
    whole = subprocess.run([*torchrun, "-m", "train", *flags, f"--out={tmp_path / 'whole'}"], cwd=ROOT, text=True,
                           capture_output=True, timeout=200)  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    parts = ["train", *flags, f"--out={tmp_path / 'parts'}"]

    ranks = start([parts] * 3, slurm=True)
    wait_for_step(ranks, tmp_path / "parts", 2)
    ranks[1].send_signal(signal.SIGUSR1)
    ended = wait_for_end(ranks)
    assert [status for status, _, _ in ended] == [75, 0, 0], ended
    assert "as requested by another rank; the same command resumes" in ended[0][1]
    stopped_at = newest(tmp_path / "parts")["step"]

    killed = start([parts] * 3, slurm=True)
    wait_for_step(killed, tmp_path / "parts", stopped_at + 2)
    killed[2].kill()
    begun = time.monotonic()
    ended = wait_for_end(killed)
    assert time.monotonic() - begun < END_S
    assert [status for status, _, _ in ended] == [1, 1, -signal.SIGKILL], ended
    for _, _, complaint in ended[:2]:
        assert "rank 2 ended without reporting an error" in complaint and "Traceback" not in complaint, complaint

    ended = wait_for_end(start([parts] * 3, slurm=True))
    assert [status for status, _, _ in ended] == [0] * 3 and "resuming from" in ended[0][1], ended
    one, other = (newest(tmp_path / name) for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 12
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert (tmp_path / "whole" / METRICS).read_bytes() == (tmp_path / "parts" / METRICS).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("bad", "command"), [(0, ["train"]), (1, ["tests.failing_rank", "train"])])
def test_failing_rank_reports_its_error_to_the_others(
    shards: Shards, tmp_path: Path, bad: int, command: list[str]
) -> None:
    """One rank reads truncated shards. In the second case no rank can close its process groups."""
    shutil.copytree(shards.folder, tmp_path / "damaged")
    tar = tmp_path / "damaged" / shards.manifest.of_split("train")[0].tar
    tar.write_bytes(tar.read_bytes()[:-512])
    flags = [f"--out={tmp_path / 'run'}", *SMALL, "--workers=1"]
    folders = [shards.folder, shards.folder]
    folders[bad] = tmp_path / "damaged"
    ended = wait_for_end(start([[*command, f"--shards={folder}", *flags] for folder in folders]))
    assert [status for status, _, _ in ended] == [1, 1], ended
    me = f"rank {bad} on {socket.gethostname()}"
    expected = [f"error: rank {1 - bad} on {socket.gethostname()}: ends because {me} failed: {tar}"] * 2
    expected[bad] = f"error: {me}: {tar}"
    for (_, _, said), line in zip(ended, expected, strict=True):
        assert said.count(line) == said.count("error: ") == 1 and "Traceback" not in said, said
        # The line is complete before the process groups are closed.
        assert command == ["train"] or said.index("\n", said.index(line)) < said.index("closing"), said


def test_rank_with_other_settings_is_refused() -> None:
    with pytest.raises(InputError, match=r"rank 1: temperature is 0\.1, but the first rank's is 0\.5; give all ranks"):
        check_ranks([{"temperature": 0.5, "threads": 1}, {"temperature": 0.1, "threads": 2}])
    check_ranks([{"temperature": 0.5, "threads": 1}, {"temperature": 0.5, "threads": 2}])


@pytest.mark.long
def test_unknown_host_fails_at_once(shards: Shards, tmp_path: Path) -> None:
    begun = time.monotonic()
    command = ["train", f"--shards={shards.folder}", f"--out={tmp_path}", *SMALL]
    ended = wait_for_end(start([command] * 2, host="no-such-host.invalid"))
    assert time.monotonic() - begun < JOIN_TIMEOUT.total_seconds()
    for status, _, complaint in ended:
        assert status == 1 and "could not join the 2 ranks at no-such-host.invalid" in complaint


def test_averaged_loss_does_not_keep_gradients_in_memory(steps: list[Any]) -> None:
    """The loss is kept until it is logged; a view would keep the buffer of all gradients."""
    assert all(rank["synchronised"]["loss_bytes"] <= 8 for rank in steps)


def test_find_ranks_reads_torchrun_and_srun_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script with --ntasks=4 is one process
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert find_ranks() == Ranks()
    for name, value in (("STEP_NUM_TASKS", "4"), ("PROCID", "3"), ("LOCALID", "1"), ("JOB_ID", "12"),
                        ("STEP_NODELIST", "gpu[003-004]")):  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("train.distributed.ranks.resolves", lambda host: host == "gpu003")
    assert find_ranks() == Ranks(3, 4, 1, 1, "gpu003", 16384 + 12 * 8)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")  # for a host name that only Slurm knows
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    assert find_ranks().host == "10.0.0.7"
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    monkeypatch.setenv("MASTER_PORT", "99")
    assert find_ranks() == Ranks(3, 4, 1, 1, "elsewhere", 99)
    # torchrun within a Slurm job
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert find_ranks() == Ranks(1, 2, 1, 2, "elsewhere", 99)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match=r"WORLD_SIZE=two.*start with torchrun or srun"):
        find_ranks()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a,b", "a"), ("gpu[003-010,12],cpu1", "gpu003"), ("n[7]", "n7"), ("a-[1-2],b", "a-1"),
     ("r[1-2]n[3-4]", "r1n3"), ("host.example.org", "host.example.org")],
)  # fmt: skip
def test_first_host_of_slurm_node_lists(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
