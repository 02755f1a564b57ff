"""bench.io and bench.shard run and write what others read; no figure is asserted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench.io import Setting, _jpeg_rows
from bench.io import bench as bench_io
from bench.shard import bench as bench_shard
from bench.turns import Runner
from pipeline.loader import has_dali
from pipeline.preview import preview
from pipeline.recipe import Recipe
from shard.errors import InputError
from tests.conftest import Shards, run_module

ROWS = {"torchvision", "published", "opencv", "read", "decode-turbojpeg",
        *(["decode", "dali-fused", "dali-stock"] if has_dali() else [])}  # fmt: skip


def test_every_row_of_bench_io_makes_batches(shards: Shards) -> None:
    """In this process; the command below starts one for each of its rows."""
    setting = Setting(shards.folder, shards.manifest, Recipe(size=32), batch_size=8, threads=1)
    rows = _jpeg_rows(setting)
    assert {row.name for row in rows} >= ROWS
    for row in rows:
        assert list(islice(row.start(*row.arguments), 12)) == [8] * 12, row.name  # more than an epoch


def test_bench_io_prints_writes_and_draws(shards: Shards, tmp_path: Path) -> None:
    out, plot = tmp_path / "new" / "io.json", tmp_path / "io.png"
    wanted = {"torchvision", *(["decode", "dali-fused", "dali-fused-raw"] if has_dali() else [])}
    done = run_module("bench.io", str(shards.folder), f"--json={out}", f"--plot={plot}", "--rounds=2", "--threads=1",
                      "--seconds=0.05", "--batch-size=8", "--size=32",
                      f"--backends={','.join(wanted - {'decode'})},")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) == wanted
    for name, row in rows.items():
        rates, waits = row["images_per_s"], row["wait_ms"]
        assert 0 < rates["low"] <= rates["median"] <= rates["high"] and name in done.stdout
        assert 0 < waits["p50"] <= waits["p99"] and row["cpu_ms"] > 0 and row["peak_mb"] > 50
        assert row["cold_images_per_s"] > 0 and len(row["rounds"]) == 2
        if has_dali():
            share = rates["median"] / rows["decode"]["images_per_s"]["median"]
            assert row["share_of_decode"] == pytest.approx(share)
    assert {"cpu", "cores", "torch", "dali", "numba", "opencv", "commit"} <= set(content["machine"])
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_bench_io_measures_the_rows_asked_for(raw_shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "io.json"
    done = run_module("bench.io", str(raw_shards.folder), f"--json={out}", "--backends=dali-fused-raw", "--rounds=1",
                      "--threads=1", "--seconds=0.05", "--batch-size=8", "--size=32")  # fmt: skip
    assert done.returncode == 0 and "rivals" in done.stderr, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["name"] == "dali-fused-raw" and row["share_of_decode"] is None


def test_bench_io_names_a_row_that_is_none(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row 'dali-fussed' here; there are"):
        bench_io(shards.folder, backends=("dali-fussed",), json=tmp_path / "io.json")
    assert not (tmp_path / "io.json").exists()


def test_bench_io_says_when_a_row_fails(shards: Shards) -> None:
    """A row's process that dies, or raises, ends the bench with its reason."""
    runner = Runner(_fail, ("the reason",))
    with pytest.raises(RuntimeError, match="ValueError: the reason"):
        runner.turn(0.1)
    runner.end()
    runner = Runner(_die, ())
    with pytest.raises(RuntimeError, match="ended with 3"):
        runner.turn(0.1)
    runner.end()


def _fail(reason: str) -> Iterator[int]:
    yield 1
    raise ValueError(reason)


def _die() -> Iterator[int]:
    yield 1
    os._exit(3)


def test_preview_draws_a_png_and_prints_the_parameters(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(shards.folder, out=tmp_path / "views.png", images=2, size=64)
    assert (tmp_path / "views.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert len(re.findall(r"view [12]: crop \d+×\d+ at \d+,\d+.*blur [\d.]+ px, brightness [\d.]+", said)) == 4
    assert "torchvision" in said and (not has_dali() or "dali-fused, dali-stock" in said)


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
