"""Collapsed encoders are detected from a run's journal and from features that do not distinguish images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from probe.collapse import describe_collapse
from probe.report import make_report
from probe.settings import Settings
from shard.errors import InputError
from tests.conftest import Shards, newest, train_here
from train import loop
from train.collapse import detect_collapse
from train.embedding_metrics import embedding_metrics
from train.export.card_page import model_card_page
from train.export.model_card import make_card
from train.journal import read_journal
from train.status import status

SETTINGS = {"batch_size": 16, "lr": 0.01, "weight_decay": 1.0, "same_patient": "negatives"}
RNG = np.random.default_rng(0)
STEP = loop.train_step
SPREAD = RNG.normal(size=(200, 64)).astype(np.float32)


def journal(losses: list[float], rank: float, pairs: float | None = None) -> list[dict[str, Any]]:
    """Return journal lines of epochs with these losses, one step each."""
    lines = list[dict[str, Any]]()
    for epoch, loss in enumerate(losses, start=1):
        more = {} if pairs is None else {"same_patient_pairs": pairs}
        lines += [{"kind": "step", "step": epoch, "epoch": float(epoch), "loss": loss, "embedding_rank": rank, **more},
                  {"kind": "epoch", "step": epoch, "epoch": epoch, "loss": loss}]  # fmt: skip
    return lines


def test_three_epochs_at_chance_loss_are_a_collapse() -> None:
    said = detect_collapse(journal([3.2, math.log(31), 3.45, 3.43], rank=9.0), SETTINGS)
    assert said.startswith("collapsed: in epochs 2 to 4 ") and "chance is 3.434; embedding rank 9.0" in said
    assert all(flag in said for flag in ("--lr (now 0.01)", "--weight-decay (now 1)", "--clip", "--batch-size"))


@pytest.mark.parametrize("losses", [[3.434] * 2, [3.434, 3.434, 3.3], [3.3, 3.434, 3.434], [2.1] * 5])
def test_fewer_epochs_or_lower_losses_are_no_collapse(losses: list[float]) -> None:
    assert not detect_collapse(journal(losses, rank=9.0), SETTINGS)


def test_rank_near_one_is_a_collapse_at_any_loss() -> None:
    assert detect_collapse(journal([2.0] * 3, rank=1.2), SETTINGS)


def test_chance_loss_excludes_masked_views() -> None:
    masked = {**SETTINGS, "same_patient": "masked"}
    chance = math.log(31 - 2 * 15 * 0.2)
    assert detect_collapse(journal([chance] * 3, 9.0, pairs=0.2), masked)
    assert not detect_collapse(journal([chance] * 3, 9.0, pairs=0.2), SETTINGS)


def test_metrics_of_zero_embeddings_are_finite() -> None:
    measures = embedding_metrics(torch.zeros(4, 8), torch.zeros(4, 8))
    assert all(map(math.isfinite, measures.values())) and measures["embedding_rank"] < 1.1


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.zeros((200, 64), np.float32), "its 64 features are the same for all images"),
        (np.full((200, 64), 0.7, np.float32) + 1e-7 * SPREAD, "its 64 features are the same for all images"),
        (SPREAD[:, :1] * SPREAD[:1], "its 64 features have an effective rank of 1.0"),
        (np.hstack([SPREAD[:, :2], np.ones((200, 62), np.float32)]), "62 of them are the same for all images"),
        (SPREAD, ""),
        (np.maximum(SPREAD, 0) + 5, ""),
        (1e-6 * SPREAD, ""),
        (np.hstack([SPREAD[:, :32], np.zeros((200, 32), np.float32)]), ""),  # half are dead, the others do
    ],
    ids=["zero", "equal", "line", "constant", "spread", "shifted", "small", "half-dead"],
)  # fmt: skip
def test_collapsed_features_are_detected(features: Any, said: str) -> None:
    assert said in describe_collapse(features) and bool(said) == bool(describe_collapse(features))


def test_training_warns_once_of_a_collapse(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collapsed(*arguments: Any, **settings: Any) -> Any:
        loss, *embeddings = STEP(*arguments, **settings)
        return loss * 0 + math.log(31), *(torch.ones_like(one) for one in embeddings)

    monkeypatch.setattr(loop, "train_step", collapsed)
    for epochs in (2, 4):
        train_here(shards, tmp_path, epochs=epochs, online_every=0)
        said = capsys.readouterr()
        warnings = [line for line in (said.out + said.err).splitlines() if "collapsed" in line]
        assert len(warnings) == (epochs == 4), warnings
    assert "warning: collapsed: in epochs 1 to 3 " in warnings[0] and "embedding rank 1.0" in warnings[0]
    status(tmp_path)
    assert "collapsed: in epochs 2 to 4 " in capsys.readouterr().out
    card = make_card(newest(tmp_path), 512, read_journal(tmp_path))
    assert card["collapsed"].startswith("collapsed: in epochs 2 to 4 ")


def weights(folder: Path, *, dead: bool) -> Path:
    """Save a ResNet's weights. dead: all features are zero."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    if dead:
        torch.nn.init.zeros_(resnet.layer4[1].bn2.weight)
        torch.nn.init.constant_(resnet.layer4[1].bn2.bias, -1e3)
    torch.save(resnet.state_dict(), path := folder / f"{'dead' if dead else 'good'}.pth")
    return path


