"""Models of timm through the whole path: two steps, a kill, a resume to the same weights, an export and a report."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch

from probe.report import make_report
from probe.settings import Settings
from tests.conftest import DALI, ROOT, Shards, newest, same_run, train_here
from train.architectures import first_conv
from train.checkpoint import list_checkpoints, step_of
from train.export.export import export
from train.model import encoder_of

STEPS = 2  # before the kill
ARCHS = ("densenet121", "convnext_atto", "vit_small_patch16_224", "efficientnet_b0", "tf_efficientnet_lite0",
         "swin_tiny_patch4_window7_224")  # fmt: skip
FLAGS = ("--device=cpu", "--size=32", "--batch-size=16", "--lr=1e-3", "--precision=fp32", "--log-every=2", DALI,
         "--checkpoint-minutes=1e-9")  # fmt: skip


def steps_saved(run: Path) -> int:
    return max(map(step_of, list_checkpoints(run)), default=0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["test_vit", *ARCHS])
def test_backbone_through_steps_kill_resume_export_and_report(
    name: str, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    arch, killed, whole = f"timm/{name}", tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "train", f"--shards={shards.folder}", f"--out={killed}", f"--arch={arch}", *FLAGS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and steps_saved(killed) < STEPS:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.communicate()
    process.communicate()
    end = steps_saved(killed) + 1
    for run in (killed, whole):
        train_here(shards, run, arch=arch, epochs=100, limit_steps=end, checkpoint_minutes=1e-9)
    assert newest(killed)["step"] == end and same_run(whole, killed)

    export(killed, format="timm", out=tmp_path / "export")
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    torch.manual_seed(0)
    grey, encoder = torch.randn(2, 1, 32, 32), encoder_of(newest(killed))[0].eval()
    channels = model.get_submodule(first_conv(model)).weight.shape[1]
    with torch.no_grad():
        assert torch.allclose(model(grey.expand(-1, channels, -1, -1)), encoder(grey), rtol=1e-4, atol=1e-4)

    monkeypatch.setattr("probe.finetune.STEPS", 2)
    make_report(Settings(encoders=(f"Run={killed}",), shards=shards.folder, out=tmp_path / "report", draws=2,
                         shots=("5",), baselines=("scratch",), tasks=("Cardiomegaly",), finetune=1, device="cpu",
                         workers=1), 0, 1)  # fmt: skip
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    rows = table[(table["metric"] == "auroc") & (table["shots"].astype(str) == "5")]
    run = rows[rows["encoder"] == "Run"]
    assert {"linear", "knn", "finetune"} <= set(run["probe"]) and run["mean"].between(0, 1).all()
