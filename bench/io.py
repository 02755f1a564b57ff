"""Measure how many images/s each loader delivers, and how close that is to decoding alone.

python -m bench.io SHARDS. One image is two views. Every loader runs in a separate process and reads the same shards.
Measurements are interleaved: in each round every loader is measured once while the others are suspended, so that other
load on the machine affects all of them alike.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from bench.output import prepare_output_path, save_results, spread, write_results
from bench.process import MeasuredProcess, wait_for_imports
from bench.rows import LoaderSettings, Row, choose_rows
from pipeline.augmentation import Augmentation
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.cli import run
from shard.errors import InputError
from shard.flags import JSON, ROUNDS, SHARDS, Flag, validate_call
from shard.machine import cores, version_of
from shard.manifest import read_manifest

PUBLISHED_RATE = 152  # images/s: 224,316 images × 100 epochs in 41 hours
GPU_RATE = 1400  # images/s: estimate of the rate at which an H100 trains a ResNet-50


@validate_call
def bench(
    shards: Annotated[Place, SHARDS], *,
    backends: Annotated[tuple[str, ...], Flag("Rows to measure; decode is always measured.", "rows", metavar="NAME,…",
                                              default="all")] = (),
    threads: Annotated[int, Flag("Loader threads; 0 starts one per core.", "rows", low=0, high=4096)] = 0,
    size: Annotated[int, Flag("Side of a view in pixels.", "rows", low=16, high=4096)] = 224,
    batch_size: Annotated[int, Flag("Images per batch.", "rows", low=1, high=10**5)] = 64,
    rounds: Annotated[int, replace(ROUNDS, group="measurement")] = 5,
    seconds: Annotated[float, Flag("Seconds for which a row is measured in each round.", "measurement",
                                     low=0.001, high=3600)] = 2.0,
    json: Annotated[Path, replace(JSON, group="measurement")] = Path("bench-io.json"),
    plot: Annotated[Path | None, Flag("Plot the rows to this file.", "measurement", metavar="FILE")] = None,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Measure images/s of every loader that can run here, and of decoding alone.

    The rows are decode and decode-turbojpeg, which only decode; read, which does not decode; dali-fused, torchvision
    and dali-fused-raw, the loaders of python -m train; and the baselines dali-stock, opencv and published. A GPU adds
    decode-gpu, dali-gpu and dali-fused-to-gpu. The column "cold" is the first pass of a new loader over files that are
    not in the page cache. docs/performance.md has figures.

        python -m bench.io shards --backends=dali-fused,opencv
    """
    folder = open_shards(shards, cache, complete=True)
    manifest = read_manifest(folder)
    if manifest.images("train") < batch_size:
        raise InputError(f"--batch-size={batch_size}: {shards} has {manifest.images('train')} images; lower it")
    augmentation = Augmentation(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    loader_settings = LoaderSettings(folder, manifest, augmentation, batch_size, threads or cores())
    for path in (json, plot):
        if path:
            prepare_output_path(path)
    settings = {"size": size, "batch_size": batch_size, "threads": loader_settings.threads, "rounds": rounds,
                "seconds": seconds}  # fmt: skip
    versions = {"opencv": version_of("opencv-python-headless"), "numba": version_of("numba")}
    content, table = {"shards": manifest.fingerprint(), "settings": settings}, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="bench-io-") as scratch:
        rows = choose_rows(loader_settings, Path(scratch), backends)
        try:
            for table in _measure(rows, manifest.images("train"), rounds, seconds):
                save_results(json, {**content, "rows": table}, **versions)
        finally:
            for row in rows:
                if row.process:
                    row.process.close()
    print(f"\n{shards}: {manifest.images('train')} training images, {manifest.settings['encoding']}; batch {batch_size}"
          f", {size} px, {loader_settings.threads} threads, {rounds} rounds of {seconds:g} s\n")  # fmt: skip
    _print(table)
    write_results(json, {**content, "rows": table}, **versions)
    if plot:
        _plot(table, plot)
        print(f"{plot} written")


def _measure(rows: list[Row], images: int, rounds: int, seconds: float) -> Iterator[list[dict[str, Any]]]:
    """Yield the table of the rows measured so far, after each measurement."""
    processes = dict[str, MeasuredProcess]()
    for row in rows:
        row.process = processes[row.name] = MeasuredProcess(row.loader.start, (row.settings,))
    wait_for_imports(processes)
    with tqdm(total=len(rows) * (rounds + 1), desc="measuring", unit=" rows", disable=None) as bar:
        for number in range(1 + rounds):  # the first round starts the loaders
            for row in rows:
                try:
                    _measure_row(row, number, images, seconds)
                except RuntimeError as error:
                    message = str(error).replace("--workers=", "--threads=")  # this command's name for the flag
                    raise InputError(f"row {row.name}: {message}; or omit the row by naming the others with --backends"
                                     ) from error  # fmt: skip
                bar.update()
                if number:
                    if bar.disable:  # in a log
                        rate = row.measurements[-1].images_per_s
                        print(f"round {number}: {row.name} {rate:,.0f} images/s", flush=True)
                    yield summarise_rows([row for row in rows if row.measurements])