@pytest.mark.parametrize("given", [(True,), (True, False)], ids=["alone", "first"])
def test_report_of_a_collapsed_encoder_is_completed(given: tuple[bool, ...], shards: Shards, tmp_path: Path) -> None:
    """scikit-learn's t-SNE, initialized by PCA, crashes the process if all points are equal."""
    named = tuple(f"{'Dead' if dead else 'Good'}={weights(tmp_path, dead=dead)}" for dead in given)
    make_report(Settings(encoders=named, shards=shards.folder, out=tmp_path / "report", size=32, draws=3, shots=("5",),
                         baselines=("thumbnail",), tasks=("Cardiomegaly",), workers=1,
                         input=",".join(f"{name.partition('=')[0]}:imagenet" for name in named)), 0, 1)  # fmt: skip
    table = (tmp_path / "report" / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| Dead (collapsed"))
    assert "| 0.500 [" in row
    assert "COLLAPSED: Dead: its 512 features are the same for all images" in table
    for name in ("table.csv", "differences.csv"):
        cells = pd.read_csv(tmp_path / "report" / name, keep_default_na=False)
        is_dead = cells["collapsed"] == "its 512 features are the same for all images"
        assert is_dead.equals(cells["encoder"] == "Dead") and set(cells["collapsed"][~is_dead]) <= {""}
    for figure in ("map-cardiomegaly.svg", "neighbours.png"):
        assert (tmp_path / "report" / "figures" / figure).exists() == (False in given)


def test_model_card_reports_a_collapse() -> None:
    card = {"name": "n", "arch": "resnet18", "features": 512, "preset": "p", "use": "u", "note": "x", "channels": 3,
            "input": {"size": 32, "mean": 0.5, "std": 0.2}, "collapsed": "collapsed: in epochs 1 to 3"}  # fmt: skip
    assert "**It does not distinguish images.** Its training collapsed" in model_card_page("safetensors", "a", card)


def test_features_whose_squares_overflow_are_refused(shards: Shards, tmp_path: Path) -> None:
    state = torch.load(weights(tmp_path, dead=False))
    state["layer4.1.bn2.bias"][3] = 1e30
    torch.save(state, tmp_path / "huge.pth")
    with pytest.raises(InputError, match=r"^X: features are NaN, infinite or above 1e\+15 for 97 of 97 "):
        make_report(Settings(encoders=(f"X={tmp_path / 'huge.pth'}",), shards=shards.folder, out=tmp_path / "report",
                             size=32, draws=3, shots=("5",), baselines=(), workers=1,
                             input="X:imagenet"), 0, 1)  # fmt: skip
