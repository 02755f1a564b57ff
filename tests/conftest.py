"""Phantom radiographs and their shards, made once a session; nothing here needs real data."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.loader import has_dali
from shard.manifest import Manifest, read_manifest
from shard.phantom import phantom
from shard.write import build

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"  # real radiographs, where they are at hand; no test may need them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: what needs a trained run, or trains one, comes last."""
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
    """Those radiographs at 96 px, in shards of 40."""
    out = tmp_path_factory.mktemp("shards")
    build(radiographs, out, size=96, shard_size=40, workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="session")
def raw_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The same, not compressed: 96 × 96 bytes a sample."""
    out = tmp_path_factory.mktemp("raw-shards")
    build(radiographs, out, size=96, shard_size=40, encoding="raw", workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(scope="session")
def trained(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, made by the command a user would give."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    done = run_module("train", f"--shards={shards.folder}", f"--out={out}", DALI, "--epochs=2", *SMALL)
    assert done.returncode == 0, done.stderr
    return out


DALI = "--dali" if has_dali() else "--nodali"
# On the CPU, where equal means equal: cuDNN's backward is not the same twice.
SMALL = ("--device=cpu", "--arch=resnet18", "--size=32", "--batch-size=16", "--lr=1e-3", "--precision=fp32",
         "--log-every=2")  # fmt: skip


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run python -m MODULE from the root of the repository, as a user does."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "" if not torch.cuda.is_available() else "0"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
