"""Too little shared memory ends a command with one line and status 1, and never hangs it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shard.shared_memory import explain_lock_errors
from tests.conftest import ROOT, Shards

SMALL_SHM = "mount -t tmpfs -o size={size} tmpfs /dev/shm"
# Remounts /dev/shm with each size, and prints the number of batches or the error of a loader.
LOADERS = """
import subprocess, sys, torch
from pathlib import Path
from bench.baselines import published
from pipeline.loader import image_loader
from pipeline.augmentation import Augmentation
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest

folder = Path(sys.argv[1])
manifest = read_manifest(folder)

def images(batch_size, workers):  # 37 kB each
    return iter(image_loader("torchvision", folder, manifest, split="train", size=96, mean=0.5, std=0.2,
                             batch_size=batch_size, device=torch.device("cpu"), workers=workers))

def rival(batch_size, workers):
    return published(Fetcher(folder, manifest, "train"), Augmentation(size=96, mean=0.5, std=0.2), batch_size, workers)

def try_loader(size, make, batch_size, workers):
    subprocess.run(["mount", "-o", f"remount,size={size}", "/dev/shm"], check=True)
    try:
        print(len(list(zip(range(3), make(batch_size, workers)))), "batches")
    except InputError as error:
        print(error)

try_loader("2m", rival, 16, 1)  # 3.5 MB, in float32 and RGB
try_loader("8m", images, 16, 2)
try_loader("8m", images, 32, 1)   # the few batches of the split fit
try_loader("2m", images, 16, 2)   # one batch fits, four do not
try_loader("512k", images, 16, 1)  # no batch fits
subprocess.run("head -c 1m /dev/zero > /dev/shm/full", shell=True, stderr=subprocess.DEVNULL)
try_loader("512k", images, 16, 1)  # not even a lock fits
"""


def run_with_small_shm(script: str, *, size: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a /dev/shm of the given size; skip the test if it cannot be mounted."""
    mount = subprocess.run(["unshare", "--mount", "sh", "-c", SMALL_SHM.format(size="1m")], capture_output=True,
                           text=True)  # fmt: skip
    if mount.returncode != 0:
        pytest.skip(f"a small /dev/shm can't be mounted: {mount.stderr.strip()}")
    return subprocess.run(["unshare", "--mount", "sh", "-euc", f"{SMALL_SHM.format(size=size)}; {script}"], cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=200)  # fmt: skip


def names_the_cure(line: str) -> bool:
    """Return whether an error is one line that names /dev/shm and the flags to change."""
    return line.count("\n") == 0 and all(word in line for word in ("/dev/shm", "--shm-size=1g", "--workers=",
                                                                   "--batch-size"))  # fmt: skip


@pytest.mark.long
def test_loaders_report_too_little_shared_memory(shards: Shards) -> None:
    done = run_with_small_shm(shlex.join([sys.executable, "-c", LOADERS, str(shards.folder)]), size="8m")
    assert (done.returncode, done.stderr) == (0, "")
    rival, enough, few, *short = done.stdout.splitlines()
    assert (enough, few) == ("3 batches", "3 batches")
    assert len(short) == 3 and all(map(names_the_cure, [rival, *short])), done.stdout
    assert "it has 2.0 MB, " in short[0] and "about 3.4 MB are needed" in short[0]


@pytest.mark.long
def test_training_with_too_little_shared_memory_ends(shards: Shards, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", f"--shards={shards.folder}", f"--out={tmp_path / 'run'}",
               "--arch=resnet18", "--size=96", "--batch-size=64", "--workers=4", "--online-every=0"]  # fmt: skip
    done = run_with_small_shm(shlex.join(command), size="16m")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert names_the_cure(done.stderr.strip()) and "it has 16 MB" in done.stderr


@pytest.mark.long
def test_benchmark_with_too_little_shared_memory_names_its_own_flags(shards: Shards, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.io", str(shards.folder), "--backends=torchvision", "--threads=2",
               "--size=96", "--batch-size=64", "--rounds=1", "--seconds=0.1",
               f"--json={tmp_path / 'io.json'}"]  # fmt: skip
    done = run_with_small_shm(shlex.join(command), size="4m")
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "bench.io: error: row torchvision: /dev/shm is too small" in error, error
    assert "lower --threads=2 or --batch-size; or omit the row " in error and "--workers" not in error


def test_build_reports_missing_shared_memory_and_one_worker_needs_none(radiographs: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "shard", "build", str(radiographs), str(tmp_path / "shards"), "--size=32"]
    fill = "head -c 1m /dev/zero > /dev/shm/full || true; "
    done = run_with_small_shm(fill + shlex.join([*build, "--workers=2", "--shard-size=40"]), size="64k")
    assert done.returncode == 1 and "/dev/shm is too small" in done.stderr, done.stderr
    assert "--workers=2 to 1, which needs none" in done.stderr
    done = run_with_small_shm(fill + shlex.join([*build, "--workers=1", "--shard-size=40"]), size="64k")
    assert done.returncode == 0, done.stderr


def test_explain_lock_errors_ignores_errors_of_other_files() -> None:
    with pytest.raises(FileNotFoundError, match="/proc/nothing"), explain_lock_errors("--workers=2"):
        Path("/proc/nothing").read_bytes()