def _measure_row(row: Row, number: int, images: int, seconds: float) -> None:
    assert row.process
    if number:
        row.measurements.append(row.process.measure(seconds))
        return
    row.process.measure(0.0)  # compiles; the result is discarded
    _drop_from_page_cache(row.settings)
    row.cold_images_per_s = row.process.measure_first_pass(images, max(seconds, 2.0))


def _drop_from_page_cache(settings: LoaderSettings) -> None:
    """Ask the system to drop the training tars from its page cache. Caches of the storage below are not affected."""
    for shard in settings.manifest.of_split("train"):
        with (settings.shards / shard.tar).open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summarise_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Return each row's statistics over rounds, as written to JSON."""
    medians = {row.name: statistics.median(one.images_per_s for one in row.measurements) for row in rows}
    table = []
    for row in rows:
        waits = sorted(wait for one in row.measurements for wait in one.waits_ms)
        gpu_shares = [one.gpu_share for one in row.measurements if one.gpu_share is not None]
        limit = row.loader.limit
        table.append({
            "name": row.name,
            "images_per_s": spread([one.images_per_s for one in row.measurements]),
            "cpu_ms": (cpu_ms := statistics.median(one.cpu_ms for one in row.measurements)),
            "share_of_decode": medians[row.name] / medians[limit] if limit in medians else None,
            "times_published": medians[row.name] / PUBLISHED_RATE,
            "cores_to_feed_gpu": cpu_ms / 1000 * GPU_RATE,
            "wait_ms": {"p50": waits[len(waits) // 2], "p99": waits[min(len(waits) * 99 // 100, len(waits) - 1)]},
            "peak_mb": max(one.memory_mb for one in row.measurements),
            "cold_images_per_s": row.cold_images_per_s,
            "gpu_share": statistics.median(gpu_shares) if gpu_shares else None,
            "rounds": [asdict(one) | {"waits_ms": len(one.waits_ms)} for one in row.measurements],
        })  # fmt: skip
    return table


def _print(table: list[dict[str, Any]]) -> None:
    print(f"{'row':18}{'images/s':>9} {'[low, high]':15}{'of decode':>10}{'× 152/s':>9}{'CPU ms':>8}"
          f"{'cores for 1,400/s':>19}{'wait p50':>10}{'p99 ms':>8}{'MB':>7}{'cold':>8}{'GPU':>6}")  # fmt: skip
    for row in table:
        rate, wait = row["images_per_s"], row["wait_ms"]
        print(f"{row['name']:18}{rate['median']:9,.0f} {'[{low:,.0f}, {high:,.0f}]'.format(**rate):15}"
              f"{_percent(row['share_of_decode']):>10}{row['times_published']:8.1f}×{row['cpu_ms']:8.2f}"
              f"{row['cores_to_feed_gpu']:19.1f}{wait['p50']:10.1f}{wait['p99']:8.1f}{row['peak_mb']:7,.0f}"
              f"{row['cold_images_per_s']:8,.0f}{_percent(row['gpu_share']):>6}")  # fmt: skip


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.0%}"


def _plot(table: list[dict[str, Any]], path: Path) -> None:
    """Plot images/s as bars with their range, and the rate of decoding alone as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in table if row["name"] != "read"]  # ten times the limit: it would dwarf the others
    medians = [row["images_per_s"]["median"] for row in shown]
    ranges = [[row["images_per_s"]["median"] - row["images_per_s"]["low"] for row in shown],
              [row["images_per_s"]["high"] - row["images_per_s"]["median"] for row in shown]]  # fmt: skip
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(shown) + 1.2), layout="constrained")
    bars = axis.barh([row["name"] for row in shown], medians, xerr=ranges, capsize=3,
                     color=["0.75" if row["name"].startswith("decode") else "tab:blue" for row in shown])  # fmt: skip
    axis.bar_label(bars, [f" {median:,.0f}" for median in medians], padding=4)
    limits = [row["images_per_s"]["median"] for row in shown if row["name"] == "decode"]
    for limit in limits:
        axis.axvline(limit, color="tab:red", linestyle="--", label="decoding alone")
        axis.legend(loc="lower right")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("images/s, two views each")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run("python -m bench.io", bench)
