"""Mutated checkpoints, weights, model cards and journals are refused in one line or read correctly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from probe.encoders import open_encoder
from tests.conftest import SETTINGS, Shards, newest
from tests.fuzz import SEED, attempt, inputs, mutate, mutate_values, report_counts
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import Config
from train.export.export import export
from train.journal import CARD, METRICS, SPEED
from train.loop import pretrain
from train.status import status
from train.weights.preprocessing import PRESETS, Input

DEFAULT = Input(32, 0.5, 0.25)


def test_corrupt_checkpoints_are_refused_by_hash_or_by_content(
    trained: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng([SEED, 6])
    state = newest(trained)
    small = save_checkpoint(tmp_path, 7, {**state, "model": {name: value for name, value in state["model"].items()
                                                           if value.numel() < 2000}, "optimizer": {}})  # fmt: skip
    original, number, refused = small.read_bytes(), inputs(60), 0
    other = tmp_path / "weights.pt"
    for _ in range(number):
        content = mutate(original, rng)
        small.write_bytes(content)
        if content != original:
            assert "truncated or corrupt" in (attempt(load_checkpoint, small)[0])
        other.write_bytes(content)
        refused += bool(attempt(load_checkpoint, other)[0])
        attempt(open_encoder, other, "x", DEFAULT, 0)
    report_counts("checkpoints", number, number)
    report_counts("checkpoints without a hash", number, refused)


def test_checkpoints_of_other_content_are_refused_when_used(
    trained: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hash is valid, the content is not: neither resume, export nor the report may use it."""
    rng = np.random.default_rng([SEED, 7])
    state, number, refused = newest(trained), min(300, inputs(8)), 0  # each takes 130 MB
    for turn in range(number):
        changed = mutate_values(state, rng)
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        try:
            path = save_checkpoint(run, 7, {name: value for name, value in changed.items() if isinstance(name, str)})
        except (TypeError, OverflowError, ValueError, AttributeError):
            continue  # can't be written
        lines = [attempt(open_encoder, path, "x", DEFAULT, 0)[0], attempt(export, run, out=tmp_path / "out.pth")[0]]
        if turn % 4 == 0:
            settings = {**SETTINGS, "epochs": 2, "limit_steps": 1}
            lines.append(attempt(pretrain, Config(shards=shards.folder, out=run, **settings))[0])
        refused += any(lines)
    report_counts("checkpoints of other content", number, refused)


def test_mutated_weights_are_refused_or_read(tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 8])
    torch.manual_seed(0)
    weights = torchvision.models.resnet18(weights=None).state_dict()
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install '.[export]'")
    number, refused = inputs(30), 0
    for turn in range(number):
        changed: dict[str, Any] = dict(weights)
        names = list(changed)
        for _ in range(rng.integers(1, 4)):
            name = names[rng.integers(0, len(names))]
            match rng.integers(0, 4):
                case 0:
                    changed.pop(name, None)
                case 1:
                    changed[name + ".more"] = torch.zeros(2)
                case 2:
                    changed[name] = torch.zeros(tuple(rng.integers(0, 4, rng.integers(0, 5)).tolist()))
                case _:
                    changed[name] = changed.get(name, torch.zeros(1)).flatten()[:0]
        file = tmp_path / ("w.safetensors" if turn % 2 else "w.pth")
        if turn % 2:
            card = mutate(b'{"input": {"size": 32, "mean": 0.5, "std": 0.25}}', rng).decode(errors="replace")
            safetensors.save_file(changed, file, {"card": card})
            content = file.read_bytes()
            file.write_bytes(mutate(content[:3000], rng) + content[3000:] if turn % 4 == 1 else content)
        else:
            torch.save(changed, file)
        stated = None if turn % 2 else PRESETS["imagenet"]  # exports state it themselves
        refused += bool(attempt(open_encoder, file, "x", DEFAULT, 0, stated)[0])
    assert refused > number / 3
    report_counts("weights", number, refused)


def test_status_refuses_mutated_cards_and_journals_or_reads_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng([SEED, 9])
    run, number, refused = tmp_path / "run", inputs(80), 0
    run.mkdir()
    for name in (CARD, METRICS, SPEED):
        shutil.copy(trained / name, run)
    for turn in range(number):
        name = (CARD, METRICS, SPEED)[turn % 3]
        original = (trained / name).read_text()
        if turn % 2:
            changed = mutate(original.encode(), rng)
        elif name == CARD:
            changed = json.dumps(mutate_values(json.loads(original), rng)).encode()
        else:
            lines = mutate_values([json.loads(line) for line in original.splitlines()], rng)
            changed = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        (run / name).write_bytes(changed)
        refused += bool(attempt(status, run)[0])
        (run / name).write_text(original)
    assert number / 4 < refused < number
    with capsys.disabled():
        report_counts("cards and journals", number, refused)
