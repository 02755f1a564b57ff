"""Recipes that use other images of the patient report at the start how many images have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from shard.manifest import read_manifest
from shard.write import build
from tests.conftest import SETTINGS, Shards
from train.config import Config
from train.setup import set_up


@pytest.fixture(scope="module")
def unpaired_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards with one image per patient."""
    folder = tmp_path_factory.mktemp("unpaired")
    paths = sorted(path.relative_to(radiographs).as_posix() for path in radiographs.glob("train/**/*.jpg"))
    table = pd.DataFrame({"path": paths, "patient": range(len(paths)), "split": "train", "Mass": 1})
    table.to_csv(folder / "table.csv", index=False)
    build(radiographs, folder / "shards", size=32, dataset="csv", table=folder / "table.csv", partners=2, workers=1)
    return Shards(folder / "shards", read_manifest(folder / "shards"))


def set_up_output(
    shards: Shards, out: Path, capsys: pytest.CaptureFixture[str], **settings: Any
) -> tuple[str, str]:
    """Set up a run and return what it prints to stdout and stderr."""
    capsys.readouterr()
    set_up(Config(**{**SETTINGS, "shards": shards.folder, "out": out, **settings}))
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.mark.parametrize(("settings", "flags"), [
    ({"patient_positive": 0.5}, "--patient-positive=0.5 applies to"),
    ({"same_patient": "masked"}, "--same-patient=masked applies to"),
    ({"patient_positive": 0.5, "same_patient": "positives"},
     "--patient-positive=0.5 and --same-patient=positives apply to"),
])  # fmt: skip
def test_recipe_without_any_paired_image_warns(
    settings: dict[str, Any], flags: str, unpaired_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = set_up_output(unpaired_shards, tmp_path, capsys, **settings)
    images = unpaired_shards.manifest.images("train")
    assert f"0 of {images} training images (0.0%) have another image of the same patient" in out
    assert err.startswith(f"warning: {flags} so few images") and err.count("\n") == 1


def test_recipe_with_enough_paired_images_does_not_warn(
    partner_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = set_up_output(partner_shards, tmp_path, capsys, patient_positive=0.5)
    assert "training images (" in out and "have another image of the same patient in their shard" in out and not err


def test_recipe_without_partners_prints_nothing_about_patients(
    unpaired_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = set_up_output(unpaired_shards, tmp_path, capsys)
    assert "patient" not in out and not err
