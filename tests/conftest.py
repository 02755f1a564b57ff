"""Fixtures and helpers: phantom radiographs, shards and a run, created once per session. No test needs real data."""

from __future__ import annotations

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.loader import has_dali
from shard.manifest import Manifest, read_manifest
from shard.phantom.archive import phantom
from shard.write import build
from train.checkpoint import list_checkpoints, load_checkpoint
from train.config import Config
from train.journal import METRICS
from train.loop import pretrain

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"  # real radiographs, if available; no test may require them

# A shell makes background processes ignore Ctrl-C, and every process that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast tests first, and tests that train or need a trained run last."""
    items.sort(key=lambda item: "trained" in getattr(item, "fixturenames", ()) or "test_train" in item.nodeid)


@dataclasses.dataclass(frozen=True)
class Shards:
    """A folder of shards and its manifest."""

    folder: Path
    manifest: Manifest


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """121 synthetic radiographs in CheXpert's layout."""
    folder = tmp_path_factory.mktemp("radiographs")
    phantom(folder, images=121, seed=1, workers=1)
    return folder


@pytest.fixture(scope="session")
def shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards of 40 of these radiographs at 96 px, as JPEGs."""
    out = tmp_path_factory.mktemp("shards")
    build(radiographs, out, size=96, shard_size=40, workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="session")
def raw_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The same shards with raw images: 96 × 96 bytes per sample."""
    out = tmp_path_factory.mktemp("raw-shards")
    build(radiographs, out, size=96, shard_size=40, encoding="raw", workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="session")
def partner_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards of up to 40 of these radiographs, each image with up to two others of its patient."""
    out = tmp_path_factory.mktemp("partner-shards")
    build(radiographs, out, size=96, shard_size=40, partners=2, workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="session")
def trained(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, trained by the command line."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    done = run_module("train", f"--shards={shards.folder}", f"--out={out}", DALI, "--epochs=2", *SMALL)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, which a remount can enlarge."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder]
    mount = subprocess.run(command, capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"a small file system can't be mounted: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def labels() -> pd.DataFrame:
    """400 images of 130 patients with Mass 1, 0, -1 or blank; a third of the patients are in test."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 130, 400)
    split = np.where(patient % 3 == 0, "test", "train")
    mass = rng.choice([1.0, 0.0, -1.0, np.nan], 400, p=[0.3, 0.4, 0.1, 0.2])
    return pd.DataFrame({"key": np.arange(400).astype(str), "patient": patient, "split": split, "Mass": mass})


KILLS = int(os.environ.get("KILLS", "0"))  # kills a campaign: 20 in make kills; 0 means a few
DALI = "--dali" if has_dali() else "--nodali"
# On the CPU results are reproducible; cuDNN's backward pass is not.
SMALL = ("--device=cpu", "--arch=timm/test_resnet", "--size=32", "--batch-size=16", "--lr=1e-3", "--precision=fp32",
         "--log-every=2")  # fmt: skip


SETTINGS: dict[str, Any] = {
    "dali": has_dali(), "device": "cpu", "arch": "timm/test_resnet", "size": 32, "batch_size": 16, "lr": 1e-3,
    "precision": "fp32", "log_every": 2, "epochs": 2,
}  # fmt: skip


def train_here(shards: Shards, out: Path, **settings: Any) -> None:
    """Train in this process as the command does with SMALL and two epochs, which is seconds faster than a command."""
    pretrain(Config(shards=shards.folder, out=out, **{**SETTINGS, **settings}))


def newest(run: Path) -> dict[str, Any]:
    """Load the newest checkpoint of a run."""
    return load_checkpoint(list_checkpoints(run)[0])


def equal_states(one: Any, other: Any) -> bool:
    """Return whether two nested states, tensors included, are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_states(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal_states, one, other))
    return bool(one == other)


def same_run(one: Path, other: Path) -> bool:
    """Return whether two runs ended with bitwise equal weights, optimizer, random states, loader and journal."""
    names = ("step", "epoch", "model", "optimizer", "scaler", "rng_state", "loader", "loss_sum", "losses", "milestones",
             "best", "journal_lines")  # fmt: skip
    states = [newest(run) for run in (one, other)]
    journals = [(run / METRICS).read_bytes() for run in (one, other)]
    return journals[0] == journals[1] and all(equal_states(states[0][name], states[1][name]) for name in names)


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run python -m MODULE from the root of the repository."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "" if not torch.cuda.is_available() else "0"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def run_main(module: str) -> None:
    """Run a module as python -m does, with the current sys.argv, in this process, which saves importing PyTorch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # another test imported it
        runpy.run_module(module if "." in module else f"{module}.__main__", run_name="__main__")


def commands_of(module: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Return the program name and the commands that a module passes to run()."""
    calls = list[tuple[str, Any]]()
    with monkeypatch.context() as patched:
        patched.setattr("shard.cli.run", lambda name, commands: calls.append((name, commands)))
        run_main(module)
    return calls[0]
