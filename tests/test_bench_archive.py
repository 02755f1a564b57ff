"""bench.archive and bench.epoch: the synthetic archive, the cost of commands, the steps, and the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.archive import sharding
from bench.archive.archive import bench_archive, list_steps
from bench.archive.command import adopt_orphans, run_command
from bench.archive.page import BEGIN, END, render_section, write_section
from bench.archive.sharding import compare_folders
from bench.archive.tree import CHEXPERT, LABELS, ROOT, sample_table, split_sizes, write_tree
from bench.archive.views import join_epochs
from bench.epoch import bench_epoch
from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS
from shard.formats.chexpert import read_chexpert
from shard.manifest import read_manifest
from tests.conftest import ROOT as REPOSITORY
from tests.conftest import Shards


def test_the_archive_has_chexperts_numbers_and_names() -> None:
    assert split_sizes(224_316) == CHEXPERT
    size = split_sizes(22_432)["train"]
    table = sample_table("train", size, np.random.default_rng(0))
    parts = table["Path"].str.extract(rf"^{ROOT}/train/(patient\d{{5}})/(study\d+)/view([12])_(frontal|lateral)\.jpg$")
    assert not parts.isna().any(axis=None) and table["Path"].is_unique
    assert (len(table), (parts[0] + parts[1]).nunique(), parts[0].nunique()) == size == (22_342, 18_765, 6_454)
    assert (table["Frontal/Lateral"].str.lower() == parts[3]).all()
    assert (table["AP/PA"] == "").equals(parts[3] == "lateral")
    for finding in CHEXPERT_FINDINGS:
        found = 100 * table[finding].value_counts(normalize=True).reindex(["1.0", "0.0", "-1.0"], fill_value=0)
        assert np.abs(found.to_numpy() - LABELS[finding]).max() < 1.5, finding
    assert (table.groupby(parts[0] + parts[1])["Edema"].nunique() == 1).all()


def test_small_archives_have_enough_images_to_probe() -> None:
    for images in (100, 300, 5000):
        sizes = split_sizes(images)
        assert sum(size.images for size in sizes.values()) == images
        assert sizes["valid"].images + sizes["test"].images == min(60, images // 4)
        assert all(size.patients <= size.studies <= size.images <= 2 * size.studies for size in sizes.values())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One frontal and one lateral file."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("frontal", "lateral"):
        (folder / f"view1_{kind}.jpg").write_text(kind)
    return folder


@pytest.mark.parametrize("linkable", [True, False])
def test_the_tree_is_read_as_chexpert_and_continued(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linkable: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("too many links")

    if not linkable:
        monkeypatch.setattr(os, "link", refuse)
    tree = tmp_path / "tree"
    write_tree(pictures, tree, 200)
    complete = {path: path.read_bytes() for path in tree.rglob("*.*")}
    rows = read_chexpert(tree).frame
    assert rows["split"].value_counts().to_dict() == {name: size.images for name, size in split_sizes(200).items()}
    assert all((tree / path).read_text() in path for path in rows["path"])
    assert ((tree / rows["path"][0]).stat().st_nlink > 1) is linkable
    (tree / "train.csv").unlink()
    (tree / rows["path"][5]).unlink()
    write_tree(pictures, tree, 200)
    assert {path: path.read_bytes() for path in tree.rglob("*.*")} == complete
    with pytest.raises(InputError, match="contains something else than the archive of 300 images"):
        write_tree(pictures, tree, 300)


WORKER = """
import multiprocessing, sys, pathlib
def work(path):
    pathlib.Path(path).write_bytes(bytes(5 << 20)); sum(range(3_000_000)); held = b"x" * (60 << 20)
    import time; time.sleep(1.2)
if __name__ == "__main__":
    worker = multiprocessing.get_context("forkserver").Process(target=work, args=(sys.argv[1],))
    worker.start(); worker.join(); print("done"); sys.exit(int(sys.argv[2]))
