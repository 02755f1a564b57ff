"""A build keeps grey baseline JPEGs up to --size without their metadata, and encodes all other images."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shard.errors import InputError
from shard.image import decode
from shard.info import describe
from shard.jpeg.metadata import strip_intact, strip_metadata
from shard.manifest import Manifest, read_manifest
from shard.record import UNFINISHED
from shard.verify import verify
from shard.write import build
from tests.damage import encode, radiograph, to_colour

SECRET = b"Doe^Jane"
OPTIONS: list[dict[str, Any]] = [
    {}, {"quality": 40}, {"quality": 100}, {"optimize": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1},
]  # fmt: skip


def with_metadata(image: Image.Image, **options: Any) -> bytes:
    """Encode a JPEG whose EXIF, colour profile, comment, XMP and trailing bytes contain a name; and an odd density."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = SECRET.decode(), options.pop("orientation", 1)
    content = encode(image, exif=exif, icc_profile=SECRET * 9, comment=SECRET, xmp=SECRET, dpi=(72, 300), **options)
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    return content[:2] + adobe + content[2:] + SECRET


def without_metadata(content: bytes) -> bytes:
    """Cut out the JPEG's tables and data. Pillow writes metadata before the tables; the rest follows EOI."""
    return b"\xff\xd8" + content[content.index(b"\xff\xdb\0\x43") : content.rindex(b"\xff\xd9") + 2]


def build_shard(folder: Path, files: dict[str, bytes], **options: Any) -> tuple[Manifest, dict[str, bytes]]:
    """Build a shard of these files. Return its manifest and the bytes of each image by key."""
    source, out = folder / "source", folder / "out"
    source.mkdir()
    with (source / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "path", "patient", "split"])
        for number, (name, content) in enumerate(files.items()):
            (source / name).write_bytes(content)
            writer.writerow([name.partition(".")[0], name, f"p{number}", "train"])
    build(source, out, table=source / "table.csv", workers=1, **options)
    images = {}
    with tarfile.open(out / "train-000000.tar") as archive:
        for member in archive:
            extracted = archive.extractfile(member)
            assert extracted
            if not member.name.endswith(".json"):
                images[member.name.partition(".")[0]] = extracted.read()
    return read_manifest(out), images


@pytest.mark.parametrize("options", OPTIONS)
def test_strip_metadata_keeps_the_pixels_bit_for_bit(options: dict[str, Any]) -> None:
    content = with_metadata(radiograph(), **options)
    grey, kept = decode(content, 88)
    assert kept == without_metadata(content) == strip_metadata(content, grey) == strip_intact(content)
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert (pixels == grey).all()
    assert (simplejpeg.decode_jpeg(kept, "GRAY")[:, :, 0] == pixels).all()
    assert (np.asarray(Image.open(io.BytesIO(kept))) == pixels).all()


def test_a_kept_jpeg_is_decoded_once_as_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode_jpeg = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **b: decoded.append(a[0]) or decode_jpeg(*a, **b))
    for content in (encode(radiograph()), with_metadata(radiograph())):
        grey, kept = decode(content, 88)
        assert decoded == [kept] and (decode_jpeg(kept, "GRAY")[:, :, 0] == grey).all()
        decoded.clear()


def test_dali_decodes_a_stripped_jpeg_to_the_same_pixels(tmp_path: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    dali, types = pytest.importorskip("nvidia.dali"), pytest.importorskip("nvidia.dali.types")
    sources = [with_metadata(radiograph(), **options) for options in OPTIONS]
    pipe = dali.Pipeline(batch_size=len(sources), num_threads=1, device_id=None)
    with pipe:
        encoded = fn.external_source(lambda: [np.frombuffer(without_metadata(jpeg), np.uint8) for jpeg in sources])
        pipe.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=types.GRAY))
    (decoded,) = pipe.run()
    for number, content in enumerate(sources):
        assert (decoded.at(number)[:, :, 0] == np.asarray(Image.open(io.BytesIO(content)))).all()


