"""build, merge and verify: what goes in comes out, the same bytes whatever the workers and parts."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from shard.errors import InputError
from shard.image import load_grey
from shard.info import info
from shard.manifest import read_manifest
from shard.merge import merge
from shard.read import read_index, read_labels
from shard.table import read_table
from shard.verify import verify
from shard.write import build
from tests.conftest import ROOT, Shards


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith("part-")}


def test_every_row_comes_out_with_its_image_and_labels(radiographs: Path, shards: Shards) -> None:
    rows = read_table(radiographs).rows.set_index("key")
    found = 0
    for shard in shards.manifest.shards:
        for sample in webdataset.WebDataset(str(shards.folder / shard.tar), shardshuffle=False):
            row, content = rows.loc[sample["__key__"]], json.loads(sample["json"])
            image = np.asarray(Image.open(io.BytesIO(sample["jpg"]))).astype(int)
            assert image.ndim == 2 and min(image.shape) == 96
            assert np.abs(image - load_grey(radiographs / row["path"], 96)).mean() < 2
            assert (content["patient"], content["split"], content["view"]) == (row["patient"], shard.split, row["view"])
            for finding in shards.manifest.findings:
                label = content["labels"][finding]
                assert label == row[finding] or (label is None and pd.isna(row[finding]))
            found += 1
    assert found == len(rows) == sum(count["images"] for count in shards.manifest.counts.values())


def test_workers_and_parts_change_no_byte(radiographs: Path, shards: Shards, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "two", size=96, shard_size=40, workers=2)
    for part in (2, 0, 1):
        build(radiographs, tmp_path / "parts", size=96, shard_size=40, workers=1, part=part, parts=3)
    merge(tmp_path / "parts")
    assert bytes_of(tmp_path / "two") == bytes_of(shards.folder)
    assert bytes_of(tmp_path / "parts") == bytes_of(shards.folder)


def test_the_order_is_shuffled_by_the_seed(radiographs: Path, shards: Shards, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "other", size=96, shard_size=40, workers=1, seed=5)
    keys, others = (list(read_labels(folder, read_manifest(folder), ("train",))["key"])
                    for folder in (shards.folder, tmp_path / "other"))  # fmt: skip
    assert sorted(keys) == sorted(others)
    assert keys != others and keys != sorted(keys)


def test_the_index_is_the_one_dali_would_make(shards: Shards, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="DALI, whose index maker is the twin, is not installed")
    for shard in shards.manifest.shards:
        with wds2idx.IndexCreator(str(shards.folder / shard.tar), str(tmp_path / "twin.idx"), verbose=False) as creator:
            creator.create_index()
        twin, ours = read_index(tmp_path / "twin.idx"), read_index(shards.folder / shard.index)
        assert ours == twin and len(ours) == shard.samples


def test_statistics_of_the_manifest_are_those_of_the_pixels(raw_shards: Shards) -> None:
    pixels = []
    for shard in raw_shards.manifest.of_split("train"):
        for sample in webdataset.WebDataset(str(raw_shards.folder / shard.tar), shardshuffle=False):
            assert len(sample["raw"]) == 96 * 96
            pixels.append(np.frombuffer(sample["raw"], np.uint8) / 255)
    assert raw_shards.manifest.pixel_mean == pytest.approx(np.mean(pixels), abs=1e-6)
    assert raw_shards.manifest.pixel_std == pytest.approx(np.std(pixels), abs=1e-6)


def test_label_counts_are_those_of_the_table(radiographs: Path, shards: Shards) -> None:
    rows = read_table(radiographs).rows
    for split, findings in shards.manifest.labels.items():
        for finding, counts in findings.items():
            values = rows[rows["split"] == split][finding]
            assert counts == {"1": (values == 1).sum(), "0": (values == 0).sum(), "-1": (values == -1).sum(),
                              "blank": values.isna().sum()}  # fmt: skip


def test_unreadable_images_are_left_out_listed_and_counted(radiographs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(radiographs, source)
    torn, text, gone = sorted(source.glob("train/*/*/*.jpg"))[:3]
    torn.write_bytes(torn.read_bytes()[:2000])
    text.write_text("no image")
    gone.unlink()
    build(source, tmp_path / "shards", size=96, workers=1)
    manifest = read_manifest(tmp_path / "shards")
    rejects = pd.read_csv(tmp_path / "shards" / "rejects.csv")
    assert manifest.rejected == len(rejects) == 3
    assert set(rejects["path"]) == {path.relative_to(source).as_posix() for path in (torn, text, gone)}
    assert sum(shard.samples for shard in manifest.shards) == 118


def test_a_source_without_a_readable_image_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "table.csv").write_text("path,patient,split,Mass\na.jpg,p,train,1\n")
    with pytest.raises(InputError, match=r"a\.jpg.*not one of 1 rows gave a training image"):
        build(tmp_path, tmp_path / "shards", table=tmp_path / "table.csv", workers=1)
    assert not list((tmp_path / "shards").iterdir())


def test_building_again_does_nothing_and_another_build_is_refused(radiographs: Path, shards: Shards) -> None:
    before = bytes_of(shards.folder)
    build(radiographs, shards.folder, size=96, shard_size=40, workers=1)
    with pytest.raises(InputError, match=r"another build \(size 96, now 64\)"):
        build(radiographs, shards.folder, size=64, shard_size=40, workers=1)
    assert bytes_of(shards.folder) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="workers are found in /proc, which is Linux's")
def test_a_killed_worker_ends_the_build_with_a_line(tmp_path: Path) -> None:
    """As the kernel's memory killer would: both workers wait at a named pipe, and one is killed there."""
    for name in ("a.jpg", "b.jpg"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "table.csv").write_text("path,patient,split,Mass\na.jpg,p,train,1\nb.jpg,q,train,0\n")
    command = [sys.executable, "-m", "shard", "build", str(tmp_path), str(tmp_path / "out"), "--workers=2",
               "--shard-size=1", f"--table={tmp_path / 'table.csv'}"]  # fmt: skip
    build = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    workers: list[int] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = [worker for server in children_of(build.pid) for worker in children_of(server)]
    os.kill(workers[0], signal.SIGKILL)
    _, error = build.communicate(timeout=60)
    assert build.returncode == 1 and "--workers=2: one was killed" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("[!.]*"))  # what lies there is under temporary names


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:  # it has just ended
        return []


def test_merge_names_a_missing_part_and_one_of_another_build(radiographs: Path, tmp_path: Path) -> None:
    build(radiographs, tmp_path, size=96, workers=1, part=0, parts=2)
    with pytest.raises(InputError, match="part 1 of 2 is missing"):
        merge(tmp_path)
    build(radiographs, tmp_path, size=64, workers=1, part=1, parts=2)
    with pytest.raises(InputError, match="part 1 has other settings"):
        merge(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "index"])
def test_verify_names_the_damaged_file(shards: Shards, tmp_path: Path, damage: str) -> None:
    verify(shards.folder)
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    shard = shards.manifest.shards[0]
    victim = copy / (shard.index if damage == "index" else shard.tar)
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        del content[-512:]
    else:
        content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(InputError, match=victim.name):
        verify(copy)


def test_info_prints_counts_labels_and_settings(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    info(shards.folder)
    page = capsys.readouterr().out
    train = shards.manifest.counts["train"]
    labels = shards.manifest.labels["train"]["Cardiomegaly"]
    assert f"train: {train['images']} images of {train['patients']} patients" in page
    assert f"{labels['1']:8}{labels['0']:8}{labels['-1']:8}{labels['blank']:8}" in page
    assert "size=96" in page and shards.manifest.fingerprint() in page
