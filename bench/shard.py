"""How fast does the sharder go, how far is it from decoding and encoding alone, and what memory does it take?

python -m bench.shard. All rows read the same bytes in the same run, a turn each a round, so that what else the
machine does falls on all of them alike.
"""

from __future__ import annotations

import csv
import functools
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from bench.figures import ARCHIVE, make_place, spread, write_figures
from shard.assignment import Row, ShardRows
from shard.cli import check_numbers, run
from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS
from shard.image import choose_scale_denominator, load_grey
from shard.machine import cores
from shard.phantom.archive import phantom
from shard.pool import parallel_map
from shard.record import UNFINISHED
from shard.write_shard import Job, write_shard

QUALITY = 95
TURN_S = 1.0  # about what a row's turn takes
# Name → (width, height), grain in grey levels, quality: a CheXpert-small image, a large one of smooth phantoms, and
# a large one with film grain, which brings it to the 1.96 MB that CheXpert's images have on average.
SOURCES = {
    "390x320": ((390, 320), 0.0, 90),
    "2828x2320 smooth": ((2828, 2320), 0.0, 90),
    "2828x2320 grain": ((2828, 2320), 6.5, 90),
}
Turn = Callable[[], float]  # runs one turn, gives images/s


def bench(
    *, src: Path | None = None, size: int = 256, rounds: int = 5, workers: tuple[int, ...] = (1, 2),
    memory_rows: tuple[int, ...] = (2000, ARCHIVE), json: Path = Path("bench-shard.json"),
) -> None:  # fmt: skip
    """Print images/s of a plain Pillow loop, of decoding and encoding alone, and of the sharder; write them as JSON.

    Sources are phantoms, or the first dozen JPEGs in the folder --src, resized to each source's size. --workers: a row
    of the sharder for each number of processes. The limit decodes with the scaling
    that the sharder uses, and encodes; the sharder reads, resizes, checks, hashes and writes besides. Median and range
    are over rounds, start-up excluded. Memory is the peak of the building process and of its largest worker, over a
    part of a table of so many rows (--memory-rows).
    """
    check_numbers(rounds=(rounds, 1, 10**4), size=(size, 16, 4096), workers=(min(workers, default=0), 1, 4096),
                  memory_rows=(min(memory_rows, default=1), 1, 10**9))  # fmt: skip
    make_place(json)
    with tempfile.TemporaryDirectory(prefix="bench-shard-") as folder:
        place = Path(folder)
        files = {name: _make_sources(place, src, name) for name in SOURCES}
        turns = {name: _rows(place, files[name], size, workers) for name in SOURCES}
        rates: dict[str, dict[str, list[float]]] = {name: {row: [] for row in turns[name]} for name in turns}
        for _ in tqdm(range(rounds), desc="rounds", unit=" rounds", disable=None):
            for name, rows in turns.items():
                for row, turn in rows.items():
                    rates[name][row].append(turn())
        memory = [_measure_memory(place, files["390x320"], rows, max(workers)) for rows in memory_rows]
    _report(rates, files, memory, size, json)


def _make_sources(place: Path, src: Path | None, name: str) -> list[bytes]:
    """A dozen JPEGs of one source's size."""
    (width, height), grain, quality = SOURCES[name]
    if src is None:
        drawn = place / "phantoms"
        if not drawn.exists():
            phantom(drawn, images=60, workers=1)
        paths = sorted(drawn.glob("train/*/*/*_frontal.jpg"))[:12]
    else:
        paths = sorted(src.glob("**/*.jpg"))[:12]
    if not paths:
        raise InputError(f"--src={src}: holds no *.jpg; name a folder of radiographs")
    rng = np.random.default_rng(0)
    contents = []
    for path in paths:
        image = Image.open(path).convert("L").resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + rng.normal(0, grain, (height, width)) if grain else np.asarray(image)
        grey = np.clip(noisy, 0, 255).astype(np.uint8)
        contents.append(simplejpeg.encode_jpeg(grey[:, :, None], quality=quality, colorspace="GRAY"))
    return contents


