"""The examples in CONTRIBUTING.md, "Extending": each extension needs one entry in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from sklearn.metrics import recall_score
from torch import nn

from bench import io
from bench.rows import JPEG_LOADERS, Loader, LoaderSettings
from probe.baselines import BASELINES, Baseline
from probe.encoder import Encoder
from probe.measure import ALL, LINEAR, Key
from probe.metrics import METRICS
from probe.page.layout import all_tables
from probe.page.table import score_table
from probe.report import make_report
from probe.settings import Settings
from probe.statistics import resample, score
from shard.formats import FORMATS, Rows, TableFormat, hashed_splits
from shard.manifest import read_manifest
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns
from shard.write import build
from tests.conftest import Shards, train_here
from tests.tables import write_gradient
from train.architectures import ARCHITECTURES
from train.checkpoint import load_newest
from train.model import encoder_of

COLUMNS = ("file", "person", "Edema")


def is_hospital(csv: Path) -> bool:
    return has_columns(csv, *COLUMNS)


def read_hospital(src: Path, csv: Path) -> Rows:
    raw, notes = read_csv(csv, COLUMNS)
    frame = pd.DataFrame({"path": raw["file"], "key": raw["file"], "patient": raw["person"], "Edema": raw["Edema"],
                          "split": hashed_splits(raw["person"]), "view": "", "sex": "", "age": ""})  # fmt: skip
    return Rows(("Edema",), frame, tuple(notes), ((csv, len(raw)),))


@pytest.mark.parametrize("dataset", ["hospital", "auto"])
def test_a_data_set_format_can_be_added_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.setitem(FORMATS, "hospital", TableFormat(is_hospital, read_hospital))
    for number in range(8):
        write_gradient(tmp_path / "src" / f"{number}.png", number)
    rows = [f"{number}.png,{number},{number % 2}" for number in range(8)]
    (tmp_path / "src" / "export.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    build(tmp_path / "src", tmp_path / "out", dataset=dataset, size=32, workers=1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.settings["dataset"] == "hospital" and manifest.findings == ("Edema",)
    assert sum(map(manifest.images, manifest.counts)) == 8


class Histogram(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.histc(image, 16, -3, 3) for image in x])


def test_a_baseline_can_be_added_from_outside(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "histogram", Baseline("Histogram", "#b07030", lambda options: Encoder(
        "Histogram", "grey levels in 16 bins", Histogram(), options.images)))  # fmt: skip
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    make_report(Settings(encoders=(f"X={tmp_path / 'weights.pth'}",), shards=shards.folder, out=tmp_path / "report",
                         size=32, draws=2, shots=("2",), baselines=("histogram",), tasks=("Pleural Effusion",),
                         device="cpu", workers=1, input="X:imagenet"), 0, 1)  # fmt: skip
    differences = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert set(zip(differences["encoder"], differences["reference"], strict=True)) == {("X", "Histogram")}
    assert b"#b07030" in (tmp_path / "report" / "figures" / "scores.svg").read_bytes()


def test_a_metric_can_be_added_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "sensitivity", lambda n: n.true_positives / n.positives)
    rng = np.random.default_rng(0)
    decisions, labels = rng.normal(size=(3, 50)), rng.integers(0, 2, 50)
    scores = score(decisions, labels, np.arange(50), resample(3, 50, replicates=2))
    expected = [recall_score(labels, decision > 0) for decision in decisions]
    assert scores.of("sensitivity").draws == pytest.approx(expected)
    table = score_table({Key("X", LINEAR, 10, "Edema", ALL): scores})
    assert table.set_index("metric")["mean"]["sensitivity"] == pytest.approx(np.mean(expected))
    assert [spec.metric for spec in all_tables()][-1] == "sensitivity"


def start_reading(settings: LoaderSettings) -> Iterator[int]:
    fetcher = settings.fetcher()
    return (len([fetcher.read(number) for number in batch.indices.tolist()]) for batch in settings.batches())


@pytest.mark.long
def test_a_bench_io_row_can_be_added_from_outside(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(JPEG_LOADERS, "mine", Loader(start_reading))
    io.bench(shards.folder, backends=("mine",), rounds=1, seconds=0.05, threads=1, batch_size=8, size=32,
             json=tmp_path / "io.json")  # fmt: skip
    rows = {row["name"]: row for row in json.loads((tmp_path / "io.json").read_text())["rows"]}
    assert rows["mine"]["images_per_s"]["median"] > 0
    assert rows.keys() <= {"decode", "mine"}  # the limit is always measured


def tiny(channels: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Conv2d(channels, 16, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16


def test_an_architecture_can_be_added_from_outside(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", tiny)
    train_here(shards, tmp_path, arch="tiny", limit_steps=2)
    _, state = load_newest(tmp_path) or pytest.fail("no checkpoint")
    encoder, width = encoder_of(state)
    assert (state["step"], width, encoder(torch.zeros(3, 1, 32, 32)).shape) == (2, 16, (3, 16))
