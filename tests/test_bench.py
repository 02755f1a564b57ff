"""bench.io, bench.shard, bench.step, bench.memory and bench.gpu_check: their statistics, output and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from bench import io, memory, precision, shard, step
from bench.gpu_check import check as gpu_check
from bench.gpu_check import render_page
from bench.gpu_parts import Check, list_parts
from bench.process import WARM_UP, LoaderMeasurement, MeasuredProcess
from bench.rows import JPEG_LOADERS, RAW_LOADERS, LoaderSettings, Row, available_loaders, choose_rows
from bench.step_rows import Step, StepSettings, available_rows
from pipeline.augmentation import Augmentation
from pipeline.loader import has_dali
from shard.errors import InputError
from tests.conftest import Shards, run_module
from tests.jobs import exit_after_one, raise_after_one

CPU_LOADERS = {"decode-turbojpeg", "read", "opencv", "torchvision", "published",
               *(["decode", "dali-fused", "dali-fused-raw", "dali-stock"] if has_dali() else [])}  # fmt: skip


def settings_for(shards: Shards) -> LoaderSettings:
    return LoaderSettings(shards.folder, shards.manifest, Augmentation(size=32), batch_size=8, threads=1)


def test_each_loader_yields_full_batches_for_more_than_an_epoch(shards: Shards) -> None:
    loaders = available_loaders("jpeg")
    assert loaders.keys() >= CPU_LOADERS
    for name, loader in loaders.items():
        assert list(islice(loader.start(settings_for(shards)), 12)) == [8] * 12, name


def test_raw_shards_have_no_decoding_limit_and_no_baselines(raw_shards: Shards, tmp_path: Path) -> None:
    rows = [row.name for row in choose_rows(settings_for(raw_shards), tmp_path, ())]
    assert rows == ["dali-fused-raw", "read", "torchvision"][not has_dali() :]


def test_io_summary_matches_figures_worked_out_by_hand(shards: Shards) -> None:
    def row(name: str, *measurements: LoaderMeasurement) -> Row:
        loader = {**JPEG_LOADERS, **RAW_LOADERS}[name]
        return Row(name, loader, settings_for(shards), None, list(measurements), cold_images_per_s=7.0)

    waits = [float(number) for number in range(100)]
    decode = row("decode", LoaderMeasurement(400.0, 1.0, [1.0], 50.0, None))
    fused = row("dali-fused", LoaderMeasurement(304.0, 2.0, waits[50:], 80.0, 0.5),
                LoaderMeasurement(300.0, 3.0, waits[:50], 90.0, 0.9), LoaderMeasurement(310.0, 5.0, [], 70.0, 0.6))
    _, summary = io.summarise_rows([decode, fused])
    assert summary["images_per_s"] == {"median": 304.0, "low": 300.0, "high": 310.0}
    assert summary["share_of_decode"] == 304 / 400
    assert summary["times_published"] == 2.0  # the published run processed 152 images/s
    assert summary["cpu_ms"] == 3.0 and summary["cores_to_feed_gpu"] == pytest.approx(0.003 * 1400)
    assert summary["wait_ms"] == {"p50": 50.0, "p99": 99.0}
    assert summary["peak_mb"] == 90.0 and summary["gpu_share"] == 0.6 and summary["cold_images_per_s"] == 7.0
    (alone,) = io.summarise_rows([fused])
    assert alone["share_of_decode"] is None


@pytest.mark.long
def test_bench_io_measures_the_chosen_rows(shards: Shards, tmp_path: Path) -> None:
    out, plot = tmp_path / "new" / "io.json", tmp_path / "io.png"
    names = {"decode", "dali-fused", "dali-fused-raw"} if has_dali() else {"torchvision"}
    done = run_module("bench.io", str(shards.folder), f"--json={out}", f"--plot={plot}", "--rounds=2", "--threads=1",
                      "--seconds=0.05", "--batch-size=8", "--size=32",
                      f"--backends={','.join(names - {'decode'})},")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert {row["name"] for row in content["rows"]} == names
    for row in content["rows"]:
        rates, waits = row["images_per_s"], row["wait_ms"]
        assert 0 < rates["low"] <= rates["median"] <= rates["high"] and row["name"] in done.stdout
        assert 0 < waits["p50"] <= waits["p99"] and row["cpu_ms"] > 0 and row["peak_mb"] > 50
        assert row["cold_images_per_s"] > 0 and len(row["rounds"]) == 2
    assert {"cpu", "cores", "torch", "dali", "numba", "opencv", "commit"} <= set(content["machine"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_io_refuses_an_unknown_row(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row 'dali-fussed' here; available: "):
        io.bench(shards.folder, backends=("dali-fussed",), json=tmp_path / "io.json")
    assert not (tmp_path / "io.json").exists()


def test_measured_process_reports_how_it_failed() -> None:
    process = MeasuredProcess(raise_after_one, ("the reason",))
    with pytest.raises(RuntimeError, match="ValueError: the reason"):
        process.measure(0.1)
    process.close()
    process = MeasuredProcess(exit_after_one, ())
    with pytest.raises(RuntimeError, match="exited with status 3"):
        process.measure(0.1)
    process.close()


def test_sharder_ratios_are_taken_within_each_round() -> None:
    """The machine was half as fast in the second round, for all rows. The ratios of the medians would be 2 and 0.5."""
    rates = {"390x320": {"plain Pillow loop": [10.0, 5.0, 8.0], "decode + encode": [40.0, 20.0, 32.0],
                         "decode, encode, decode": [30.0, 12.0, 20.0],
                         "sharder, 1 worker": [30.0, 15.0, 16.0]}}  # fmt: skip
    *_, sharder = shard.summarise_rates(rates, {"390x320": 19.0})
    assert sharder == {
        "source": "390x320", "kilobytes": 19.0, "name": "sharder, 1 worker", "rounds": 3, "of_plain": 3.0,
        "images_per_s": {"median": 16.0, "low": 15.0, "high": 30.0}, "of_limit": 0.75,
        "of_checked_limit": 1.0,
    }  # fmt: skip


@pytest.mark.long
def test_bench_shard_measures_every_row_and_the_memory_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "SECONDS_PER_ROUND", 0.02)
    monkeypatch.setattr(shard, "SOURCES", {"390x320": ((390, 320), 0.0, 90), "78x64": ((78, 64), 3.0, 90)})
    shard.bench(size=64, rounds=2, workers=(1, 2), memory_rows=(50, 5000), json=tmp_path / "new" / "shard.json")
    content = json.loads((tmp_path / "new" / "shard.json").read_text())
    assert [(row["source"], row["name"]) for row in content["rows"]] == [
        (source, name) for source, limits in (
            ("390x320", ("decode + encode", "decode, encode, decode")), ("78x64", ("decode",)))
        for name in ("plain Pillow loop", *limits, "sharder, 1 worker", "sharder, 2 workers")]  # fmt: skip
    for row in content["rows"]:
        rate = row["images_per_s"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"] and row["rounds"] == 2
    assert [build["rows"] for build in content["memory"]] == [50, 5000]
    assert all(20 < build["process_mb"] < 1000 for build in content["memory"]) or not Path("/proc/self").exists()


def test_bench_shard_refuses_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains no \*\.jpg"):
        shard.bench(src=tmp_path, json=tmp_path / "shard.json")
    assert not (tmp_path / "shard.json").exists()


@pytest.mark.parametrize(("arch", "name"), [
    ("resnet18", "published"), pytest.param("resnet18", "plain-amp", marks=pytest.mark.long), ("resnet18", "ours"),
    ("timm/mobilenetv3_small_050", "plain"), ("timm/mobilenetv3_small_050", "ours"),
])  # fmt: skip
def test_each_training_loop_times_every_part_of_a_step(shards: Shards, arch: str, name: str) -> None:
    steps = list(islice(available_rows(arch)[name](StepSettings(shards.folder, arch, 32, 8, 1)), 2))
    assert all(one.images == 8 and min(one.data, one.forward_backward, one.optimizer) > 0 for one in steps)


def test_step_summary_matches_figures_worked_out_by_hand() -> None:
    """The machine was half as fast in the second round, for both rows."""
    def measured(*seconds: float) -> step.StepMeasurement:
        return step.StepMeasurement([Step(64, *seconds)], None)

    row = step.summarise_row("ours", [measured(0.1, 0.6, 0.3), measured(0.2, 1.2, 0.6)],
                             [measured(0.0, 4.0, 0.0), measured(0.0, 8.0, 0.0)])  # fmt: skip
    assert row["images_per_s"] == pytest.approx({"median": 48.0, "low": 32.0, "high": 64.0})
    assert row["times_published"] == pytest.approx({"median": 4.0, "low": 4.0, "high": 4.0})
    assert row["shares"] == pytest.approx({"data": 0.1, "forward_backward": 0.6, "optimizer": 0.3})
    assert row["hours"] == pytest.approx(224_316 * 100 / 48 / 3600) and row["steps"] == 2


def test_models_of_timm_are_compared_with_the_plain_loop() -> None:
    assert list(available_rows("resnet50"))[:2] == ["published", "plain-amp"]
    assert list(available_rows("timm/densenet121"))[:2] == ["plain", "plain-amp"]
    taken = [step.StepMeasurement([Step(64, 0.0, 1.0, 0.0)], None)]
    row = step.summarise_row("ours", taken, taken, "plain")
    assert row["times_plain"]["median"] == 1 and "times_published" not in row


@pytest.mark.long
def test_bench_step_measures_the_chosen_row(shards: Shards, tmp_path: Path) -> None:
    step.bench(shards.folder, rows=("ours",), arch="resnet18", size=32, batch_size=8, workers=1, rounds=1, seconds=0.01,
               json=tmp_path / "new" / "step.json")  # fmt: skip
    (row,) = json.loads((tmp_path / "new" / "step.json").read_text())["rows"]
    assert row["name"] == "ours" and row["images_per_s"]["median"] > 0 and row["times_published"] is None
    assert row["warm_up_steps"] >= 1


def test_steps_before_all_pipelines_have_run_twice_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU 2 s were enough only for the steps in which pipelines and cuDNN started, of 0.3 s each."""
    taken = step.measure_steps((Step(number, 0, 0, 0) for number in range(1000)), 0.0)
    assert taken.warm_up == WARM_UP and [one.images for one in taken.steps] == [WARM_UP]
    if has_dali():
        from pipeline.dali import CPU_PIPELINES

        assert WARM_UP >= 2 * CPU_PIPELINES
    monkeypatch.setattr(step, "WARM_UP_S", 0.0)  # where steps are slow
    taken = step.measure_steps((Step(number, 0, 0, 0) for number in range(1000)), 0.0)
    assert taken.warm_up == 1 and [one.images for one in taken.steps] == [1]


