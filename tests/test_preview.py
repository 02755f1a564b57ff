"""python -m pipeline preview: the picture and the printed augmentation parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.augmentation import Augmentation
from pipeline.loader import has_dali
from pipeline.preview import plot_preview, preview
from shard.read import read_labels
from tests.conftest import Shards


def test_preview_writes_a_png_and_prints_the_parameters(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(shards.folder, out=tmp_path / "views.png", images=2, size=64)
    assert (tmp_path / "views.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert len(re.findall(r"view [12]: crop \d+×\d+ at \d+,\d+.*blur [\d.]+ px, brightness [\d.]+", printed)) == 4
    assert "torchvision" in printed and (not has_dali() or "dali-fused, dali-stock" in printed)


def test_preview_prints_which_second_views_show_a_partner(partner_shards: Shards) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    patient_of = read_labels(folder, manifest, ("train",)).set_index("key")["patient"]

    def pairs(probability: float) -> list[tuple[str, str]]:
        _, lines = plot_preview(folder, Augmentation(size=32, patient_positive=probability), images=8, seed=0)
        return re.findall(r"^(\S+) view 2 \(of (\S+)\): ", "\n".join(lines), re.MULTILINE)

    assert not pairs(0.0)
    found = pairs(1.0)
    assert len(found) > 2
    assert all(key != partner and patient_of[key] == patient_of[partner] for key, partner in found)
