"""bench.io and bench.shard run and write what others read; no figure is asserted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import memory, step
from bench.gpu_check import Check, page
from bench.gpu_check import check as gpu_check
from bench.io import bench as bench_io
from bench.rows import Setting, jpeg_rows
from bench.runner import Runner
from bench.shard import bench as bench_shard
from pipeline.augmentation import Augmentation
from pipeline.loader import has_dali
from pipeline.preview import plot_preview, preview
from shard.errors import InputError
from shard.read import read_labels
from tests.conftest import Shards, run_module

ROWS = {"torchvision", "published", "opencv", "read", "decode-turbojpeg",
        *(["decode", "dali-fused", "dali-stock"] if has_dali() else [])}  # fmt: skip


def test_every_row_of_bench_io_makes_batches(shards: Shards) -> None:
    """In this process; the command below starts one for each of its rows."""
    setting = Setting(shards.folder, shards.manifest, Augmentation(size=32), batch_size=8, threads=1)
    rows = jpeg_rows(setting)
    assert {row.name for row in rows} >= ROWS
    for row in rows:
        assert list(islice(row.start(*row.arguments), 12)) == [8] * 12, row.name  # more than an epoch


def test_bench_io_prints_writes_and_draws(shards: Shards, tmp_path: Path) -> None:
    out, plot = tmp_path / "new" / "io.json", tmp_path / "io.png"
    wanted = {"decode", "dali-fused", "dali-fused-raw"} if has_dali() else {"torchvision"}
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


def test_preview_says_which_second_views_are_of_a_partner(partner_shards: Shards) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    patient_of = read_labels(folder, manifest, ("train",)).set_index("key")["patient"]

    def pairs(probability: float) -> list[tuple[str, str]]:
        _, said = plot_preview(folder, Augmentation(size=32, patient_positive=probability), images=8, seed=0)
        return re.findall(r"^(\S+) view 2 \(of (\S+)\): ", "\n".join(said), re.MULTILINE)

    assert not pairs(0.0) and len(found := pairs(1.0)) > 2
    assert all(one != other and patient_of[one] == patient_of[other] for one, other in found)


def test_bench_shard_prints_every_row_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.shard.TURN_S", 0.02)
    monkeypatch.setattr("bench.shard.SOURCES", {"390x320": ((390, 320), 0.0, 90), "1000x800": ((1000, 800), 3.0, 90)})
    bench_shard(size=64, rounds=2, workers=(1, 2), memory_rows=(50, 5000), json=tmp_path / "new" / "shard.json")
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
        bench_shard(src=tmp_path, json=tmp_path / "shard.json")
    assert not (tmp_path / "shard.json").exists()


@pytest.mark.parametrize("start", [step._published, step._plain_amp, step._ours])
def test_every_row_of_bench_step_trains(shards: Shards, start: Any) -> None:
    steps = list(islice(start(step.Setting(shards.folder, "resnet18", 32, 8, 1)), 2))
    assert all(one.images == 8 and min(one.data, one.forward_backward, one.optimizer) > 0 for one in steps)


def test_bench_step_prints_and_writes(shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step.bench(shards.folder, rows=("ours",), arch="resnet18", size=32, batch_size=8, workers=1, rounds=1, seconds=0.01,
               json=tmp_path / "new" / "step.json")  # fmt: skip
    (row,) = json.loads((tmp_path / "new" / "step.json").read_text())["rows"]
    rate = row["images_per_s"]
    assert 0 < rate["low"] <= rate["median"] <= rate["high"] and row["times_published"] is None
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert row["hours"] == pytest.approx(224_316 * 100 / rate["median"] / 3600)
    assert "hours = 224,316 images × 100 epochs ÷ images/s ÷ 3,600" in capsys.readouterr().out
    with pytest.raises(InputError, match="no row 'our'; there are published, plain-amp, ours, ours-compiled"):
        step.bench(shards.folder, rows=("our",), batch_size=8)


def test_bench_step_takes_ratios_round_by_round() -> None:
    """A round in which the machine was half as fast for both counts as any other."""
    def turn(seconds: float) -> Any:
        return [step.Step(64, 0.0, seconds, 0.0)], None

    row = step._summarise("ours", [turn(1.0), turn(2.0)], [turn(4.0), turn(8.0)])
    assert row["times_published"] == {"median": 4.0, "low": 4.0, "high": 4.0}


def test_bench_memory_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.bench(batches=(16, 4), modes=("micro-batch",), micro_batch=4, arch="resnet18", size=32,
                 json=tmp_path / "memory.json")  # fmt: skip
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [4, 16]
    assert all(row["peak_mb"] > 100 and row["images_per_s"] > 0 for row in rows)
    assert "micro-batch" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--batches=4,6: 6 is no multiple of --micro-batch=4"):
        memory.bench(batches=(4, 6), micro_batch=4)


def test_bench_memory_does_not_try_what_cannot_fit() -> None:
    before = [{"batch": 64, "peak_mb": 100.0}, {"batch": 128, "peak_mb": 180.0}, {"batch": 256, "peak_mb": None}]
    assert memory._estimate(512, before) == 180 + 1.25 * 384
    assert memory._estimate(128, before[:1]) == 0
    known = [{"batch": 1, "peak_mb": 1e9}, {"batch": 2, "peak_mb": 2e9}]
    row = memory._row("plain", 3, known, 1, "resnet18", 32)
    assert row["peak_mb"] is None and row["estimate_mb"] == 3e9 > row["there_mb"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: make gpu-check is run by hand")
def test_gpu_check_wants_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GPU: PyTorch sees none here"):
        gpu_check(out=tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_the_page_of_gpu_check_says_what_failed() -> None:
    text = page([Check("tests", "python -m pytest", True, 3.2, "5 passed"), Check("views", "x", False, 1, "late")],
                {"gpu": "H100"})  # fmt: skip
    assert "- gpu: H100" in text and "## tests: ok" in text and "## views: FAILED" in text and "5 passed" in text