@pytest.mark.long
def test_bench_step_leaves_what_it_measured_before_an_error(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "available_rows", lambda arch: {"published": endless_steps, "ours": fail})
    with pytest.raises(InputError, match="row ours: ValueError: no memory"):
        step.bench(shards.folder, batch_size=8, rounds=1, seconds=0.0, json=tmp_path / "step.json")
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert row["name"] == "published" and row["warm_up_steps"] == WARM_UP


def endless_steps(settings: StepSettings) -> Iterator[Step]:
    while True:
        yield Step(8, 0.1, 0.1, 0.1)


def fail(settings: StepSettings) -> Iterator[Step]:
    raise ValueError("no memory")
    yield


def test_bench_step_refuses_an_unknown_row(shards: Shards) -> None:
    with pytest.raises(InputError, match="no row 'our'; available: published, plain-amp, ours, ours-compiled"):
        step.bench(shards.folder, rows=("our",), batch_size=8)


@pytest.mark.long
def test_bench_precision_measures_every_variant(tmp_path: Path) -> None:
    precision.bench(archs=("timm/mobilenetv3_small_050",), size=32, batch_size=4, rounds=2,
                    json=tmp_path / "new" / "precision.json")  # fmt: skip
    rows = json.loads((tmp_path / "new" / "precision.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(precision.VARIANTS)
    assert all(row["images_per_s"]["low"] > 0 for row in rows) and sum(row["chosen"] for row in rows) == 1


def test_precision_ratios_are_taken_within_each_round() -> None:
    """The machine was half as fast in the second round."""
    seconds = [{"fp32, contiguous": 1.0, "bf16, contiguous": 0.5}, {"fp32, contiguous": 2.0, "bf16, contiguous": 1.0}]
    *_, row = precision.summarise_variants("resnet18", 8, seconds)
    assert row["times_fp32_contiguous"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert row["images_per_s"] == {"median": 12.0, "low": 8.0, "high": 16.0}


def test_bench_precision_refuses_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--archs=timm/resnet18x: .*closest: "):
        precision.bench(archs=("resnet18", "timm/resnet18x"), json=tmp_path / "precision.json")
    assert not (tmp_path / "precision.json").exists()


@pytest.mark.long
def test_bench_memory_measures_batches_in_ascending_order(tmp_path: Path) -> None:
    memory.bench(batches=(16, 4), modes=("micro-batch",), micro_batch=4, arch="resnet18", size=32,
                 json=tmp_path / "memory.json")  # fmt: skip
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [4, 16]
    assert all(row["peak_mb"] > 100 and row["images_per_s"] > 0 for row in rows)


def test_bench_memory_refuses_a_batch_that_micro_batches_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"--batches=4,6: 6 is not a multiple of --micro-batch=4"):
        memory.bench(batches=(4, 6), micro_batch=4)


def test_bench_memory_skips_a_batch_that_would_not_fit() -> None:
    previous = [{"batch": 64, "peak_mb": 100.0}, {"batch": 128, "peak_mb": 180.0}, {"batch": 256, "peak_mb": None}]
    assert memory.estimate_peak_mb(512, previous) == 180 + 1.25 * 384
    assert memory.estimate_peak_mb(128, previous[:1]) == 0
    huge = [{"batch": 1, "peak_mb": 1e9}, {"batch": 2, "peak_mb": 2e9}]
    row = memory.measure_row("plain", 3, huge, 1, "resnet18", 32)
    assert row["peak_mb"] is None and row["estimate_mb"] == 3e9 > row["there_mb"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: make gpu-check is run by hand")
def test_gpu_check_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GPU: PyTorch finds none"):
        gpu_check(out=tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_gpu_check_lists_parts_without_time_in_order(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu_check.LEAST_S", 60)
    with pytest.raises(InputError, match=r"^views, killed and resumed, bench\.io, bench\.step, --views=auto, tests, "):
        gpu_check(shards=shards.folder, out=tmp_path, minutes=0.1, on_cpu=True)
    parts = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert [part["name"] for part in parts][-2:] == ["bench.memory", "--compile"]
    assert all(part["text"] == "no time was left" for part in parts)
    assert (tmp_path / "gpu.md").read_text().count("FAILED") == len(parts)
    for name, share, _ in list_parts(shards.folder, tmp_path, on_cpu=False, minutes=5):
        assert 0 < share <= 1, name


def test_gpu_check_page_marks_failed_checks() -> None:
    text = render_page([Check("tests", "python -m pytest", True, 3.2, "5 passed"),
                        Check("views", "x", False, 1, "late")], {"gpu": "H100"})  # fmt: skip
    assert "- gpu: H100" in text and "## tests: ok" in text and "## views: FAILED" in text and "5 passed" in text
