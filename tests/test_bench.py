"""bench.io runs and writes what others read; no figure is asserted."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.loader import has_dali
from pipeline.preview import preview
from tests.conftest import Shards, run_module


def test_bench_io_prints_and_writes_every_row(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "io.json"
    done = run_module("bench.io", str(shards.folder), f"--json-out={out}", "--rounds=2", "--seconds=0.05",
                      "--batch-size=8", "--size=32", "--workers=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) >= {"torchvision", "published", *(["decode", "dali-stock"] if has_dali() else [])}
    for name, row in rows.items():
        rates = row["images_per_s"]
        assert 0 < rates["low"] <= rates["median"] <= rates["high"] and name in done.stdout
    assert {"cpu", "cores", "torch", "commit"} <= set(content["machine"])


def test_preview_draws_a_png(shards: Shards, tmp_path: Path) -> None:
    preview(shards.folder, out=tmp_path / "views.png", images=2, size=64)
    assert (tmp_path / "views.png").read_bytes().startswith(b"\x89PNG")