"""


def test_the_cost_of_a_command_includes_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_module.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with adopt_orphans():
        cost = run_command(["worker_module", str(tmp_path / "file"), "0"], tmp_path / "log")
        assert cost.status == 0 and cost.seconds > 1.2 and 5 <= cost.written_mb < 7
        assert cost.peak_mb > 60 and cost.files > 6 and cost.cpu_s > 0.02 and cost.read_mb > 0.5
        assert cost.command == f"python -m worker_module {tmp_path / 'file'} 0"
        with pytest.raises(InputError, match=r"exited with status 3; .*log has its output, which ends: .*done"):
            run_command(["worker_module", str(tmp_path / "file"), "3"], tmp_path / "log")


def test_a_command_is_killed_with_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "sleep(6); pathlib.Path(path + '.late').touch()"
    (tmp_path / "worker_module.py").write_text(WORKER.replace("sleep(1.2)", late))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "file"
    with adopt_orphans():
        for limit in ({"until": file.exists}, {"timeout_s": 0.5}):
            cost = run_command(["worker_module", str(file), "0"], tmp_path / "log", **limit)  # type: ignore[arg-type]
            assert cost.status is None and cost.command.endswith("0")
    assert file.exists() and not (tmp_path / "file.late").exists()  # which the worker writes unless it is killed


def test_an_epoch_of_two_ranks_shows_every_image_once(shards: Shards, tmp_path: Path) -> None:
    orders = []
    for rank in range(2):
        bench_epoch(shards.folder, size=32, batch_size=7, epochs=2, threads=1, rank=rank, world=2,
                    order=tmp_path / "order.npy", json=tmp_path / "epoch.json")  # fmt: skip
        orders.append(np.load(tmp_path / "order.npy"))
        first, second = json.loads((tmp_path / "epoch.json").read_text())["epochs"]
        tars = [shard.tar_bytes for shard in shards.manifest.of_split("train")]
        assert first["twice"] == 0 and first["tars"] == len(tars) and first["images_per_s"] > 0
        assert sum(tars) > 2 * second["images_mb"] * 2**20 > 0  # each rank reads its share
        assert second["images_mb"] <= second["read_mb"]
    images = shards.manifest.images("train")
    assert join_epochs(orders, images, 7) == images % 14
    with pytest.raises(InputError, match="epoch 1: 42 images were shown twice"):
        join_epochs([orders[0], np.stack([orders[1][0], orders[0][1]])], images, 7)


@pytest.mark.long
def test_steps_are_resumed_and_refuse_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "PICTURES", 20)
    words: dict[str, Any] = {"images": 100, "out": tmp_path, "parts": 2, "ranks": 2}
    bench_archive(**words, steps=("source", "build"))
    written = (tmp_path / "archive.json").read_text()
    manifest = read_manifest(tmp_path / "shards")
    assert sum(shard.samples for shard in manifest.shards) == 100 and manifest.settings["synthetic"]
    bench_archive(**words, steps=("source", "build"))  # nothing is missing
    assert (tmp_path / "archive.json").read_text() == written
    bench_archive(**words, steps=("build-parts",), page=tmp_path / "page.md")
    *_, parts = json.loads((tmp_path / "archive.json").read_text())["steps"]
    assert parts["name"] == "build-parts" and not (tmp_path / "shards-in-parts").exists()
    assert [command["status"] for command in parts["commands"]] == [None, 0] * 2 + [0]
    assert parts["figures"]["killed"] == 2 and "| build-parts |" in (tmp_path / "page.md").read_text()
    with pytest.raises(InputError, match="measured with --images=100; give the same, or another --out"):
        bench_archive(**{**words, "images": 200})
    with pytest.raises(InputError, match="no step 'biuld' here; available: source, build, build-parts"):
        bench_archive(out=tmp_path / "new", steps=("biuld",))
    assert not (tmp_path / "new").exists()


def test_builds_that_differ_are_reported(tmp_path: Path) -> None:
    for name, content in (("one", "same"), ("other", "same"), ("changed", "Same")):
        (tmp_path / name / "build").mkdir(parents=True)
        (tmp_path / name / "train-000000.tar").write_text(content)
        os.utime(tmp_path / name / "train-000000.tar", (0, 0))  # neither size nor time differs
    assert compare_folders(tmp_path / "one", tmp_path / "other") == 1
    with pytest.raises(InputError, match=r"1 files differ, such as train-000000\.tar"):
        compare_folders(tmp_path / "one", tmp_path / "changed")
    (tmp_path / "one" / "build" / "left.json").write_text("")
    with pytest.raises(InputError, match=r"1 files differ, such as build/left\.json"):
        compare_folders(tmp_path / "one", tmp_path / "other")


def test_the_page_replaces_its_section_alone(tmp_path: Path) -> None:
    page, row = tmp_path / "page.md", {
        "name": "build", "images": 300, "seconds": 2.0, "images_per_s": 150.0, "cpu_s": 3.0, "peak_mb": 400.0,
        "files": 66, "read_mb": 1234.0, "written_mb": 5.0, "checked": "20 shards", "figures": {}}  # fmt: skip
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    names = ("first_batch_s", "first_batch_since_start_s", "read_mb", "images_mb", "tars", "cpu_s", "seconds")
    ranks = {**row, "name": "ranks", "figures": {
        "ranks": 64, "at_once": 10, "batch_size": 32, "open_files": spread, "peak_mb": spread,
        "epochs": [dict.fromkeys(names, spread), {name: {**spread, "median": 4.0} for name in names}]}}  # fmt: skip
    content = {"machine": {"cpu": "EPYC"}, "settings": {"images": 300}, "steps": [row, ranks]}
    page.write_text(f"# Title\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\n## After\n")
    write_section(page, content)
    text = page.read_text()
    assert text == f"# Title\n\nBefore.\n\n{BEGIN}\n{render_section(content)}\n{END}\n\n## After\n"
    assert "| build | 2.0 | 150 | 3 | 400 | 66 | 1,234 | 5 | 20 shards |" in text and "cpu EPYC" in text
    assert "| MB read | 2 [1, 3] | 4 [1, 3] |" in text
    page.write_text("# Title\n")
    write_section(page, content)
    assert page.read_text() == f"# Title\n\n{BEGIN}\n{render_section(content)}\n{END}\n"
    page.write_text(f"{BEGIN}\n")
    with pytest.raises(InputError, match="needs both lines"):
        write_section(page, content)


@pytest.mark.long
def test_every_step_of_5000_images(tmp_path: Path) -> None:
    """An interrupted command continues, every image is shown once, and a killed run ends with the same weights."""
    command = [sys.executable, "-m", "bench.archive", "--images=5000", f"--out={tmp_path}", "--parts=4", "--ranks=6",
               "--at-once=2", f"--page={tmp_path / 'page.md'}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "shards" / "build").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "interrupted; to resume: python -m bench.archive --images=5000" in process.communicate()[1]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    rows = {row["name"]: row for row in json.loads((tmp_path / "archive.json").read_text())["steps"]}
    assert list(rows) == list(list_steps())
    assert rows["build-parts"]["figures"]["killed"] == 3 and rows["report"]["figures"]["finished"]
    assert rows["views"]["figures"]["twice"] == 0 and rows["views"]["images"] == 4940 // 64 * 64
    assert rows["resume"]["figures"]["killed_after"] < 50 and rows["resume"]["figures"]["saved"] > 0
    assert rows["ranks"]["figures"]["ranks"] == 6 and "| 6 ranks" not in rows["ranks"]["checked"]
    assert all(f"| {name} |" in (tmp_path / "page.md").read_text() for name in rows)
