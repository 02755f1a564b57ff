"""The online probe: which images it uses, how it scores them, and that it does not change the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline.loader import default_backend, has_dali, image_loader
from shard.manifest import read_manifest
from shard.phantom.archive import phantom
from shard.read import read_labels
from shard.write import build
from tests.conftest import Shards, newest, train_here
from train.config import Config
from train.frozen_features import knn_vote
from train.journal import read_journal
from train.online import OnlineProbe, score_features
from train.setup import set_up
from train.status import status


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Enough phantoms for a finding to have ten positives and ten negatives in both parts."""
    folder = tmp_path_factory.mktemp("many_shards")
    phantom(folder / "radiographs", images=330, seed=3, workers=1)
    build(folder / "radiographs", folder / "shards", size=64, shard_size=100, workers=1)
    return Shards(folder / "shards", read_manifest(folder / "shards"))


def make_probe(shards: Shards) -> tuple[OnlineProbe, nn.Module]:
    config, manifest, augmentation, _, state = set_up(
        Config(shards=shards.folder, out=shards.folder / "none", dali=has_dali(), arch="resnet18", size=32,
                        device="cpu", precision="fp32"))  # fmt: skip
    return OnlineProbe(config, manifest, augmentation, state.device), state.model.encoder


def test_probe_uses_training_patients_and_holds_out_a_quarter(many_shards: Shards) -> None:
    chosen = make_probe(many_shards)[0].images
    train = read_labels(many_shards.folder, many_shards.manifest, ("train",))
    pd.testing.assert_frame_equal(chosen.labels, train.iloc[chosen.samples])
    held_out, fit = (set(chosen.labels["patient"][mask]) for mask in (chosen.held_out, ~chosen.held_out))
    assert not held_out & fit and len(held_out) == round(len(held_out | fit) / 4)
    for finding in chosen.findings:
        for part in (chosen.held_out, ~chosen.held_out):
            assert all((chosen.labels[finding][part] == value).sum() >= 10 for value in (0, 1))
    assert chosen.findings and len(chosen.findings) < len(many_shards.manifest.findings)


def test_scores_are_one_for_perfect_features_only(many_shards: Shards) -> None:
    """Features that equal a finding's label give AUROC 1 for both probes; random features do not."""
    images = make_probe(many_shards)[0].images
    images = replace(images, findings=images.findings[:1])
    truth = images.labels[images.findings[0]].fillna(0.5).to_numpy()
    features = np.stack([truth, 1 - truth, np.ones_like(truth)], axis=1).astype(np.float32)
    assert score_features(features, images) == {"knn_auroc": 1.0, "linear_auroc": 1.0}
    noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    assert all(0.2 < value < 0.8 for value in score_features(noise, images).values())


def test_features_are_in_the_order_of_the_chosen_images(many_shards: Shards) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    probe, _ = make_probe(many_shards)
    means = probe.embed(Mean(), lambda: False)[:, 0]
    manifest = many_shards.manifest
    everything = image_loader(default_backend(), many_shards.folder, manifest, split="train", size=32, batch_size=64,
                              mean=manifest.pixel_mean, std=manifest.pixel_std, device=torch.device("cpu"))  # fmt: skip
    expected = torch.cat([batch.mean((1, 2, 3)) for batch in everything]).numpy()[probe.images.samples]
    assert np.allclose(means, expected, atol=1e-5) and len(np.unique(means)) > len(means) // 2


def test_votes_equal_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(7, 8)).astype(np.float32)
    truth = rng.integers(0, 2, 50)
    for one, vote in zip(asked, knn_vote(known, truth, asked), strict=True):
        cosines = sorted(((float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)), label)
                          for other, label in zip(known, truth, strict=True)), reverse=True)[:20]  # fmt: skip
        weights = [np.exp(cosine / 0.07) for cosine, _ in cosines]
        expected = sum(weight * label for weight, (_, label) in zip(weights, cosines, strict=True)) / sum(weights)
        assert vote == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_stop_signal_interrupts_the_probe_and_the_resumed_run_repeats_it(
    many_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"online_every": 1, "epochs": 2, "batch_size": 64}
    train_here(many_shards, tmp_path / "uninterrupted", **settings)
    real = OnlineProbe.embed
    with monkeypatch.context() as patch:
        patch.setattr(OnlineProbe, "embed", lambda self, encoder, stopped: real(self, encoder, lambda: True))
        with pytest.raises(SystemExit) as ended:
            train_here(many_shards, tmp_path / "resumed", **settings)
    assert ended.value.code == 75
    state = newest(tmp_path / "resumed")
    assert state["step_in_epoch"] > 0 and state["epoch"] == 0
    assert not [line for line in read_journal(tmp_path / "resumed") if line["kind"] != "step"]
    train_here(many_shards, tmp_path / "resumed", **settings)
    one, other = (read_journal(tmp_path / name) for name in ("uninterrupted", "resumed"))
    assert one == other and [line["epoch"] for line in one if line["kind"] == "online"] == [1, 2]
    assert all(0 < line["knn_auroc"] < 1 for line in one if line["kind"] == "online")
    capfd.readouterr()
    status(tmp_path / "uninterrupted")
    assert "online probe: AUROC" in capfd.readouterr().out


def test_probe_does_not_change_the_run(many_shards: Shards, tmp_path: Path) -> None:
    for every in (0, 1):
        train_here(many_shards, tmp_path / str(every), online_every=every, epochs=1, batch_size=64)
    with_it, without = newest(tmp_path / "1"), newest(tmp_path / "0")
    assert all(torch.equal(value, without["model"][name]) for name, value in with_it["model"].items())
    assert torch.equal(with_it["rng_state"][0]["torch"], without["rng_state"][0]["torch"])


def test_too_few_labels_are_reported_once(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, online_every=1, epochs=2)
    assert capfd.readouterr().out.count("no online probe: no finding has 10 positive and 10 negative") == 1
    assert not [line for line in read_journal(tmp_path) if line["kind"] == "online"]