def test_build_counts_the_jpegs_it_keeps_and_writes_no_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = radiograph()
    other = {
        "large.jpg": with_metadata(radiograph(120, 140)), "rotated.jpg": with_metadata(grey, orientation=6),
        "upside-down.jpg": with_metadata(grey, orientation=3),
        "colour.jpg": with_metadata(to_colour(grey)), "progressive.jpg": with_metadata(grey, progressive=True),
        "lossless.png": encode(grey, format="PNG"),
    }  # fmt: skip
    jpeg = with_metadata(grey)
    odd = {"stray.jpg": jpeg.replace(b"\xff\xd9", SECRET * 2 + b"\xff\xd9"), "camera.jpg": encode(
        grey, format="MPO", save_all=True, append_images=[grey])}  # fmt: skip
    files = {"grey.jpg": jpeg, **odd, **other}
    manifest, images = build_shard(tmp_path, files, size=88)
    kept = {name for name in images if images[name] in (without_metadata(jpeg), without_metadata(odd["camera.jpg"]))}
    assert kept == {"grey", "stray", "camera"} and len(images) == 9
    assert [shard.not_encoded for shard in manifest.shards] == [3]
    assert "JPEGs: 3 copied from their sources, without metadata; 6 encoded" in describe(tmp_path / "out", manifest)
    for content in images.values():
        assert SECRET not in content and b"Adobe" not in content
    shapes = [simplejpeg.decode_jpeg_header(content)[:2] for content in images.values()]
    assert all(min(shape) == 88 for shape in shapes)
    verify(tmp_path / "out", decode=True, workers=1)
    assert "3 of 9 images are copies of the source JPEGs" in capsys.readouterr().out
    assert manifest.shards[0].pixels == sum(map(np.prod, shapes))


def test_deidentified_shards_contain_only_pixels_of_their_sources(tmp_path: Path) -> None:
    jpeg = with_metadata(radiograph())
    manifest, images = build_shard(tmp_path, {"Doe.jpg": jpeg}, size=100, deidentify=tmp_path / "secret")
    assert list(images.values()) == [without_metadata(jpeg)] and manifest.shards[0].not_encoded == 1
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"Doe" not in file.read_bytes()


def test_raw_shards_keep_no_jpeg_and_reject_constant_images(tmp_path: Path) -> None:
    flat = encode(Image.new("L", (120, 88), 7))
    manifest, images = build_shard(tmp_path, {"a.jpg": encode(radiograph()), "flat.jpg": flat}, size=64, encoding="raw",
                           max_rejects=1)  # fmt: skip
    assert {len(content) for content in images.values()} == {64 * 64} and manifest.rejected == 1
    assert manifest.shards[0].not_encoded == 0 and "JPEGs:" not in describe(tmp_path / "out", manifest)


def test_manifest_without_the_count_of_kept_jpegs_is_read(tmp_path: Path) -> None:
    build_shard(tmp_path, {"a.jpg": encode(radiograph())}, size=64)
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        del shard["not_encoded"]
    path.write_text(json.dumps(content))
    assert "JPEGs: 0 copied" in describe(tmp_path / "out", read_manifest(tmp_path / "out"))
    for forged in (-1, 2, None):
        content["shards"][0]["not_encoded"] = forged
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="its shards are invalid"):
            read_manifest(tmp_path / "out")


def test_build_is_not_resumed_with_another_version_of_the_sharder(tmp_path: Path) -> None:
    """Otherwise some sources would be encoded and others kept."""
    build_shard(tmp_path, {"a.jpg": encode(radiograph())}, size=100)
    other = tmp_path / "other"
    with pytest.raises(InputError, match="rejected"):  # stops before it writes the manifest
        build(tmp_path / "source", other, table=table_with_reject(tmp_path), size=100, workers=1, max_rejects=0)
    record = other / UNFINISHED / "begun.json"
    content = json.loads(record.read_text())
    del content["software"]["sharder"]
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"sharder not set there, '\d+' now"):
        build(tmp_path / "source", other, table=table_with_reject(tmp_path), size=100, workers=1)


def table_with_reject(folder: Path) -> Path:
    """Write a table with one row that will be rejected."""
    (folder / "source" / "half.jpg").write_bytes(encode(radiograph())[:900])
    path = folder / "source" / "broken.csv"
    path.write_text("path,patient,split\na.jpg,p1,train\nhalf.jpg,p2,train\n")
    return path
