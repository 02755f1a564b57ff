"""A build of one folder with every unusual and every broken kind of image: what it keeps, and why it rejects."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shard.dicom.image import has_pydicom
from shard.image import encode_jpeg
from shard.manifest import read_manifest
from tests.conftest import ROOT
from tests.odd_files import write_dicom, write_png, write_tiff

RAMP = np.tile(np.linspace(0, 255, 160, dtype=np.uint8), (120, 1))  # [120, 160]
RAMP16 = RAMP.astype(np.uint16) * 200 + 90
BLACK_BELOW = np.where(np.arange(120)[:, None] < 60, 255, 0).astype(np.uint8).repeat(160, 1)


def write_good(folder: Path) -> dict[str, np.ndarray]:
    """Write files that a build keeps. Returns the expected grey levels by name."""
    grey = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    grey.save(folder / "grey8.png")
    Image.fromarray(RAMP16).save(folder / "grey16.png")
    grey.convert("RGB").save(folder / "rgb.png")
    write_png(folder / "rgb16.png", np.dstack([RAMP16] * 3))
    Image.fromarray(np.dstack([RAMP, RAMP, RAMP, BLACK_BELOW])).save(folder / "rgba.png")
    grey.convert("P").save(folder / "palette.png")
    write_png(folder / "interlaced.png", RAMP, interlaced=True)
    grey.save(folder / "grey.jpg", quality=97)
    grey.convert("RGB").save(folder / "rgb.jpeg", quality=97)
    grey.convert("CMYK").save(folder / "cmyk.JPG", format="JPEG", quality=97)
    grey.save(folder / "progressive.jpg", quality=97, progressive=True)
    Image.fromarray(RAMP[::-1, ::-1]).save(folder / "turned.jpg", quality=97, exif=exif)
    grey.save(folder / "a name with blanks, and ümlauts.jpg", quality=97)
    Image.fromarray(RAMP > 127).save(folder / "one-bit.tif")
    Image.fromarray(RAMP16).save(folder / "grey16.tif")
    Image.fromarray(RAMP.astype(np.float32) / 7).save(folder / "float.tiff")
    write_tiff(folder / "white-is-zero.tif", RAMP16, photometric=0)
    good = dict.fromkeys((file.name for file in folder.iterdir()), RAMP)
    good |= {"rgba.png": np.minimum(RAMP, BLACK_BELOW), "one-bit.tif": np.where(RAMP > 127, 255, 0).astype(np.uint8),
             "white-is-zero.tif": 255 - RAMP}  # fmt: skip
    if has_pydicom():
        write_dicom(folder / "1.2.840.dcm", RAMP16 // 16, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
        good["1.2.840.dcm"] = 255 - RAMP
    return good


def write_bad(folder: Path) -> dict[str, str]:
    """Write files that a build rejects. Returns the start of the reason by name."""
    (folder / "zero.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "truncated.jpg").write_bytes(encode_jpeg(RAMP, 90)[:-300])
    Image.fromarray(RAMP).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:-60])
    (folder / "folder.jpg").mkdir()
    Image.new("L", (160, 120), 9).save(folder / "constant.png")
    Image.fromarray(RAMP[:9, :9]).save(folder / "tiny.png")
    Image.fromarray(np.hstack([RAMP[:33]] * 2)).save(folder / "narrow.png")
    write_png(folder / "bomb.png", RAMP, claim=(50_000, 50_000))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    Image.fromarray(RAMP).save(folder / "secret.png")
    (folder / "secret.png").chmod(0)
    return {
        "zero.jpg": "empty file", "text.jpg": "not an image in a known format",
        "truncated.jpg": "broken image: Premature end of JPEG file", "truncated.png": "broken image: ",
        "folder.jpg": "is a folder",
        "constant.png": "near-constant image: 98 % of it lies within grey levels 9 to 9",
        "tiny.png": "9×9 pixels: too small or too narrow for a radiograph",
        "narrow.png": "320×33 pixels: too small or too narrow for a radiograph",
        "bomb.png": "", "pipe.jpg": "not a regular file", "loop.jpg": "symbolic links form a loop",
        "secret.png": "permission denied", "absent.png": "no such file",
    }  # fmt: skip


# Root may read any file unless it drops the capability.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(UNPRIVILEGED) and not shutil.which("setpriv"), reason="root, and setpriv is not installed")
def test_build_keeps_unusual_files_and_rejects_broken_ones(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    good, bad = write_good(source), write_bad(source)
    names = {f"k{number}": name for number, name in enumerate([*good, *bad])}
    rows = [{"key": key, "path": name, "patient": key, "split": "train", "Mass": 1} for key, name in names.items()]
    rows.append(rows[0])
    rows += [{**rows[1], "key": "shared", "patient": "p", "Mass": mass} for mass in (0, 1)]
    with (source / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    command = [*UNPRIVILEGED, sys.executable, "-m", "shard", "build", source, out, f"--table={source / 'table.csv'}",
               "--max-rejects=1"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    with (out / "rejects.csv").open(newline="", encoding="utf-8") as file:
        rejects = [(row["key"], row["path"], row["reason"]) for row in csv.DictReader(file)]
    shared = ("shared", rows[1]["path"], "2 rows have this key and differ in Mass")
    assert [row for row in rejects if row[0] not in names or names[row[0]] in good] == [
        ("k0", names["k0"], "repeats an earlier row"), shared, shared]  # fmt: skip
    found = {path: reason for key, path, reason in rejects if names.get(key) in bad}
    assert set(found) == set(bad)
    assert {path: found[path] for path in bad if not found[path].startswith(bad[path])} == {}
    kept = 0
    for sample in webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False):
        image = np.asarray(Image.open(io.BytesIO(sample["jpg"]))).astype(int)
        name = names[sample["__key__"]]
        assert np.abs(image - good[name]).mean() < 2, name
        kept += 1
    manifest = read_manifest(out)
    assert kept == len(good) == manifest.images("train")
    assert kept + manifest.rejected == manifest.settings["rows"] == len(rows)
