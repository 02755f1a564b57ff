"""The examples in CONTRIBUTING.md, "Extending": each extension needs one entry in one place."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from shard.formats import FORMATS, Rows, TableFormat, hashed_splits
from shard.manifest import read_manifest
from shard.tabular.csv_file import has_columns, read_csv
from shard.write import build
from tests.tables import write_gradient

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
