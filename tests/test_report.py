"""The report as a user gets it: by the command, complete, self-contained, escaped, and the same twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision

from probe.statistics import METRICS
from shard.formats import CHEXPERT_FINDINGS
from shard.table import TASKS
from tests.conftest import Shards, run_module


@pytest.fixture(scope="module")
def report(shards: Shards, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), out / "weights.pt")
    done = probe(trained, shards, out, f"--imagenet-weights={out / 'weights.pt'}")
    assert done.returncode == 0, done.stderr
    return out


def probe(run: Path, shards: Shards, out: Path, *arguments: str):  # type: ignore[no-untyped-def]
    return run_module("probe", "report", str(run), f"--shards={shards.folder}", f"--out={out}", "--shots=3",
                      "--draws=4", *arguments)  # fmt: skip


def test_the_table_holds_every_encoder_task_and_metric(report: Path) -> None:
    table = pd.read_csv(report / "table.csv")
    assert set(table["encoder"]) == {"Scratch", "Thumbnail", "ImageNet", "SimCLR"}
    assert set(table["task"]) == {*TASKS, "Mean"} and set(table["metric"]) == set(METRICS)
    assert len(table) == 4 * 5 * 5 * 2 and table["mean"].between(0, 1).all() and (table["draws"] == 4).all()
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    assert "| SimCLR |" in (report / "table.md").read_text()
    differences = pd.read_csv(report / "differences.csv")
    assert len(differences) == (3 + 2 + 1) * 5 and differences["p"].between(0, 1).all()
    low, mean, high = (differences[name] for name in ("low", "difference", "high"))
    assert ((low <= mean) & (mean <= high)).all()


def test_the_page_is_whole_asks_for_nothing_outside_and_calls_phantoms_synthetic(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # scores, loss, views
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page) and "<script" not in page
    for wanted in ("SYNTHETIC", "none seen in pre-training",
                   "How to read this", "python -m train --shards=", "python -m probe report", "torch",
                   "NT-Xent", "fingerprint", *TASKS):  # fmt: skip
        assert wanted in page, wanted
    assert page.rstrip().endswith("</html>")


def test_the_same_draws_give_the_same_table(report: Path, shards: Shards, trained: Path, tmp_path: Path) -> None:
    """As drawn anew by the same seed, or as handed on in a file."""
    weights = f"--imagenet-weights={report / 'weights.pt'}"
    done = probe(trained, shards, tmp_path / "handed on", weights, f"--draws-file={report / 'draws.csv'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "handed on" / "table.csv").read_bytes() == (report / "table.csv").read_bytes()
    done = probe(trained, shards, tmp_path, weights)
    assert done.returncode == 0
    assert (tmp_path / "table.csv").read_bytes() == (report / "table.csv").read_bytes()


def test_a_task_without_examples_is_said_and_the_others_go_on(shards: Shards, trained: Path, tmp_path: Path) -> None:
    done = probe(trained, shards, tmp_path, "--tasks=Lung Opacity,Fracture", f"--imagenet-weights={_weights(tmp_path)}")
    assert done.returncode == 0 and "Fracture is not measurable" in done.stdout
    table = pd.read_csv(tmp_path / "table.csv").set_index("task")["mean"]
    assert table.loc["Fracture"].isna().all() and table.loc["Lung Opacity"].notna().all()


def _weights(folder: Path) -> Path:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def test_labels_from_a_table_are_escaped_in_the_page(radiographs: Path, trained: Path, tmp_path: Path) -> None:
    from shard.manifest import read_manifest
    from shard.write import build

    nasty = "<script>alert(1)</script>"
    source = tmp_path / "source"
    shutil.copytree(radiographs, source)
    frames = []
    for split in ("train", "valid"):
        frame = pd.read_csv(source / f"{split}.csv")
        path = frame["Path"].str.removeprefix("CheXpert-v1.0-small/")
        frames.append(pd.DataFrame({"path": path, "patient": path.str.extract(r"(patient\d+)", expand=False),
                                    "split": split, nasty: frame["Lung Opacity"]}))  # fmt: skip
    pd.concat(frames).to_csv(tmp_path / "table.csv", index=False)
    build(source, tmp_path / "shards", table=tmp_path / "table.csv", size=96, workers=1)
    made = Shards(tmp_path / "shards", read_manifest(tmp_path / "shards"))
    done = probe(trained, made, tmp_path / "out", f"--tasks={nasty}", f"--imagenet-weights={_weights(tmp_path)}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "POSSIBLY SEEN IN PRE-TRAINING" in page  # these are not the shards the run was trained on
    assert nasty not in page and "&lt;script&gt;" in page
    assert CHEXPERT_FINDINGS[0] not in page
