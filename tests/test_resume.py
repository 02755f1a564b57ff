"""A build may be killed at any moment; run again, it ends equal to an uninterrupted one. Uses real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shard import progress
from shard.errors import InputError
from shard.files import locked
from shard.machine import array_task
from shard.manifest import read_manifest
from shard.merge import merge
from shard.record import begin_build
from shard.verify import verify
from shard.write import build
from tests.conftest import KILLS, ROOT
from tests.test_write import hashes_of

SETTINGS = ("--size=96", "--shard-size=30", "--workers=2", "--max-rejects=0.1")
LINUX = pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc, which is Linux's")


@pytest.fixture(scope="module")
def archive(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 1,452 rows, each radiograph under twelve keys, four files missing: about 3 s of work."""
    files = sorted(file.relative_to(radiographs).as_posix() for file in radiographs.rglob("*.jpg"))
    rows = [{"path": path, "key": f"{number}_{path}", "patient": path.split("/")[1], "split": path.split("/")[0],
             "Mass": number % 2} for path in files for number in range(12)]  # fmt: skip
    for place in (5, 500, 700, 1000):
        rows[place]["path"] = f"absent-{place}.jpg"  # every file belongs to one patient
    table = tmp_path_factory.mktemp("archive") / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


@pytest.fixture(scope="module")
def uninterrupted(archive: Path, radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of all files of an uninterrupted build."""
    out = tmp_path_factory.mktemp("never-stopped")
    build(radiographs, out, table=archive, size=96, shard_size=30, workers=1, max_rejects=0.1)
    assert read_manifest(out).rejected == 4
    return hashes_of(out)


def start(
    radiographs: Path, archive: Path, out: Path, settings: tuple[str, ...] = SETTINGS
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shard", "build", str(radiographs), str(out), f"--table={archive}", *settings]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


def finished_tars(out: Path) -> dict[str, int]:
    """Return the tars that are recorded as finished, with their modification times."""
    return {record.with_suffix(".tar").name: (out / record.name).with_suffix(".tar").stat().st_mtime_ns
            for record in out.glob("build/*-*.json")}  # fmt: skip


def test_build_killed_at_random_moments_ends_byte_identical(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    wanted = KILLS or 4
    rng, kills, folder, mid_build = np.random.default_rng(0), 0, 0, 0
    while (more_kills := kills < wanted or mid_build < wanted // 4) or (tmp_path / str(folder)).exists():
        assert kills < 10 * wanted, "no kill falls within the work"
        out = tmp_path / str(folder)
        before = finished_tars(out)
        process = start(radiographs, archive, out)
        try:  # later if the machine is too busy to have started by then
            process.communicate(timeout=float(rng.uniform(0.3, 2.5 + 0.3 * (kills - mid_build))) if more_kills else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        after = {tar.name: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
        assert {name: after[name] for name in before} == before  # finished shards are not written again
        if process.returncode == 0:
            assert hashes_of(out) == uninterrupted
            folder += 1
        mid_build += 0 < len(after) < len([name for name in uninterrupted if name.endswith(".tar")])


@LINUX
def test_workers_exit_after_their_parent_is_killed(radiographs: Path, archive: Path, tmp_path: Path) -> None:
    process = start(radiographs, archive, tmp_path / "out")
    workers = wait_for_workers(process, 2)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


@LINUX
def test_killed_worker_ends_the_build_with_one_line(radiographs: Path, archive: Path, tmp_path: Path) -> None:
    """The kernel's out-of-memory killer does this."""
    process = start(radiographs, archive, tmp_path / "out")
    os.kill(wait_for_workers(process, 2)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "--workers=2: a worker was killed" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


@LINUX
def test_sigterm_from_a_scheduler_does_not_end_the_fork_server(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    """Without the fork server, workers count as dead and cannot delete their partial files."""
    process = start(radiographs, archive, tmp_path / "out")
    wait_for_workers(process, 2)
    for child in children_of(process.pid):
        os.kill(child, signal.SIGTERM)
    assert process.wait(60) == 0
    assert hashes_of(tmp_path / "out") == uninterrupted


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_prints_the_next_command_and_leaves_no_partial_files(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(radiographs, archive, out)
    while not finished_tars(out):
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, number)  # to every process, like a terminal or a scheduler
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error.count("\n") == 1 and "Traceback" not in error
    assert f"interrupted; to resume: python -m shard build {radiographs} {out}" in error
    assert not list(out.glob(".*")) and not (out / "manifest.json").exists()
    process = start(radiographs, archive, out)
    assert process.wait(60) == 0
    assert hashes_of(out) == uninterrupted


def test_interrupted_workers_stop_at_their_next_image(
    radiographs: Path, archive: Path, tmp_path: Path
) -> None:
    """Two shards of hundreds of images, so that neither is finished before the signal."""
    out = tmp_path / "out"
    process = start(radiographs, archive, out, ("--size=96", "--shard-size=600", "--workers=2"))
    while not list(out.glob(".train-*.tar.tmp")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "interrupted; to resume: " in error and not finished_tars(out) and not list(out.glob("*.tar"))


def test_record_of_other_rows_is_ignored(radiographs: Path, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "out", size=96, shard_size=40, workers=1, part=0, parts=2)
    (tmp_path / "out" / "build" / "begun.json").unlink()
    build(radiographs, tmp_path / "out", size=96, shard_size=40, workers=1, seed=1)
    build(radiographs, tmp_path / "again", size=96, shard_size=40, workers=1, seed=1)
    assert hashes_of(tmp_path / "out") == hashes_of(tmp_path / "again")


def wait_for_workers(process: subprocess.Popen[str], count: int) -> list[int]:
    """Return the workers' process ids. They are children of the fork server."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = [worker for server in children_of(process.pid) for worker in children_of(server)]
        if len(workers) == count:
            return workers
        time.sleep(0.02)
    raise AssertionError(f"no {count} workers after a minute")


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:  # it has just exited
        return []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_full_disk_is_reported_and_the_build_resumes_with_space(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], small_disk: Path
) -> None:
    out = small_disk / "out"
    for _ in range(2):  # the second time, finished shards fill the disk
        process = start(radiographs, archive, out)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1 and error.count("\n") == 1
        assert "No space left on device" in error and str(out) in error
        assert not list(out.glob(".*")) and not (out / "manifest.json").exists()
    before = finished_tars(out)
    assert before
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    process = start(radiographs, archive, out)
    assert process.wait(60) == 0
    assert hashes_of(out) == uninterrupted
    assert all((out / name).stat().st_mtime_ns == when for name, when in before.items())


def test_unfinished_build_with_other_settings_is_refused(
    radiographs: Path, archive: Path, tmp_path: Path
) -> None:
    build(radiographs, tmp_path, size=96, workers=1, part=0, parts=2)
    with pytest.raises(InputError, match=r"unfinished build with other settings \(size 96 there, 64 now\)"):
        build(radiographs, tmp_path, size=64, workers=1, part=1, parts=2)
    with pytest.raises(InputError, match="unfinished build with other settings"):
        build(radiographs, tmp_path, table=archive, size=96, workers=1, part=1, parts=2)


def test_single_process_completes_the_parts(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    for part in (0, 2):
        build(radiographs, tmp_path, table=archive, size=96, shard_size=30, workers=1, part=part, parts=3)
    done = finished_tars(tmp_path)
    build(radiographs, tmp_path, table=archive, size=96, shard_size=30, workers=1, max_rejects=0.1)
    assert done and all((tmp_path / name).stat().st_mtime_ns == when for name, when in done.items())
    assert hashes_of(tmp_path) == uninterrupted


def test_lost_shard_is_written_again(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    for part in (0, 1):
        build(radiographs, tmp_path, table=archive, size=96, shard_size=30, workers=1, part=part, parts=2)
    (tmp_path / "train-000003.tar").unlink()
    (tmp_path / "train-000004.idx").write_bytes(b"short")
    (tmp_path / "build" / "train-000006.json").write_text('{"half": ')
    with pytest.raises(InputError, match=r"train-000003\.tar: missing; run the part that wrote it again"):
        merge(tmp_path, max_rejects=0.1)
    for part in (0, 1):
        build(radiographs, tmp_path, table=archive, size=96, shard_size=30, workers=1, part=part, parts=2)
    merge(tmp_path, max_rejects=0.1)
    assert hashes_of(tmp_path) == uninterrupted
    verify(tmp_path, workers=1)


def test_merge_names_missing_foreign_and_truncated_parts(radiographs: Path, tmp_path: Path) -> None:
    build(radiographs, tmp_path, size=96, workers=1, part=0, parts=2)
    with pytest.raises(InputError, match=r"part 1 of 2 is missing \(1 in all\).*--part=1 --parts=2"):
        merge(tmp_path)
    other = json.loads((tmp_path / "part-00000-of-00002.json").read_text())
    other["part"], other["settings"]["size"] = 1, 64
    (tmp_path / "part-00001-of-00002.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"part-00001-of-00002.json is from a different build .* \(size 96 there"):
        merge(tmp_path)
    (tmp_path / "part-00001-of-00002.json").write_text("{")
    with pytest.raises(InputError, match=r"part-00001-of-00002\.json: not the record of a part"):
        merge(tmp_path)


def test_merge_counts_the_rejects_of_all_parts(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    for part in range(2):
        build(radiographs, tmp_path, table=archive, size=96, shard_size=30, workers=1, part=part, parts=2)
    with pytest.raises(InputError, match=r"4 of 1452 rows rejected \(0.3%; --max-rejects allows 0.1%\).*=0.003"):
        merge(tmp_path, max_rejects=0.001)
    merge(tmp_path, max_rejects=0.003)
    assert hashes_of(tmp_path) == uninterrupted
    merge(tmp_path)  # a second merge has nothing to do


def test_second_build_of_one_folder_is_refused(radiographs: Path, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    with locked(tmp_path / "build", "whole", shared=True):  # as a part locks it
        with pytest.raises(InputError, match="another process is writing there"):
            build(radiographs, tmp_path, size=96, workers=1)
        build(radiographs, tmp_path, size=96, workers=1, part=0, parts=2)  # parts share the lock
    with locked(tmp_path / "build", "part-1-of-2"), pytest.raises(InputError, match="another process"):
        build(radiographs, tmp_path, size=96, workers=1, part=1, parts=2)
    build(radiographs, tmp_path, size=96, workers=1)


@pytest.mark.parametrize(
    ("task", "low", "high", "count", "wanted"),
    [(0, 0, 15, 16, (0, 16)), (15, 0, 15, 16, (15, 16)), (1, 1, 16, 16, (0, 16)), (16, 1, 16, 16, (15, 16)),
     (20, 0, 30, 4, (2, 4)), (0, 0, 0, 1, (0, 1))],
)  # fmt: skip
def test_slurm_array_task_selects_the_part(
    monkeypatch: pytest.MonkeyPatch, task: int, low: int, high: int, count: int, wanted: tuple[int, int]
) -> None:
    for name, value in (("ID", task), ("MIN", low), ("MAX", high), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert array_task() == wanted


@pytest.mark.parametrize(
    ("task", "low", "high", "count", "wanted"),
    [(3, 3, 3, 1, "the only task of its array, so the number of parts is unknown"), (1, 1, 1, 1, "the only task"),
     (3, 1, 7, 3, "3 tasks from 1 to 7"),
     (3, 1, 8, 3, "not evenly spaced"), (4, 0, 4, 3, None), (3, "", "", "", "can't be read")],
)  # fmt: skip
def test_ambiguous_slurm_array_is_refused(
    monkeypatch: pytest.MonkeyPatch, task: int, low: int, high: int, count: int, wanted: str | None
) -> None:
    for name, value in (("ID", task), ("MIN", low), ("MAX", high), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    if wanted is None:
        assert array_task() == (2, 3)
        return
    with pytest.raises(InputError, match=f"SLURM_ARRAY_TASK_ID={task}: .*{wanted}.*--part and --parts"):
        array_task()


@pytest.mark.long
def test_slurm_array_tasks_build_their_parts(
    radiographs: Path, archive: Path, uninterrupted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MIN", 1), ("MAX", 3), ("COUNT", 3)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    for task in (1, 2, 3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        process = start(radiographs, archive, tmp_path)
        assert process.wait(60) == 0
    assert [file.name for file in sorted(tmp_path.glob("part-*.json"))] == [
        f"part-{part:05d}-of-00003.json" for part in range(3)]  # fmt: skip
    merge(tmp_path)
    assert hashes_of(tmp_path) == uninterrupted


@pytest.mark.long
def test_log_gets_a_line_at_intervals(
    radiographs: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(progress, "QUIET_S", 0.2)
    start = time.monotonic()
    build(radiographs, tmp_path / "slow", table=archive, size=96, shard_size=30, workers=1, max_rejects=0.1)
    intervals = (time.monotonic() - start) / 0.2
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= intervals + 1  # the machine may be slow
    pattern = r"sharding: \d+ of 1452 images, \d+/s, \d+:\d\d left(, \d rejected)?"
    assert pd.Series(lines).str.fullmatch(pattern).all(), lines
    assert "rejected" in lines[-1]
    monkeypatch.setattr(progress, "QUIET_S", 30)
    build(radiographs, tmp_path / "quick", size=96, workers=1)
    assert capfd.readouterr().err == ""


def begin_in(place: str) -> None:
    begin_build(Path(place), {"size": 96}, {"pillow": "1"})


@pytest.mark.long
def test_array_tasks_may_start_at_the_same_moment(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(60)]
    for folder in folders:
        (folder / "build").mkdir(parents=True)
    with ProcessPoolExecutor(4, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(begin_in, [str(folder) for folder in folders for _ in range(8)]))
    assert all([file.name for file in (folder / "build").iterdir()] == ["begun.json"] for folder in folders)
