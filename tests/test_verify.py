"""verify names damaged shards; info describes them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard.errors import InputError
from shard.files import sha256_of
from shard.info import info
from shard.manifest import Manifest, parse_manifest, read_manifest
from shard.read import read_labels
from shard.tar import TarWriter
from shard.verify import verify
from tests.conftest import Shards

Samples = dict[str, dict[str, bytes]]


@pytest.mark.parametrize("damage", ["flip", "truncate", "index", "missing", "stale"])
def test_verify_names_the_damaged_file(shards: Shards, tmp_path: Path, damage: str) -> None:
    verify(shards.folder, workers=1)
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    shard, other = shards.manifest.shards[:2]
    victim = copy / (shard.index if damage in ("index", "stale") else shard.tar)
    content = bytearray(victim.read_bytes())
    if damage == "truncate":
        del content[-512:]
    elif damage == "stale":
        content = bytearray((copy / other.index).read_bytes()[: len(content)])
        content += b" " * (shard.index_bytes - len(content))
    else:
        content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    if damage == "missing":
        victim.unlink()
    with pytest.raises(InputError, match=rf"{victim.name}.* \(1 fault in all\)"):
        verify(copy, workers=1)
    if damage == "flip":
        verify(copy, quick=True)  # only reading the whole tar reveals it
    else:
        with pytest.raises(InputError, match=victim.name):
            verify(copy, quick=True)
        with pytest.raises(InputError, match=victim.name):
            read_manifest(copy)  # as every loader does first


def test_verify_counts_all_faults(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    for shard in shards.manifest.shards[:3]:
        content = bytearray((copy / shard.tar).read_bytes())
        content[700] ^= 1
        (copy / shard.tar).write_bytes(content)
    with pytest.raises(InputError, match=rf"{shards.manifest.shards[0].tar}.*\(3 faults in all\)"):
        verify(copy, workers=2)


def forge(folder: Path, change: Callable[[Samples], None]) -> None:
    """Change the samples of the first shard, and update index and manifest, so that all hashes match."""
    manifest = parse_manifest(folder)
    first = manifest.shards[0]
    samples: Samples = {}
    with tarfile.open(folder / first.tar) as archive:
        for member in archive:
            key, ending = member.name.split(".")
            file = archive.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[ending] = file.read()
    change(samples)
    with (folder / first.tar).open("wb") as tar, TarWriter(tar) as writer:
        for key, members in samples.items():
            writer.add(key, members)
    (folder / first.index).write_bytes(writer.index())
    rehash(folder, manifest)


def rehash(folder: Path, manifest: Manifest) -> None:
    first, *others = manifest.shards
    forged = dataclasses.replace(
        first, tar_bytes=(folder / first.tar).stat().st_size, tar_sha256=sha256_of(folder / first.tar),
        index_bytes=(folder / first.index).stat().st_size, index_sha256=sha256_of(folder / first.index),
        image_xxh3="", labels_xxh3="")  # fmt: skip
    dataclasses.replace(manifest, shards=(forged, *others)).write(folder)


def relabel(samples: Samples, **changes: object) -> None:
    members = next(iter(samples.values()))
    members["json"] = json.dumps({**json.loads(members["json"]), **changes}).encode()


def labels_of(samples: Samples) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(next(iter(samples.values()))["json"])
    return described


def truncate_image(samples: Samples) -> None:
    members = next(iter(samples.values()))
    members["jpg"] = members["jpg"][:-300]


def flip_label(samples: Samples) -> None:
    labels = json.loads(next(iter(samples.values()))["json"])["labels"]
    labels["Edema"] = 1 if labels["Edema"] != 1 else 0
    relabel(samples, labels=labels)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda samples: samples.pop(next(iter(samples))), "39 samples, the manifest says 40"),
        (lambda samples: next(iter(samples.values())).pop("json"), r"has \['jpg'\], not jpg and json"),
        (lambda samples: next(iter(samples.values())).update(jpg=b"no image"), "its JPEG can't be decoded"),
        (lambda samples: relabel(samples, split="test"), "belongs to split 'test', but is in a shard of 'train'"),
        (lambda samples: relabel(samples, labels={"Edema": 7}), "has invalid labels: "),
        (lambda samples: next(iter(samples.values())).update(json=b"{"), "its json can't be read"),
        (lambda samples: relabel(samples, patient="patient64541"), "patient 'patient64541' is in train and valid"),
        (lambda samples: relabel(samples, patient="nobody"), "patients in train, the manifest says"),
        (flip_label, "images in train have Edema"),
        (lambda samples: relabel(samples, view=float("nan")), r"its json can't be read \(ValueError: contains NaN"),
        (lambda samples: relabel(samples, age=float("inf")), r"its json can't be read \(ValueError: contains Infinity"),
        (lambda samples: relabel(samples, view="oblique"), "view in train is {.*'oblique': 1.*}, the manifest says"),
        (lambda samples: relabel(samples, age=3 if labels_of(samples)["age"] >= 40 else 50), "age in train is {"),
        (lambda samples: relabel(samples, sex=""), "sex in train is {.*'blank': 1.*}, the manifest says"),
        (lambda samples: relabel(samples, sex=1), "has an invalid sex, age or view: 1, "),
    ],
)
def test_verify_describes_samples_that_differ_from_the_manifest(
    shards: Shards, tmp_path: Path, change: Callable[[Samples], None], expected: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    forge(copy, change)
    verify(copy, quick=True)
    with pytest.raises(InputError, match=expected):
        verify(copy, workers=1)


@pytest.mark.parametrize(
    "change", [lambda samples: next(iter(samples.values())).update(jpg=b"no image"),
               lambda samples: next(iter(samples.values())).update(json=b"{}"),
               lambda samples: relabel(samples, labels=None)])  # fmt: skip
def test_info_names_an_image_that_cannot_be_shown(
    shards: Shards, tmp_path: Path, change: Callable[[Samples], None]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    forge(copy, change)
    with pytest.raises(InputError, match=r"train-000000.tar, image \w+: can't be shown .*; put back the shards"):
        info(copy, png=tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("labels", [None, {"Edema": "yes"}, {"Edema": 7}, []])
def test_read_labels_names_a_sample_with_invalid_labels(shards: Shards, tmp_path: Path, labels: object) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    forge(copy, lambda samples: relabel(samples, labels=labels))
    with pytest.raises(InputError, match=r"train-000000.tar, image \w+: its labels can't be read"):
        read_labels(copy, read_manifest(copy), ("train",))


def test_verify_names_a_key_in_two_shards(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    with tarfile.open(copy / shards.manifest.shards[1].tar) as archive:
        key = archive.getnames()[0].split(".")[0]

    def rename(samples: Samples) -> None:
        samples[key] = samples.pop(next(iter(samples)))

    forge(copy, rename)
    with pytest.raises(InputError, match=f"key '{key}' occurs in the shards 2 times"):
        verify(copy, workers=1)


def test_verify_decode_finds_a_truncated_image(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    forge(copy, truncate_image)
    verify(copy, workers=1)
    with pytest.raises(InputError, match="its JPEG can't be decoded"):
        verify(copy, decode=True, workers=1)
    verify(shards.folder, decode=True, workers=1)


@pytest.mark.parametrize("field", ["image_xxh3", "labels_xxh3"])
def test_verify_names_a_shard_whose_manifest_has_other_hashes_of_its_samples(
    shards: Shards, tmp_path: Path, field: str
) -> None:
    shutil.copytree(shards.folder, tmp_path / "shards")
    first, *others = shards.manifest.shards
    stated = getattr(first, field)
    changed = dataclasses.replace(first, **{field: ("1" if stated[0] == "0" else "0") + stated[1:]})
    dataclasses.replace(shards.manifest, shards=(changed, *others)).write(tmp_path / "shards")
    with pytest.raises(InputError, match=rf"{first.tar}: its samples do not match their hashes in the manifest"):
        verify(tmp_path / "shards")


def test_verify_names_an_index_with_wrong_offsets(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    index = copy / shards.manifest.shards[0].index
    lines = index.read_text().splitlines()
    words = lines[3].split()
    words[1] = str(int(words[1]) + 512)
    index.write_text("\n".join([*lines[:3], " ".join(words), *lines[4:]]) + "\n")
    rehash(copy, parse_manifest(copy))
    with pytest.raises(InputError, match=rf"{index.name}: does not match the members"):
        verify(copy, workers=1)


def test_verify_names_raw_samples_of_the_wrong_size(raw_shards: Shards, tmp_path: Path) -> None:
    verify(raw_shards.folder, decode=True, workers=1)
    copy = tmp_path / "copy"
    shutil.copytree(raw_shards.folder, copy)
    forge(copy, lambda samples: next(iter(samples.values())).update(raw=b"\0" * 100))
    with pytest.raises(InputError, match="100 raw bytes, not 9216"):
        verify(copy, workers=1)


def test_info_prints_counts_labels_and_settings(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    info(shards.folder)
    text = capsys.readouterr().out
    train = shards.manifest.counts["train"]
    labels = shards.manifest.labels["train"]["Cardiomegaly"]
    assert f"train: {train['images']} images of {train['patients']} patients" in text
    assert f"{labels['1']:8}{labels['0']:8}{labels['-1']:8}{labels['blank']:8}" in text
    assert "size=96" in text and shards.manifest.fingerprint() in text and "pillow " in text
    assert f"mean {shards.manifest.pixel_mean:.4f}" in text
    counts = shards.manifest.demographics["train"]
    assert f"  sex: F {counts['sex']['F']}, M {counts['sex']['M']}\n" in text
    assert f"  age: under 40 {counts['age']['under 40']}, 40 to 59 " in text
    assert f"  view: AP {counts['view']['AP']}, PA {counts['view']['PA']}, lateral " in text


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_info_writes_a_sheet_and_a_page_of_64_images(
    encoding: str, shards: Shards, raw_shards: Shards, tmp_path: Path
) -> None:
    built = raw_shards if encoding == "raw" else shards
    info(built.folder, png=tmp_path / "new" / "sheet.png", html=tmp_path / "sheet.html")
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    tiles = [sheet[top * 174 : top * 174 + 160, left * 160 : left * 160 + 160] for top in range(8) for left in range(8)]
    assert all(tile.std() > 20 for tile in tiles)
    assert len({hashlib.sha256(tile.tobytes()).digest() for tile in tiles}) == 64
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<img ") == 64 and "patients" in page and "alt=\"Radiograph patient" in page
    (width, height) = Image.open(io.BytesIO((tmp_path / "new" / "sheet.png").read_bytes())).size
    assert (width, height) == (1280, 8 * 174)


@pytest.mark.parametrize(("name", "value"), [("pixel_std", 0.0), ("pixel_std", True), ("pixel_mean", 1.5)])
def test_manifest_with_invalid_pixel_statistics_is_refused(
    shards: Shards, tmp_path: Path, name: str, value: float
) -> None:
    dataclasses.replace(shards.manifest, **{name: value}).write(tmp_path)
    with pytest.raises(InputError, match=f"not a manifest .*its {name} are invalid"):
        parse_manifest(tmp_path)


def test_shards_without_demographics_of_older_versions_are_valid(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    content = json.loads((copy / "manifest.json").read_text())
    assert set(content.pop("demographics")) == {"train", "valid"}
    (copy / "manifest.json").write_text(json.dumps(content))
    verify(copy, workers=1)
    info(copy)
    printed = capsys.readouterr().out
    assert "as written" in printed and "  view:" not in printed


def test_manifest_with_nan_is_refused(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"seed": 0', '"seed": NaN'))
    with pytest.raises(InputError, match=r"not a manifest .*contains NaN, which is not valid JSON"):
        verify(copy)
