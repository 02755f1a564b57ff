"""build: shards contain every row, have the same bytes for any workers, parts and row order, and list all rejects."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from shard.errors import InputError
from shard.image import load_grey
from shard.machine import version_of
from shard.manifest import read_manifest
from shard.merge import merge
from shard.read import read_index, read_labels
from shard.table import read_table
from shard.write import build
from tests.conftest import ROOT, Shards
from tests.odd_files import write_dicom


def hashes_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_shards_contain_the_image_and_labels_of_every_row(radiographs: Path, shards: Shards) -> None:
    rows = read_table(radiographs).rows.set_index("key")
    found = 0
    for shard in shards.manifest.shards:
        for sample in webdataset.WebDataset(str(shards.folder / shard.tar), shardshuffle=False):
            row, content = rows.loc[sample["__key__"]], json.loads(sample["json"])
            image = np.asarray(Image.open(io.BytesIO(sample["jpg"]))).astype(int)
            assert image.ndim == 2 and min(image.shape) == 96
            assert np.abs(image - load_grey(radiographs / row["path"], 96)).mean() < 2
            assert (content["patient"], content["split"], content["view"]) == (row["patient"], shard.split, row["view"])
            assert (content["sex"], str(content["age"])) == (row["sex"], row["age"])
            for finding in shards.manifest.findings:
                label = content["labels"][finding]
                assert label == row[finding] or (label is None and pd.isna(row[finding]))
            found += 1
    assert found == len(rows) == sum(count["images"] for count in shards.manifest.counts.values())


@pytest.mark.parametrize("encoding", ["jpg", "raw"])
def test_webdataset_and_dali_read_the_same_samples(
    encoding: str, shards: Shards, raw_shards: Shards, radiographs: Path
) -> None:
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    dali = pytest.importorskip("nvidia.dali")
    built = raw_shards if encoding == "raw" else shards
    paths = {row["key"]: row["path"] for row in read_table(radiographs).rows.to_dict("records")}
    for shard in built.manifest.shards:
        pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
        with pipe:
            pipe.set_outputs(*fn.readers.webdataset(
                paths=[str(built.folder / shard.tar)], index_paths=[str(built.folder / shard.index)],
                ext=[encoding, "json"], missing_component_behavior="error"))  # fmt: skip
        pipe.build()
        count = 0
        for sample in webdataset.WebDataset(str(built.folder / shard.tar), shardshuffle=False):
            image, content = (output.at(0).tobytes() for output in pipe.run())
            assert (image, content) == (sample[encoding], sample["json"])
            if encoding == "raw":  # the center 96 × 96 of the resized image
                pixels = np.frombuffer(image, np.uint8).reshape(96, 96)
                grey = load_grey(radiographs / paths[sample["__key__"]], 96)
                top, left = (grey.shape[0] - 96) // 2, (grey.shape[1] - 96) // 2
                assert (pixels == grey[top : top + 96, left : left + 96]).all()
            count += 1
        assert count == shard.samples


def test_workers_and_parts_do_not_change_the_bytes(radiographs: Path, shards: Shards, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "two", size=96, shard_size=40, workers=2)
    for part in (4, 2, 0, 1, 3):
        build(radiographs, tmp_path / "parts", size=96, shard_size=40, workers=1, part=part, parts=5)
    merge(tmp_path / "parts")
    assert hashes_of(tmp_path / "two") == hashes_of(shards.folder)
    assert hashes_of(tmp_path / "parts") == hashes_of(shards.folder)


def test_file_order_row_order_and_process_do_not_change_the_bytes(
    radiographs: Path, shards: Shards, tmp_path: Path
) -> None:
    """Reverses the creation of files and the rows; changes folder, hash seed, locale, umask and process."""
    source = tmp_path / "another name, with blanks"
    for file in sorted(radiographs.rglob("*.jpg"), reverse=True):
        copy = source / file.relative_to(radiographs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    shutil.copy(radiographs / "README.txt", source)
    for name in ("train.csv", "valid.csv"):
        header, *lines = (radiographs / name).read_text().splitlines()
        (source / name).write_text("\n".join([header, *reversed(lines)]) + "\n")
    command = [sys.executable, "-m", "shard", "build", str(source), str(tmp_path / "out"), "--size=96",
               "--shard-size=40"]  # fmt: skip
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=env, check=True, umask=0o027)
    built = read_manifest(tmp_path / "out")
    assert [table["sha256"] for table in built.tables] == [
        hashlib.sha256((source / f"{split}.csv").read_bytes()).hexdigest() for split in ("train", "valid")]
    replace(built, tables=shards.manifest.tables).write(tmp_path / "out")  # the tables' own bytes differ
    assert hashes_of(tmp_path / "out") == hashes_of(shards.folder)


def test_seed_determines_the_order(radiographs: Path, shards: Shards, tmp_path: Path) -> None:
    build(radiographs, tmp_path / "other", size=96, shard_size=40, workers=1, seed=5)
    keys, other_keys = (list(read_labels(folder, read_manifest(folder), ("train",))["key"])
                    for folder in (shards.folder, tmp_path / "other"))  # fmt: skip
    assert sorted(keys) == sorted(other_keys)
    assert keys != other_keys and keys != sorted(keys)


def test_index_equals_the_one_of_dalis_own_script(shards: Shards, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="DALI, whose script writes the expected index, is not installed")
    for shard in shards.manifest.shards:
        index = tmp_path / "expected.idx"
        with wds2idx.IndexCreator(str(shards.folder / shard.tar), str(index), verbose=False) as creator:
            creator.create_index()
        samples = read_index(shards.folder / shard.index)
        assert samples == read_index(index) and len(samples) == shard.samples


def test_manifest_has_mean_and_standard_deviation_of_the_pixels(raw_shards: Shards) -> None:
    pixels = []
    for shard in raw_shards.manifest.of_split("train"):
        for sample in webdataset.WebDataset(str(raw_shards.folder / shard.tar), shardshuffle=False):
            assert len(sample["raw"]) == 96 * 96
            pixels.append(np.frombuffer(sample["raw"], np.uint8) / 255)
    assert raw_shards.manifest.pixel_mean == pytest.approx(np.mean(pixels), abs=1e-6)
    assert raw_shards.manifest.pixel_std == pytest.approx(np.std(pixels), abs=1e-6)


def test_manifest_counts_equal_the_tables(radiographs: Path, shards: Shards) -> None:
    rows = read_table(radiographs).rows
    for split, findings in shards.manifest.labels.items():
        own = rows[rows["split"] == split]
        assert shards.manifest.counts[split] == {"images": len(own), "patients": own["patient"].nunique()}
        for finding, counts in findings.items():
            values = own[finding]
            assert counts == {"1": (values == 1).sum(), "0": (values == 0).sum(), "-1": (values == -1).sum(),
                              "blank": values.isna().sum()}  # fmt: skip
        demographics = shards.manifest.demographics[split]
        assert demographics["sex"] == {sex: (own["sex"] == sex).sum() for sex in "FM"}
        assert demographics["view"] == own["view"].value_counts().to_dict()
        assert demographics["age"]["40 to 59"] == own["age"].astype(int).between(40, 59).sum()
        assert sum(demographics["age"].values()) == len(own)


@pytest.fixture
def damaged(radiographs: Path, tmp_path: Path) -> Path:
    """The radiographs with three of 121 unreadable, one row repeated twice, and one key in two different rows."""
    source = tmp_path / "source"
    shutil.copytree(radiographs, source)
    truncated, text, missing, repeated, ambiguous = sorted(source.glob("train/*/*/*.jpg"))[:5]
    truncated.write_bytes(truncated.read_bytes()[:2000])
    text.write_text("no image")
    missing.unlink()
    header, *lines = (source / "train.csv").read_text().splitlines()
    (row,) = (line for line in lines if repeated.relative_to(source).as_posix() in line)
    (other,) = (line for line in lines if ambiguous.relative_to(source).as_posix() in line)
    differing = other.rsplit(",", 1)[0] + ("," if other.endswith("1.0") else ",1.0")  # Support Devices
    (source / "train.csv").write_text("\n".join([header, *lines, row, row, differing]) + "\n")
    return source


def test_build_excludes_lists_and_counts_unusable_rows(damaged: Path, tmp_path: Path) -> None:
    build(damaged, tmp_path / "shards", size=96, workers=1, max_rejects=0.1)
    manifest = read_manifest(tmp_path / "shards")
    rejects = pd.read_csv(tmp_path / "shards" / "rejects.csv")
    assert list(rejects.columns) == ["key", "path", "reason"]
    assert sorted(rejects["reason"]) == sorted([
        "broken image: Premature end of JPEG file", "not an image in a known format", "no such file",
        *["repeats an earlier row"] * 2, *["2 rows have this key and differ in Support Devices"] * 2])  # fmt: skip
    assert manifest.settings["rows"] == 124 and manifest.rejected == len(rejects) == 7
    assert sum(shard.samples for shard in manifest.shards) == 117
    kept = read_labels(tmp_path / "shards", manifest, ("train", "valid"))
    assert set(kept["key"]) & set(rejects["key"]) == set(rejects["key"][rejects["reason"].str.startswith("repeats")])


def test_too_many_rejects_raise_and_the_next_build_continues(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    expected = r"the table of .*: 4 of 124 rows rejected \(3\.2%; --max-rejects allows 1\.0%\), .*--max-rejects=0\.033"
    with pytest.raises(InputError, match=expected):
        build(damaged, out, size=96, workers=1, shard_size=40)
    assert not out.exists()  # the rejects of the table alone stopped it
    with pytest.raises(InputError, match=r"rejects\.csv: 7 of 124 rows rejected \(5\.6%; --max-rejects allows 4\.0%\)"):
        build(damaged, out, size=96, workers=1, shard_size=40, max_rejects=0.04)
    assert not (out / "manifest.json").exists() and len(pd.read_csv(out / "rejects.csv")) == 7
    before = {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
    build(damaged, out, size=96, workers=1, shard_size=40, max_rejects=0.06)
    assert {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")} == before  # no shard was written twice


def test_next_build_uses_a_repaired_source(damaged: Path, radiographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with pytest.raises(InputError, match="7 of 124 rows"):
        build(damaged, out, size=96, workers=1, shard_size=40, max_rejects=0.04)
    for file in sorted(damaged.glob("train/*/*/*.jpg"))[:3]:
        shutil.copy(radiographs / file.relative_to(damaged), file)
    shutil.copytree(radiographs / "train", damaged / "train", dirs_exist_ok=True)
    build(damaged, out, size=96, workers=1, shard_size=40, max_rejects=0.04)
    assert read_manifest(out).rejected == 4
    build(damaged, tmp_path / "fresh", size=96, workers=1, shard_size=40, max_rejects=0.04)
    assert hashes_of(out) == hashes_of(tmp_path / "fresh")


def test_source_without_a_readable_image_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "table.csv").write_text("path,patient,split,Mass\na.jpg,p,train,1\n")
    with pytest.raises(InputError, match=r"none of the 1 rows yielded a training image \(a\.jpg: not an image"):
        build(tmp_path, tmp_path / "shards", table=tmp_path / "table.csv", workers=1, max_rejects=1)
    assert not list((tmp_path / "shards").glob("*.tar")) and not (tmp_path / "shards" / "manifest.json").exists()


def test_repeated_build_does_nothing_and_another_build_is_refused(radiographs: Path, shards: Shards) -> None:
    before = hashes_of(shards.folder)
    build(radiographs, shards.folder, size=96, shard_size=40, workers=1)
    with pytest.raises(InputError, match=r"another build \(size 96 there, 64 now\)"):
        build(radiographs, shards.folder, size=64, shard_size=40, workers=1)
    assert hashes_of(shards.folder) == before


def test_longest_key_fits_into_a_tar_header(tmp_path: Path) -> None:
    name = "/".join(["a-long-folder-name"] * 9) + "/" + "1.2.840." * 8 + "9.png"
    image = tmp_path / name
    image.parent.mkdir(parents=True)
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(image)
    (tmp_path / "table.csv").write_text(f"path,patient,split,Mass\n{name},p,train,1\n")
    build(tmp_path, tmp_path / "out", table=tmp_path / "table.csv", workers=1)
    (sample,) = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)
    assert len(sample["__key__"]) == 90 and set(sample) >= {"jpg", "json"}


def test_other_dicom_readers_rebuild_a_finished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file name does not reveal DICOM, so that only the shard's record lists the readers."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    write_dicom(source / "a.png", values, BitsStored=12)
    (source / "t.csv").write_text("path,patient,split\na.png,a,train\n")

    def readers() -> str:
        build(source, out, table=source / "t.csv", workers=1, part=0, parts=2)
        record = next(record for record in (out / "build").glob("*.json") if "rows_sha256" in record.read_text())
        return str(json.loads(record.read_text())["readers"]["pydicom"])

    first = readers()
    monkeypatch.setattr("shard.write_shard.version_of", lambda name: "0.0" if name == "pydicom" else version_of(name))
    assert first != "0.0" and readers() == "0.0"