def _rows(place: Path, contents: list[bytes], size: int, workers: tuple[int, ...]) -> dict[str, Turn]:
    """What runs, by name; each turn handles the same images as often as fits its time."""
    folder = Path(tempfile.mkdtemp(dir=place))
    (folder / "out" / UNFINISHED).mkdir(parents=True)
    names = [f"{number}.jpg" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    small = [np.ascontiguousarray(load_grey(folder / name, size))[:, :, None] for name in names]

    def plain(number: int) -> None:
        image = Image.open(folder / names[number]).convert("L")
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        image.save(io.BytesIO(), "JPEG", quality=QUALITY)

    def limit(number: int) -> None:
        height, width, *_ = simplejpeg.decode_jpeg_header(contents[number])
        factor = choose_scale_denominator(width, height, size)
        simplejpeg.decode_jpeg(contents[number], "GRAY", min_height=-(-height // factor), min_width=-(-width // factor))
        simplejpeg.encode_jpeg(small[number], quality=QUALITY, colorspace="GRAY")

    one = _seconds(plain, len(names)) / len(names)
    repeats = max(1, round(TURN_S / one / len(names)))
    turns: dict[str, Turn] = {
        "plain Pillow loop": lambda: repeats * len(names) / _seconds(plain, len(names), repeats),
        "decode + encode": lambda: repeats * len(names) / _seconds(limit, len(names), repeats),
    }
    for count in workers:
        turn = functools.partial(_shard, folder, names, 2 * repeats, size, count)
        turns[f"sharder, {count} worker{'s' * (count > 1)}"] = turn
    return turns


def _seconds(work: Callable[[int], None], count: int, repeats: int = 1) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        for number in range(count):
            work(number)
    return time.perf_counter() - begun


def _shard(folder: Path, names: list[str], repeats: int, size: int, workers: int) -> float:
    """Images/s of writing shards; the first job of each worker, which waits for its start, is left out."""
    def job(stem: str, copies: int) -> Job:
        rows = [Row(f"{copy}_{name[:-4]}", name, "p", "", "", None, (1,) * len(CHEXPERT_FINDINGS))
                for copy in range(copies) for name in names]  # fmt: skip
        return Job(ShardRows(stem, "train", rows), CHEXPERT_FINDINGS, folder, folder / "out", size, "jpeg", QUALITY)

    for done in (folder / "out" / UNFINISHED).iterdir():
        done.unlink()  # or nothing would be left to do
    # Each worker writes four shards: few enough for the rows of an hour, many enough to end together.
    jobs = [job(f"warm-{number}", 1) for number in range(workers)]
    jobs += [job(f"turn-{number}", -(-repeats // 4)) for number in range(4 * workers)]
    images = sum(len(one.assigned.rows) for one in jobs[workers:])
    results = parallel_map(jobs, len(jobs), write_shard, images=images, label="bench", workers=workers)
    for _ in range(workers):
        next(results)
    begun = time.perf_counter()
    for _ in results:
        pass
    return images / (time.perf_counter() - begun)


def _measure_memory(place: Path, contents: list[bytes], rows: int, workers: int) -> dict[str, int]:
    """Peak megabytes of a real build of about 2,000 of so many rows: of its process, and of its largest worker."""
    folder = Path(tempfile.mkdtemp(dir=place))
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "key", "patient", "split", *CHEXPERT_FINDINGS])
        for row in range(rows):
            labels = [("1.0", "0.0", "-1.0", "")[(row + place) % 4] for place in range(len(CHEXPERT_FINDINGS))]
            patient = f"patient{row % len(contents):05d}"  # a file is one patient's
            key = f"train/{patient}/study{row // len(contents)}/view1_frontal.jpg"
            table.writerow([f"{row % len(contents)}.jpg", key, patient, "train", *labels])
    parts = max(1, rows // 2000)
    command = [sys.executable, "-m", "shard", "build", str(folder), str(folder / "out"),
               f"--table={folder / 'table.csv'}", f"--workers={workers}", "--part=0", f"--parts={parts}"]  # fmt: skip
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_main, peak_worker = 0, 0
    while process.poll() is None:
        peak_main = max(peak_main, _peak_mb(process.pid))
        below = [worker for server in _children(process.pid) for worker in _children(server)]
        peak_worker = max([peak_worker, *map(_peak_mb, below)])
        time.sleep(0.05)
    if process.returncode:
        raise InputError(f"a build of {rows} rows ended with status {process.returncode}; its message is above")
    return {"rows": rows, "process_mb": peak_main, "largest_worker_mb": peak_worker,
            "seconds": round(time.perf_counter() - begun)}  # fmt: skip


def _peak_mb(process: int) -> int:
    """The most memory that a process ever held; 0 where that can't be told (it has ended, or there is no /proc)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _report(
    rates: dict[str, dict[str, list[float]]], files: dict[str, list[bytes]], memory: list[dict[str, int]], size: int,
    json: Path,
) -> None:  # fmt: skip
    rows: list[dict[str, Any]] = []
    print(f"\nshort side {size} px, quality {QUALITY}, {cores()} cores")
    print(f"{'source':18}{'kB':>6}  {'row':20}{'images/s':>10}{'low':>9}{'high':>9}{'× plain':>9}{'of limit':>10}")
    for name, own in rates.items():
        kilobytes = sum(map(len, files[name])) / len(files[name]) / 1e3
        for row, values in own.items():
            # Ratios are taken round by round, so that a slow minute of the machine falls on both sides.
            plain, limit = (statistics.median(value / base for value, base in zip(values, own[base], strict=True))
                            for base in ("plain Pillow loop", "decode + encode"))  # fmt: skip
            median = statistics.median(values)
            rows.append({"source": name, "kilobytes": kilobytes, "name": row, "rounds": len(values), "of_plain": plain,
                         "images_per_s": spread(values),
                         "of_limit": limit})  # fmt: skip
            print(f"{name:18}{kilobytes:6.0f}  {row:20}{median:10.1f}{min(values):9.1f}{max(values):9.1f}"
                  f"{plain:8.2f}×{limit:10.0%}")
    for used in memory:
        print(f"table of {used['rows']} rows: the process {used['process_mb']} MB at its peak, "
              f"the largest worker {used['largest_worker_mb']} MB")
    write_figures(json, {"size": size, "rows": rows, "memory": memory})


if __name__ == "__main__":
    run("python -m bench.shard", bench)
