"""How many images/s does each loader give, and how far is it from decoding alone?

python -m bench.io SHARDS. One image is two views. Each row is a process of its own; all read the same shards in the
same run, a turn each a round while the others stand still, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.figures import make_place, spread, write_figures
from bench.rows import Row, Setting, choose_rows
from bench.runner import Runner
from pipeline.augmentation import Augmentation
from shard.cli import check_numbers, run
from shard.errors import InputError
from shard.machine import cores, version_of
from shard.manifest import read_manifest

PUBLISHED_RATE = 152  # images/s: 224,316 images × 100 epochs in 41 hours
GPU_RATE = 1400  # images/s on which an H100 trains a ResNet-50: an estimate, to be fed


def bench(
    shards: Path, *, backends: tuple[str, ...] = (), threads: int = 0, size: int = 224, batch_size: int = 64,
    rounds: int = 5, seconds: float = 2.0, json: Path = Path("bench-io.json"), plot: Path | None = None,
) -> None:  # fmt: skip
    """Print images/s of each loader that can run here and of its limits, and write them as JSON.

    Rows, of which --backends=dali-fused,opencv chooses (the limit, decode, stays): decode and decode-turbojpeg, which
    make nothing; read, which does not decode; dali-fused and torchvision, what trains here; dali-fused-raw, of images
    that need no decoder; the rivals dali-stock, opencv and published; on a GPU also decode-gpu, dali-gpu and
    dali-fused-to-gpu. --threads: 0 for one a core. A row has a turn of --seconds in each round, its warm-up left out;
    median, low and high are over rounds. cold: the first pass of a loader begun anew over files that the page cache has
    been asked to forget. --plot: a picture of the rows.
    """
    check_numbers(rounds=(rounds, 1, 10**4), batch_size=(batch_size, 1, 10**5), threads=(threads, 0, 4096),
                  size=(size, 16, 4096), seconds=(seconds, 0.001, 3600))  # fmt: skip
    manifest = read_manifest(shards)
    if manifest.images("train") < batch_size:
        raise InputError(f"--batch-size={batch_size}: {shards} has {manifest.images('train')} images; lower it")
    augmentation = Augmentation(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    setting = Setting(shards, manifest, augmentation, batch_size, threads or cores())
    for path in (json, plot):
        if path:
            make_place(path)
    with tempfile.TemporaryDirectory(prefix="bench-io-") as scratch:
        rows = choose_rows(setting, Path(scratch), backends)
        try:
            _measure(rows, setting, rounds, seconds)
        finally:
            for row in rows:
                if row.runner:
                    row.runner.end()
    table = _table(rows)
    print(f"\n{shards}: {manifest.images('train')} training images, {manifest.settings['encoding']}; batch {batch_size}"
          f", {size} px, {setting.threads} threads, {rounds} rounds of {seconds:g} s\n")  # fmt: skip
    _print(table)
    settings = {"size": size, "batch_size": batch_size, "threads": setting.threads, "rounds": rounds,
                "seconds": seconds}  # fmt: skip
    write_figures(json, {"shards": manifest.fingerprint(), "settings": settings, "rows": table},
                  opencv=version_of("opencv-python-headless"), numba=version_of("numba"))  # fmt: skip
    if plot:
        _plot(table, plot)
        print(f"{plot} drawn")


def _measure(rows: list[Row], setting: Setting, rounds: int, seconds: float) -> None:
    with tqdm(total=len(rows) * (rounds + 1), desc="turns", unit=" turns", disable=None) as bar:
        for number in range(rounds + 1):
            for row in rows:
                try:
                    _begin(row, setting, seconds) if number == 0 else _turn(row, seconds)
                except RuntimeError as error:
                    said = str(error).replace("--workers=", "--threads=")  # as a loader's workers are called here
                    raise InputError(f"row {row.name}: {said}; or leave it out: name the others with --backends"
                                     ) from error  # fmt: skip
                bar.update()


def _begin(row: Row, setting: Setting, seconds: float) -> None:
    row.runner, row.turns = Runner(row.start, row.arguments), []
    row.runner.turn(0.0)  # compiles, and is not counted
    _forget(row.arguments[0])
    row.cold = row.runner.first_pass(setting.manifest.images("train"), max(seconds, 2.0))


def _turn(row: Row, seconds: float) -> None:
    assert row.runner is not None and row.turns is not None
    row.turns.append(row.runner.turn(seconds))


def _forget(setting: Setting) -> None:
    """Ask the system to drop the tars from its page cache; what lies below, it may keep."""
    for shard in setting.manifest.of_split("train"):
        with (setting.shards / shard.tar).open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _table(rows: list[Row]) -> list[dict[str, Any]]:
    medians = {row.name: statistics.median(turn.images_per_s for turn in row.turns or []) for row in rows}
    table = []
    for row in rows:
        turns = row.turns or []
        rates = [turn.images_per_s for turn in turns]
        waits = sorted(wait for turn in turns for wait in turn.waits_ms)
        shares = [turn.gpu_share for turn in turns if turn.gpu_share is not None]
        table.append({
            "name": row.name,
            "images_per_s": spread(rates),
            "cpu_ms": (cpu_ms := statistics.median(turn.cpu_ms for turn in turns)),
            "share_of_decode": medians[row.name] / medians[row.limit] if row.limit in medians else None,
            "times_published": medians[row.name] / PUBLISHED_RATE,
            "cores_to_feed_gpu": cpu_ms / 1000 * GPU_RATE,
            "wait_ms": {"p50": waits[len(waits) // 2], "p99": waits[min(len(waits) * 99 // 100, len(waits) - 1)]},
            "peak_mb": max(turn.memory_mb for turn in turns),
            "cold_images_per_s": row.cold,
            "gpu_share": statistics.median(shares) if shares else None,
            "rounds": [asdict(turn) | {"waits_ms": len(turn.waits_ms)} for turn in turns],
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
    """Bars of images/s, their spread, and the line of decoding alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in table if row["name"] != "read"]  # ten times the limit: it would shrink all others
    medians = [row["images_per_s"]["median"] for row in shown]
    spread = [[row["images_per_s"]["median"] - row["images_per_s"]["low"] for row in shown],
              [row["images_per_s"]["high"] - row["images_per_s"]["median"] for row in shown]]  # fmt: skip
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(shown) + 1.2), layout="constrained")
    bars = axis.barh([row["name"] for row in shown], medians, xerr=spread, capsize=3,
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
