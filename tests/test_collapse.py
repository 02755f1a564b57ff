"""A collapsed encoder is told: from a run's journal, and from features that tell no images apart."""

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
from train.collapse import say_collapse
from train.embedding_metrics import embedding_metrics
from train.export.model_card import make_card, model_card_page
from train.journal import read_journal
from train.status import status

SETTINGS = {"batch_size": 16, "lr": 0.01, "weight_decay": 1.0, "same_patient": "negatives"}
RNG = np.random.default_rng(0)
STEP = loop.train_step
SPREAD = RNG.normal(size=(200, 64)).astype(np.float32)


def journal(losses: list[float], rank: float, pairs: float | None = None) -> list[dict[str, Any]]:
    """A journal of epochs with these losses, a step each."""
    lines = list[dict[str, Any]]()
    for epoch, loss in enumerate(losses, start=1):
        more = {} if pairs is None else {"same_patient_pairs": pairs}
        lines += [{"kind": "step", "step": epoch, "epoch": float(epoch), "loss": loss, "embedding_rank": rank, **more},
                  {"kind": "epoch", "step": epoch, "epoch": epoch, "loss": loss}]  # fmt: skip
    return lines


def test_three_epochs_at_the_loss_of_guessing_are_a_collapse() -> None:
    said = say_collapse(journal([3.2, math.log(31), 3.45, 3.43], rank=9.0), SETTINGS)
    assert said.startswith("collapsed: in epochs 2 to 4 ") and "guessing has 3.434; embedding rank 9.0" in said
    assert all(flag in said for flag in ("--lr (now 0.01)", "--weight-decay (now 1)", "--clip", "--batch-size"))


@pytest.mark.parametrize("losses", [[3.434] * 2, [3.434, 3.434, 3.3], [3.3, 3.434, 3.434], [2.1] * 5])
def test_less_is_none(losses: list[float]) -> None:
    assert not say_collapse(journal(losses, rank=9.0), SETTINGS)


def test_a_rank_near_one_is_a_collapse_whatever_the_loss() -> None:
    assert say_collapse(journal([2.0] * 3, rank=1.2), SETTINGS)


def test_masked_views_are_none_that_are_guessed_among() -> None:
    masked = {**SETTINGS, "same_patient": "masked"}
    guessing = math.log(31 - 2 * 15 * 0.2)
    assert say_collapse(journal([guessing] * 3, 9.0, pairs=0.2), masked)
    assert not say_collapse(journal([guessing] * 3, 9.0, pairs=0.2), SETTINGS)


def test_embeddings_that_are_all_zero_have_measures_that_are_numbers() -> None:
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
def test_features_that_tell_no_images_apart(features: Any, said: str) -> None:
    assert said in describe_collapse(features) and bool(said) == bool(describe_collapse(features))


def test_a_training_warns_once_when_it_has_collapsed(
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
    """A ResNet's weights; dead: every feature is zero."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    if dead:
        torch.nn.init.zeros_(resnet.layer4[1].bn2.weight)
        torch.nn.init.constant_(resnet.layer4[1].bn2.bias, -1e3)
    torch.save(resnet.state_dict(), path := folder / f"{'dead' if dead else 'good'}.pth")
    return path


@pytest.mark.parametrize("given", [(True,), (True, False)], ids=["alone", "first"])
def test_a_report_of_a_collapsed_encoder_is_finished(given: tuple[bool, ...], shards: Shards, tmp_path: Path) -> None:
    """t-SNE of scikit-learn, started from PCA, crashes the process where all points are one."""
    named = tuple(f"{'Dead' if dead else 'Good'}={weights(tmp_path, dead=dead)}" for dead in given)
    make_report(Settings(encoders=named, shards=shards.folder, out=tmp_path / "report", size=32, draws=3, shots=("5",),
                         baselines=("thumbnail",), tasks=("Cardiomegaly",), workers=1), 0, 1)  # fmt: skip
    table = (tmp_path / "report" / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| Dead (collapsed"))
    assert "| 0.500 [" in row
    assert "COLLAPSED: Dead: its 512 features are the same for all images" in table
    for name in ("table.csv", "differences.csv"):
        cells = pd.read_csv(tmp_path / "report" / name, keep_default_na=False)
        told = cells["collapsed"] == "its 512 features are the same for all images"
        assert told.equals(cells["encoder"] == "Dead") and set(cells["collapsed"][~told]) <= {""}
    for figure in ("map-cardiomegaly.svg", "neighbours.png"):
        assert (tmp_path / "report" / "figures" / figure).exists() == (False in given)


def test_a_card_says_that_a_run_collapsed() -> None:
    card = {"name": "n", "arch": "resnet18", "features": 512, "preset": "p", "use": "u", "note": "x",
            "input": {"size": 32, "mean": 0.5, "std": 0.2}, "collapsed": "collapsed: in epochs 1 to 3"}  # fmt: skip
    assert "**It tells no images apart.** Its training collapsed" in model_card_page("safetensors", "a", card)


def test_features_too_large_for_float32s_squares_are_refused(shards: Shards, tmp_path: Path) -> None:
    state = torch.load(weights(tmp_path, dead=False))
    state["layer4.1.bn2.bias"][3] = 1e30
    torch.save(state, tmp_path / "huge.pth")
    with pytest.raises(InputError, match=r"^X: features are NaN, infinite or above 1e\+15 for 121 of 121 "):
        make_report(Settings(encoders=(f"X={tmp_path / 'huge.pth'}",), shards=shards.folder, out=tmp_path / "report",
                             size=32, draws=3, shots=("5",), baselines=(), workers=1), 0, 1)  # fmt: skip
