"""Measure how fast the sharder is, how close that is to libjpeg-turbo alone, and how much memory it takes.

python -m bench.shard. All rows read the same bytes. They are interleaved: in each round every row is measured once, so
that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from bench.build_memory import measure_build_memory
from bench.output import CHEXPERT_IMAGES, prepare_output_path, spread, write_results
from shard.assignment import Row, ShardRows
from shard.cli import run
from shard.errors import InputError
from shard.flags import JSON, ROUNDS, Flag, validate_call
from shard.formats import CHEXPERT_FINDINGS
from shard.grey import Grey
from shard.image import choose_scale_denominator, load_grey
from shard.machine import cores
from shard.phantom.archive import phantom
from shard.pool import parallel_map
from shard.record import UNFINISHED
from shard.write_shard import Job, write_shard

QUALITY = 95
SECONDS_PER_ROUND = 1.0  # approximate, for each row
# Name → (width, height), standard deviation of the grain in grey levels, JPEG quality. An image of CheXpert-small's
# size; one that is small enough to be kept bit for bit, unless --size is below 256; a large smooth phantom; a large
# phantom with film grain, near the mean of CheXpert's files (1.96 MB).
SOURCES = {
    "390x320": ((390, 320), 0.0, 90),
    "312x256": ((312, 256), 0.0, 90),
    "2828x2320 smooth": ((2828, 2320), 0.0, 90),
    "2828x2320 grain": ((2828, 2320), 6.5, 90),
}
# Rows of libjpeg-turbo alone. A sharder that decodes all that it writes can't be faster than the last one.
LIMITS = ("decode", "decode + encode", "decode, encode, decode")
MeasureRate = Callable[[], float]  # runs a row once and returns images/s


@validate_call
def bench(
    *,
    src: Annotated[Path | None, Flag("Folder of JPEGs to resize and use as sources.", metavar="DIR",
                                     default="phantoms")] = None,
    size: Annotated[int, Flag("Short side of a stored image in pixels.", low=16, high=4096)] = 256,
    rounds: Annotated[int, ROUNDS] = 5,
    workers: Annotated[tuple[int, ...], Flag("Numbers of sharder processes to measure.", low=1, high=4096,
                                             metavar="N,…")] = (1, 2),
    memory_rows: Annotated[tuple[int, ...], Flag("Table lengths at which to measure memory.", low=1, high=10**9,
                                                 metavar="N,…")] = (2000, CHEXPERT_IMAGES),
    json: Annotated[Path, JSON] = Path("bench-shard.json"),
) -> None:  # fmt: skip
    """Measure images/s of the sharder, of a plain Pillow loop, and of libjpeg-turbo alone.

    The limits decode, with the scaling that the sharder uses; encode, unless the source is kept bit for bit; and decode
    again. The sharder also reads, resizes, checks, hashes and writes. Start-up time is excluded. Memory is the peak of
    the main process and of its largest worker.

        python -m bench.shard --src=CheXpert-v1.0-small/train
    """
    if not workers:
        raise InputError("--workers: needs at least one number of processes, as in --workers=1,2")
    prepare_output_path(json)
    with tempfile.TemporaryDirectory(prefix="bench-shard-") as name:
        folder = Path(name)
        files = {source: _make_source(folder, src, source) for source in SOURCES}
        rows = {source: _rows(folder, files[source], size, workers) for source in SOURCES}
        rates: dict[str, dict[str, list[float]]] = {source: {row: [] for row in rows[source]} for source in rows}
        for _ in tqdm(range(rounds), desc="rounds", unit=" rounds", disable=None):
            for source, measures in rows.items():
                for row, measure_rate in measures.items():
                    rates[source][row].append(measure_rate())
        memory = [measure_build_memory(folder, files["390x320"], count, max(workers)) for count in memory_rows]
    table = summarise_rates(rates, {source: _mean_kilobytes(contents) for source, contents in files.items()})
    _print(table, memory, size)
    write_results(json, {"size": size, "rows": table, "memory": memory})


def _make_source(folder: Path, src: Path | None, name: str) -> list[bytes]:
    """Return a dozen JPEGs of the size and grain of SOURCES[name]."""
    (width, height), grain, quality = SOURCES[name]
    if src is None:
        phantoms = folder / "phantoms"
        if not phantoms.exists():
            phantom(phantoms, images=60, workers=1)
        paths = sorted(phantoms.glob("train/*/*/*_frontal.jpg"))[:12]
    else:
        paths = sorted(src.glob("**/*.jpg"))[:12]
    if not paths:
        raise InputError(f"--src={src}: contains no *.jpg; name a folder of radiographs")
    rng = np.random.default_rng(0)
    contents = []
    for path in paths:
        image = Image.open(path).convert("L").resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + rng.normal(0, grain, (height, width)) if grain else np.asarray(image)
        grey = np.clip(noisy, 0, 255).astype(np.uint8)
        contents.append(simplejpeg.encode_jpeg(grey[:, :, None], quality=quality, colorspace="GRAY"))
    return contents


def _mean_kilobytes(contents: list[bytes]) -> float:
    return sum(map(len, contents)) / len(contents) / 1e3


def _rows(folder: Path, contents: list[bytes], size: int, workers: tuple[int, ...]) -> dict[str, MeasureRate]:
    """Return the rows of one source by name. Each processes the same images as often as fits SECONDS_PER_ROUND."""
    source = Path(tempfile.mkdtemp(dir=folder))
    (source / "out" / UNFINISHED).mkdir(parents=True)
    names = [f"{number}.jpg" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (source / name).write_bytes(content)
    resized = [np.ascontiguousarray(load_grey(source / name, size))[:, :, None] for name in names]

    def plain(number: int) -> None:
        image = Image.open(source / names[number]).convert("L")
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        image.save(io.BytesIO(), "JPEG", quality=QUALITY)

    seconds_per_image = _seconds(plain, len(names)) / len(names)
    repeats = max(1, round(SECONDS_PER_ROUND / seconds_per_image / len(names)))
    rows: dict[str, MeasureRate] = {
        name: functools.partial(_rate, work, len(names), repeats)
        for name, work in {"plain Pillow loop": plain, **_limits(contents, resized, size)}.items()
    }
    for count in workers:
        measure_rate = functools.partial(_sharder_rate, source, names, 2 * repeats, size, count)
        rows[f"sharder, {count} worker{'s' * (count > 1)}"] = measure_rate
    return rows


def _limits(contents: list[bytes], resized: list[Grey], size: int) -> dict[str, Callable[[int], None]]:
    """Return the rows of libjpeg-turbo alone that apply: functions of the number of an image.

    resized: the images as they are encoded, [H, W, 1].
    """
    encoded = [simplejpeg.encode_jpeg(image, quality=QUALITY, colorspace="GRAY") for image in resized]
    height, width, *_ = simplejpeg.decode_jpeg_header(contents[0])
    factor = choose_scale_denominator(width, height, size)
    smallest = {"min_height": -(-height // factor), "min_width": -(-width // factor)}

    def decode(number: int) -> None:
        simplejpeg.decode_jpeg(contents[number], "GRAY", **smallest)

    def decode_and_encode(number: int) -> None:
        decode(number)
        simplejpeg.encode_jpeg(resized[number], quality=QUALITY, colorspace="GRAY")

    def decode_encode_decode(number: int) -> None:
        decode_and_encode(number)
        simplejpeg.decode_jpeg(encoded[number], "GRAY")

    works = dict(zip(LIMITS, (decode, decode_and_encode, decode_encode_decode), strict=True))
    kept = min(width, height) <= size
    return {name: works[name] for name in (LIMITS[:1] if kept else LIMITS[1:])}


def _rate(work: Callable[[int], None], count: int, repeats: int) -> float:
    return repeats * count / _seconds(work, count, repeats)


def _seconds(work: Callable[[int], None], count: int, repeats: int = 1) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        for number in range(count):
            work(number)
    return time.perf_counter() - begun


def _sharder_rate(source: Path, names: list[str], repeats: int, size: int, workers: int) -> float:
    """Return images/s of writing shards. The first job of each worker, which includes its start-up, is excluded."""
    def job(stem: str, copies: int) -> Job:
        rows = [Row(f"{copy}_{name[:-4]}", name, "p", "", "", None, (1,) * len(CHEXPERT_FINDINGS))
                for copy in range(copies) for name in names]  # fmt: skip
        return Job(ShardRows(stem, "train", rows), CHEXPERT_FINDINGS, source, source / "out", size, "jpeg", QUALITY)

    # With the records of the previous round, write_shard would skip all jobs. Its shards would be overwritten.
    for file in (*(source / "out" / UNFINISHED).iterdir(), *(source / "out").glob("*-*.*")):
        file.unlink()
    # Two shards for each worker, of nearly 1,000 images if these are small, as in a build.
    jobs = [job(f"warm-{number}", 1) for number in range(workers)]
    jobs += [job(f"turn-{number}", -(-repeats // 2)) for number in range(2 * workers)]
    images = sum(len(one.assigned.rows) for one in jobs[workers:])
    results = parallel_map(jobs, len(jobs), write_shard, images=images, label="bench", workers=workers,
                           preload="shard.preload")  # fmt: skip
    for _ in range(workers):
        next(results)
    begun = time.perf_counter()
    for _ in results:
        pass
    return images / (time.perf_counter() - begun)


def summarise_rates(rates: dict[str, dict[str, list[float]]], kilobytes: dict[str, float]) -> list[dict[str, Any]]:
    """Return each row's statistics, as written to JSON.

    of_limit: as a fraction of the first row of LIMITS; of_checked_limit: of the last one.
    rates: source → row → images/s of each round. kilobytes: source → mean size of its files.
    """
    table: list[dict[str, Any]] = []
    for source, rows in rates.items():
        limits = [name for name in LIMITS if name in rows]
        for name, values in rows.items():
            table.append({
                "source": source, "kilobytes": kilobytes[source], "name": name, "rounds": len(values),
                "of_plain": _median_ratio(values, rows["plain Pillow loop"]), "images_per_s": spread(values),
                "of_limit": _median_ratio(values, rows[limits[0]]),
                "of_checked_limit": _median_ratio(values, rows[limits[-1]]),
            })  # fmt: skip
    return table


def _median_ratio(values: list[float], base: list[float]) -> float:
    # Ratios are taken within each round, so that load on the machine affects both sides.
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def _print(table: list[dict[str, Any]], memory: list[dict[str, int]], size: int) -> None:
    print(f"\nshort side {size} px, quality {QUALITY}, {cores()} cores")
    print(f"{'source':18}{'kB':>6}  {'row':24}{'images/s':>10}{'low':>9}{'high':>9}{'× plain':>9}{'of limit':>10}"
          f"{'+ decode':>10}")  # fmt: skip
    for row in table:
        rate = row["images_per_s"]
        print(f"{row['source']:18}{row['kilobytes']:6.0f}  {row['name']:24}{rate['median']:10.1f}{rate['low']:9.1f}"
              f"{rate['high']:9.1f}{row['of_plain']:8.2f}×{row['of_limit']:10.0%}"
              f"{row['of_checked_limit']:10.0%}")  # fmt: skip
    for build in memory:
        print(f"table of {build['rows']} rows: peak memory {build['process_mb']} MB in the main process, "
              f"{build['largest_worker_mb']} MB in the largest worker")  # fmt: skip


if __name__ == "__main__":
    run("python -m bench.shard", bench)
