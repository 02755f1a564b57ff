"""Mutated images become samples that decode, or rejects; mutated tables are read, or refused in one line."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simplejpeg
import webdataset
from PIL import Image

from shard.dicom.image import has_pydicom
from shard.manifest import read_manifest
from shard.table import read_table
from tests.conftest import ROOT
from tests.fuzz import SEED, attempt, inputs, mutate, report_counts
from tests.odd_files import write_dicom, write_png

IMAGES, TABLES = inputs(330), inputs(80)


def write_originals(folder: Path, radiograph: Path) -> list[Path]:
    """Write one radiograph in many formats. Returns the files."""
    image = Image.open(radiograph).resize((96, 80))
    grey = np.asarray(image)
    image.save(folder / "grey.jpg", quality=80)
    image.convert("RGB").save(folder / "rgb.jpg", quality=80, progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=80)
    image.save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png", transparency=3)
    write_png(folder / "deep.png", np.dstack([grey.astype(np.uint16) * 200] * 3))
    write_png(folder / "interlaced.png", grey, interlaced=True)
    Image.fromarray(grey.astype(np.uint16) * 99).save(folder / "deep.tif")
    image.convert("RGB").save(folder / "packed.tif", compression="tiff_lzw")
    Image.fromarray(grey.astype(np.float32)).save(folder / "float.tif")
    if has_pydicom():
        window = {"WindowCenter": 2000, "WindowWidth": 3000}
        write_dicom(folder / "deep.dcm", grey.astype(np.uint16) * 16, BitsStored=12, **window)
    return sorted(folder.iterdir())


def test_mutated_images_decode_or_are_rejected(radiographs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 1])
    (tmp_path / "originals").mkdir()
    files = write_originals(tmp_path / "originals", next(radiographs.rglob("*.jpg")))
    source = tmp_path / "source"
    source.mkdir()
    rows = []
    for number in range(IMAGES):
        original = files[number % len(files)]
        name = f"{number:04d}{original.suffix}"
        (source / name).write_bytes(mutate(original.read_bytes(), rng))
        rows.append({"path": name, "patient": number, "split": "train", "Mass": 1})
    pd.DataFrame(rows).to_csv(source / "table.csv", index=False)
    for out, workers in (("out", 2), ("again", 1)):
        command = [sys.executable, "-m", "shard", "build", source, tmp_path / out, f"--table={source / 'table.csv'}",
                   "--size=64", "--max-rejects=1", f"--workers={workers}", "--shard-size=50"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120 + IMAGES)
        assert done.returncode == 0 and "Traceback" not in done.stderr  # libtiff prints warnings there
    assert (tmp_path / "out" / "rejects.csv").read_bytes() == (tmp_path / "again" / "rejects.csv").read_bytes()
    manifest = read_manifest(tmp_path / "out")
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv", keep_default_na=False)
    kept = 0
    for shard in manifest.shards:
        for sample in webdataset.WebDataset(str(tmp_path / "out" / shard.tar), shardshuffle=False):
            decoded = simplejpeg.decode_jpeg(sample["jpg"], "GRAY")[:, :, 0]
            assert np.abs(np.asarray(Image.open(io.BytesIO(sample["jpg"]))).astype(int) - decoded).max() <= 1
            kept += 1
    assert kept + len(rejects) == IMAGES
    assert kept > 30 and len(rejects) > 30  # both outcomes occur
    assert rejects["reason"].str.len().between(5, 200).all()
    report_counts("images", IMAGES, len(rejects))


def make_tables(folder: Path) -> dict[str, bytes]:
    """Return a table of each format, and write a file for each of its paths."""
    views = [f"train/patient{number:05d}/study1/view1_frontal.jpg" for number in range(1, 7)]
    names = [f"{number:08d}_000.png" for number in range(1, 7)]
    for path in [*views, *(f"images/{name}" for name in names)]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    chexpert = "Path,Sex,Age,Frontal/Lateral,AP/PA,Edema,Cardiomegaly\n" + "".join(
        f"CheXpert-v1.0-small/{view},Male,5{number},Frontal,AP,{label},1.0\n"
        for number, (view, label) in enumerate(zip(views, ("1.0", "-1.0", "", "0.0", "1.0", ""), strict=True)))
    nih = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n" + "".join(
        f"{name},{label},0,{number},PA\n"
        for number, (name, label) in enumerate(zip(names, ["Mass|Edema", "No Finding"] * 3, strict=True)))
    plain = "path,patient,split,view,Mass\n" + "".join(f"{view},{view[6:18]},train,PA,1\n" for view in views)
    return {"chexpert": chexpert.encode(), "nih": nih.encode(), "csv": plain.encode()}


@pytest.mark.parametrize("dataset", ["chexpert", "nih", "csv"])
def test_mutated_tables_are_read_or_refused(tmp_path: Path, dataset: str) -> None:
    rng = np.random.default_rng([SEED, 2])
    original = make_tables(tmp_path)[dataset]
    file = tmp_path / {"chexpert": "train.csv", "nih": "Data_Entry_2017.csv", "csv": "plain.csv"}[dataset]
    file.write_bytes(original)
    arguments = (tmp_path, dataset, file if dataset == "csv" else None)
    assert len(read_table(*arguments).rows) == 6
    refused = 0
    for _ in range(TABLES):
        file.write_bytes(mutate(original, rng))
        error, table = attempt(read_table, *arguments)
        if error:
            refused += 1
            continue
        assert table.rows["key"].is_unique and table.rows["key"].str.fullmatch("[A-Za-z0-9_-]{1,90}").all()
        assert table.rows["split"].isin(["train", "valid", "test"]).all()
        assert len(table.rows) + len(table.rejects) <= len(file.read_bytes().splitlines())  # no row is invented
    assert 5 < refused < TABLES - 5
    report_counts(f"tables, {dataset}", TABLES, refused)
