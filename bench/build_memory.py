"""The peak memory of a build, for bench.shard."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS


def measure_build_memory(folder: Path, contents: list[bytes], rows: int, workers: int) -> dict[str, int]:
    """Measure the peak memory, in MB, of a build from a table of `rows` rows: main process and largest worker.

    The build processes one part of about 2,000 rows.
    """
    source = Path(tempfile.mkdtemp(dir=folder))
    for number, content in enumerate(contents):
        (source / f"{number}.jpg").write_bytes(content)
    _write_table(source / "table.csv", len(contents), rows)
    parts = max(1, rows // 2000)
    command = [sys.executable, "-m", "shard", "build", str(source), str(source / "out"),
               f"--table={source / 'table.csv'}", f"--workers={workers}", "--part=0", f"--parts={parts}"]  # fmt: skip
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_main, peak_worker = 0, 0
    while process.poll() is None:
        peak_main = max(peak_main, _peak_mb(process.pid))
        grandchildren = [worker for server in _children(process.pid) for worker in _children(server)]
        peak_worker = max([peak_worker, *map(_peak_mb, grandchildren)])  # workers are children of the fork server
        time.sleep(0.05)
    if process.returncode:
        raise InputError(f"a build of {rows} rows exited with status {process.returncode}, see above")
    return {"rows": rows, "process_mb": peak_main, "largest_worker_mb": peak_worker,
            "seconds": round(time.perf_counter() - begun)}  # fmt: skip


def _write_table(path: Path, files: int, rows: int) -> None:
    """Write a table of `rows` rows over `files` files. All rows of a file belong to one patient."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "key", "patient", "split", *CHEXPERT_FINDINGS])
        for row in range(rows):
            labels = [("1.0", "0.0", "-1.0", "")[(row + column) % 4] for column in range(len(CHEXPERT_FINDINGS))]
            patient = f"patient{row % files:05d}"
            key = f"train/{patient}/study{row // files}/view1_frontal.jpg"
            table.writerow([f"{row % files}.jpg", key, patient, "train", *labels])


def _peak_mb(process: int) -> int:
    """Return a process's peak memory, or 0 if it has ended or there is no /proc."""
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
