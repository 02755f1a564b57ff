"""bench.io and bench.shard run and write what others read; no figure is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.shard import bench as bench_shard
from pipeline.loader import has_dali
from pipeline.preview import preview
from shard.errors import InputError
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


def test_bench_shard_prints_every_row_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.shard.TURN_S", 0.02)
    monkeypatch.setattr("bench.shard.SOURCES", {"390x320": ((390, 320), 0.0, 90), "1000x800": ((1000, 800), 3.0, 90)})
    bench_shard(size=64, rounds=2, workers=(1, 2), memory_rows=(50, 5000), json_out=tmp_path / "new" / "shard.json")
    page, content = capsys.readouterr().out, json.loads((tmp_path / "new" / "shard.json").read_text())
    rows = {(row["source"], row["name"]): row for row in content["rows"]}
    assert len(rows) == 8 and all(page.count(name) >= 2 for _, name in rows)
    for (_, name), row in rows.items():
        rate = row["images_per_s"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"] and row["rounds"] == 2
        assert row["of_plain"] == 1 or name != "plain Pillow loop"
    assert [used["rows"] for used in content["memory"]] == [50, 5000]
    assert all(20 < used["process_mb"] < 1000 for used in content["memory"]) or not Path("/proc/self").exists()


def test_bench_shard_names_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.jpg"):
        bench_shard(src=tmp_path, json_out=tmp_path / "shard.json")
    assert not (tmp_path / "shard.json").exists()
