"""Pictures in two splits or under two patients are found, listed, counted, and dropped, kept or refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard.duplicates import DUPLICATES
from shard.errors import InputError
from shard.info import describe
from shard.manifest import read_manifest
from shard.merge import merge
from shard.verify import verify
from shard.write import build
from tests.conftest import ROOT
from tests.odd_files import write_dicom


def picture(number: int) -> Image.Image:
    """Return a random picture; each number gives a different one."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)


# path, patient, split, picture number
ROWS = [
    ("a/1.png", "a", "train", 1), ("a/2.png", "a", "train", 2), ("b/1.png", "b", "train", 3),
    ("b/again.png", "b", "train", 3),  # the same patient and split: no leak
    ("c/1.png", "c", "train", 2),  # also a/2: two patients
    ("d/1.png", "d", "test", 4), ("e/1.png", "e", "train", 4),  # two splits
    ("f/1.png", "f", "valid", 5), ("g/1.png", "g", "test", 5), ("h/1.png", "h", "train", 5),
    ("i/1.png", "i", "test", 6),
]  # fmt: skip
DROPPED = {"c_1", "e_1", "f_1", "h_1"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    for path, _, _, number in ROWS:
        (src / path).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(src / path)
    write_table(src, ROWS)
    return src


def write_table(src: Path, rows: list[tuple[str, str, str, int]]) -> None:
    lines = [f"{path},{patient},{split},{number % 2}\n" for path, patient, split, number in rows]
    (src / "t.csv").write_text("path,patient,split,Edema\n" + "".join(lines))


def build_shards(src: Path, out: Path, **settings: Any) -> Path:
    defaults = {"dataset": "csv", "table": src / "t.csv", "size": 64, "shard_size": 4, "workers": 1, "max_rejects": 0.0,
             "duplicates": "drop"}  # fmt: skip
    build(src, out, **{**defaults, **settings})
    return out


def samples(out: Path) -> dict[str, dict[str, Any]]:
    """Read key → JSON from all shards."""
    found = {}
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    found[member.name[:-5]] = json.load(archive.extractfile(member))  # type: ignore[arg-type]
    return found


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def listed(out: Path) -> dict[str, str]:
    """Read key → kept from duplicates.csv."""
    return {row["key"]: row["kept"] for row in csv.DictReader((out / DUPLICATES).open())}


def test_drop_keeps_the_copy_in_test_before_valid_before_train(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = build_shards(source, tmp_path / "out")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "7 images in" in last and "4 of 11 rows rejected" in last
    assert "7 images show 3 pictures under two patients or in two splits (2 in two splits), 4 of them excluded" in last
    kept = samples(out)
    assert set(kept) == {"a_1", "a_2", "b_1", "b_again", "d_1", "g_1", "i_1"}
    assert listed(out) == {"a_2": "yes", "c_1": "no", "d_1": "yes", "e_1": "no", "f_1": "no", "g_1": "yes", "h_1": "no"}
    reasons = {row["key"]: row["reason"] for row in csv.DictReader((out / "rejects.csv").open())}
    assert set(reasons) == DROPPED and reasons["h_1"] == "the same picture as g_1 (g, test)"
    manifest = read_manifest(out)
    assert manifest.duplicates == {"policy": "drop", "pictures": 3, "images": 7, "across_splits": 2, "dropped": 4}
    assert "duplicates: 7 images show 3 pictures under two patients" in describe(out, manifest)
    verify(out, decode=True)


def test_drop_gives_the_shards_of_a_table_without_the_copies(source: Path, tmp_path: Path) -> None:
    """With one shard per split, tars, indexes, labels, counts and pixel statistics are equal."""
    out = build_shards(source, tmp_path / "out", shard_size=100)
    write_table(source, [row for row in ROWS if row[0].replace("/", "_")[:-4] not in DROPPED])
    unique = build_shards(source, tmp_path / "unique", shard_size=100)
    assert {name: content for name, content in files(out).items() if name.endswith((".tar", ".idx"))} == {
        name: content for name, content in files(unique).items() if name.endswith((".tar", ".idx"))}  # fmt: skip
    found, expected = read_manifest(out), read_manifest(unique)
    for name in ("counts", "labels", "pixel_mean", "pixel_std", "demographics", "shards"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_parts_and_workers_drop_the_same_copies(source: Path, tmp_path: Path, encoding: str) -> None:
    expected = build_shards(source, tmp_path / "expected", encoding=encoding)
    many = build_shards(source, tmp_path / "many", encoding=encoding, workers=2)
    for part in range(3):
        build_shards(source, tmp_path / "parts", encoding=encoding, part=part, parts=3)
    merge(tmp_path / "parts", max_rejects=0.0)
    assert files(expected) == files(many) == files(tmp_path / "parts")


def test_default_keeps_and_counts_duplicates(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "out"
    build(source, out, dataset="csv", table=source / "t.csv", size=64, shard_size=4, workers=1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "7 images show 3 pictures" in last and "all kept (--duplicates=drop excludes copies)" in last
    assert len(samples(out)) == 11 and set(listed(out).values()) == {"yes"}
    assert "all kept" in describe(out, read_manifest(out))
    build_shards(source, out, duplicates="keep")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"another build \(duplicates 'keep' there, 'drop' now\)"):
        build_shards(source, out)


def test_error_names_a_duplicate_and_drop_resumes_the_build(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"3 pictures .* a_2 \(a, train\) and c_1 \(c, train\); fix the table, or"):
        build_shards(source, out, duplicates="error")
    assert not (out / "manifest.json").exists() and set(listed(out)) == {*DROPPED, "a_2", "d_1", "g_1"}
    before = {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
    shutil.rmtree(source / "a")  # a finished shard's sources are not read again
    build_shards(source, out)
    assert set(samples(out)).isdisjoint(DROPPED) and len(before) > 2


def test_drop_keeps_further_copies_of_the_same_patient_and_split(source: Path, tmp_path: Path) -> None:
    picture(5).save(source / "g" / "2.png")
    write_table(source, [*ROWS, ("g/2.png", "g", "test", 5)])
    kept = samples(build_shards(source, tmp_path / "out"))
    assert {"g_1", "g_2"} <= set(kept) and set(kept).isdisjoint(DROPPED)


def test_finished_shard_whose_record_lacks_pictures_is_rebuilt(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError):
        build_shards(source, out, duplicates="error")
    for record in (out / "build").glob("t*-0*.json"):
        content = json.loads(record.read_text())
        del content["pictures"]
        record.write_text(json.dumps(content))
    assert files(build_shards(source, out)) == files(build_shards(source, tmp_path / "expected"))


def test_merge_policy_overrides_the_policy_of_the_parts(source: Path, tmp_path: Path) -> None:
    for part in range(2):
        build_shards(source, tmp_path / "out", part=part, parts=2, duplicates="error")
    with pytest.raises(InputError, match="3 pictures"):
        merge(tmp_path / "out", max_rejects=0.0)
    merge(tmp_path / "out", max_rejects=0.0, duplicates="drop")
    assert files(tmp_path / "out") == files(build_shards(source, tmp_path / "expected"))


def test_equal_pixels_are_duplicates_in_any_format_and_with_any_metadata(tmp_path: Path) -> None:
    """A PNG, the same with metadata, a TIFF and a DICOM; a JPEG, its pixels as a PNG, and its copy."""
    src = tmp_path / "src"
    src.mkdir()
    image = picture(1)
    image.save(src / "a.png")
    image.save(src / "b.png", dpi=(72, 72))
    image.convert("RGB").save(src / "c.tif")
    write_dicom(src / "d.dcm", np.asarray(image), WindowCenter=128, WindowWidth=256)
    image.save(src / "e.jpg")
    Image.open(src / "e.jpg").save(src / "f.png")
    (src / "g.jpg").write_bytes((src / "e.jpg").read_bytes())
    names = [path.name for path in sorted(src.iterdir())]
    (src / "t.csv").write_text("path,patient,split\n" + "".join(f"{name},{name},train\n" for name in names))
    out = build_shards(src, tmp_path / "out", size=72, duplicates="keep", max_rejects=1.0)
    groups: dict[str, set[str]] = {}
    for row in csv.DictReader((out / DUPLICATES).open()):
        groups.setdefault(row["picture"], set()).add(row["path"])
    assert sorted(map(sorted, groups.values())) == [["a.png", "b.png", "c.tif", "d.dcm"], ["e.jpg", "f.png", "g.jpg"]]


def test_deidentified_duplicates_reveal_no_ids_or_paths(source: Path, tmp_path: Path) -> None:
    out = build_shards(source, tmp_path / "out", deidentify=tmp_path / "secret")
    text = (out / DUPLICATES).read_text() + (out / "rejects.csv").read_text() + (out / "manifest.json").read_text()
    assert not any(path in text or path.replace("/", "_")[:-4] in text for path, *_ in ROWS)
    assert len(samples(out)) == 7


def test_build_without_duplicates_writes_no_list(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError):
        build_shards(source, out, duplicates="error")
    write_table(source, [ROWS[0], ROWS[2], ROWS[3], ROWS[10]])
    clean = build_shards(source, tmp_path / "clean", duplicates="error")
    assert not (clean / DUPLICATES).exists() and read_manifest(clean).duplicates == {}
    assert "picture" not in capsys.readouterr().out
    build_shards(source, clean, duplicates="drop")  # without duplicates, the policy makes no difference


@pytest.mark.parametrize("shard_size", [1, 4])
def test_build_killed_while_dropping_copies_resumes_to_equal_shards(
    source: Path, tmp_path: Path, shard_size: int
) -> None:
    expected = build_shards(source, tmp_path / "expected", shard_size=shard_size)
    for moment in (2, 3, 5):
        out = tmp_path / f"killed-{moment}"
        for part in range(2):
            build_shards(source, out, shard_size=shard_size, part=part, parts=2)
        code = f"""
import os, pathlib, shard.duplicates as duplicates
count = [0]
def kill_in(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **named):
        count[0] += 1
        if count[0] == {moment}:
            os.kill(os.getpid(), 9)
        return real(*arguments, **named)
    setattr(owner, name, call)
kill_in(duplicates, "write_bytes"); kill_in(duplicates, "atomic_write"); kill_in(duplicates, "sha256_of")
kill_in(pathlib.Path, "unlink")
from shard.merge import merge
merge(pathlib.Path({str(out)!r}), max_rejects=0.0)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        merge(out, max_rejects=0.0)
        assert files(out) == files(expected)


def test_comparing_100_000_pictures_takes_seconds(tmp_path: Path) -> None:
    from shard.duplicates import Picture, resolve_duplicates
    from shard.manifest import Shard
    from shard.record import ShardRecord

    records = []
    for number in range(100):
        pictures = {f"k{number}-{k}": Picture(f"{number * 1000 + k:032x}", 1, 1, 1, 0, f"p{number}", "x").pack()
                    for k in range(1000)}  # fmt: skip
        shard = Shard(f"{number}.tar", f"{number}.idx", "train", 1000, 1, 1, "", "", 1, 1, 1)
        records.append(ShardRecord("", shard, {}, [], [], pictures=pictures))
    start = time.perf_counter()
    _, rejects, summary = resolve_duplicates(tmp_path, records, "drop")
    assert rejects == [] and summary.pictures == 0 and time.perf_counter() - start < 30


def test_jpegs_that_are_not_encoded_again_are_compared_by_pixels(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    buffer = io.BytesIO()
    picture(1).save(buffer, "JPEG", quality=90)
    content = buffer.getvalue()
    (src / "a.jpg").write_bytes(content)
    (src / "b.jpg").write_bytes(content[:2] + b"\xff\xfe\x00\x07hello" + content[2:])  # a comment
    (src / "t.csv").write_text("path,patient,split\na.jpg,a,train\nb.jpg,b,test\n")
    with pytest.raises(InputError, match="none of the 2 rows yielded a training image"):
        build_shards(src, tmp_path / "out", size=96, max_rejects=1.0)
