"""Fetcher returns images as written; a missing, truncated or corrupt tar raises an error that names it."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import shard.fetch
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.read import read_index, read_labels, read_members
from tests.conftest import Shards


@pytest.fixture
def shards_copy(shards: Shards, tmp_path: Path) -> Shards:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    return Shards(folder, read_manifest(folder))


@pytest.fixture
def older_copy(shards_copy: Shards) -> Shards:
    """Shards of an older version, whose manifest lacks the hashes of the samples."""
    shards = tuple(dataclasses.replace(shard, image_xxh3="", labels_xxh3="") for shard in shards_copy.manifest.shards)
    return Shards(shards_copy.folder, dataclasses.replace(shards_copy.manifest, shards=shards))


def written(built: Shards, split: str) -> list[tuple[str, bytes]]:
    """Read all (key, image) of a split through the indexes."""
    extension = built.manifest.settings["encoding"].replace("jpeg", "jpg")
    pairs = []
    for part in built.manifest.of_split(split):
        samples = read_index(built.folder / part.index)
        keys = (sample.key for sample in samples)
        pairs += list(zip(keys, read_members(built.folder, part, samples, extension), strict=True))
    return pairs


def test_threads_read_images_as_written_in_any_order(
    shards: Shards, raw_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard.fetch, "OPEN_TARS", 1)  # so that tars are closed and opened all the time
    for original in (shards, raw_shards):
        folder = tmp_path / original.folder.name  # copies, which no other test has open
        shutil.copytree(original.folder, folder)
        built = Shards(folder, original.manifest)
        fetcher, expected = Fetcher(built.folder, built.manifest, "train"), written(built, "train")
        assert len(fetcher) == len(expected) == built.manifest.images("train") > 40  # in two tars at least
        order = np.random.default_rng(0).permutation(np.tile(np.arange(len(expected)), 5)).tolist()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fetcher.read, order)) == [expected[number][1] for number in order]
        assert [fetcher.key(number) for number in range(0, len(expected), 7)] == [key for key, _ in expected[::7]]
        assert len([file for file in psutil.Process().open_files() if file.path.startswith(f"{built.folder}/")]) == 1


def test_fetcher_can_be_pickled(shards: Shards) -> None:
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    content = fetcher.read(3)
    assert pickle.loads(pickle.dumps(fetcher)).read(3) == content


def first_tar(built: Shards) -> Path:
    return built.folder / built.manifest.of_split("train")[0].tar


def middle_of(built: Shards, number: int) -> int:
    """Return the offset of the middle byte of an image in the first tar."""
    sample = read_index(first_tar(built).with_suffix(".idx"))[number]
    offset, size = sample.members["jpg"]
    return offset + size // 2


def flip_bit(path: Path, offset: int) -> None:
    """Flip a bit in place, as a faulty disk would: size and inode stay."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("reopened", [False, True])
def test_corruption_after_the_first_read_is_named_by_tar_and_key(shards_copy: Shards, reopened: bool) -> None:
    fetcher, tar = Fetcher(shards_copy.folder, shards_copy.manifest, "train"), first_tar(shards_copy)
    before = fetcher.read(5)
    flip_bit(tar, middle_of(shards_copy, 4))
    if reopened:
        fetcher.reopen()
    assert fetcher.read(5) == before  # the image next to it is intact
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(4)}: its bytes have changed.*verify.*run"):
        fetcher.read(4)
    with tar.open("r+b") as file:
        file.truncate(middle_of(shards_copy, 6))
    assert fetcher.read(5) == before
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(6)}: ends at \d+ bytes, the manifest says \d+"):
        fetcher.read(6)


def test_missing_tar_is_noticed_when_it_is_reopened(shards_copy: Shards) -> None:
    fetcher, tar = Fetcher(shards_copy.folder, shards_copy.manifest, "train"), first_tar(shards_copy)
    before = fetcher.read(5)
    tar.rename(tar.with_suffix(".moved"))
    assert fetcher.read(5) == before  # still open
    fetcher.reopen()
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(5)}: No such file.*put back the shards"):
        fetcher.read(5)
    tar.with_suffix(".moved").rename(tar)
    assert fetcher.read(5) == before


DAMAGES = {"corrupt image": "sha256 .*the manifest says", "corrupt header": "sha256 .*the manifest says",
           "truncated": "bytes, the manifest says", "longer": "bytes, the manifest says", "missing": "No such file",
           "index": "sha256 .*the manifest says"}  # fmt: skip


def damage_tar(built: Shards, damage: str) -> None:
    """Damage the first tar or its index; "corrupt image" is image 20."""
    tar = first_tar(built)
    if damage == "corrupt image":
        flip_bit(tar, middle_of(built, 20))
    elif damage == "corrupt header":
        flip_bit(tar, 3)
    elif damage == "truncated":
        with tar.open("r+b") as file:
            file.truncate(tar.stat().st_size - 512)
    elif damage == "longer":
        with tar.open("ab") as file:
            file.write(b"\0")
    elif damage == "missing":
        tar.unlink()
    else:
        flip_bit(tar.with_suffix(".idx"), 40)


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_before_the_first_read_of_older_shards_is_named(older_copy: Shards, damage: str) -> None:
    fetcher = Fetcher(older_copy.folder, older_copy.manifest, "train")
    damage_tar(older_copy, damage)
    with pytest.raises(InputError, match=f"{DAMAGES[damage]}.*put back the shards"):
        fetcher.read(0)


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "index"])
def test_damage_before_the_first_read_is_named(shards_copy: Shards, damage: str) -> None:
    fetcher = Fetcher(shards_copy.folder, shards_copy.manifest, "train")
    damage_tar(shards_copy, damage)
    with pytest.raises(InputError, match=f"{DAMAGES[damage]}.*put back the shards"):
        fetcher.read(0)


def test_reads_only_the_images_asked_for_and_names_the_corrupt_one(shards_copy: Shards) -> None:
    """A rank reads its share of a tar, so a corrupt image is noticed by the process that reads it."""
    expected = written(shards_copy, "train")
    fetcher, tar = Fetcher(shards_copy.folder, shards_copy.manifest, "train"), first_tar(shards_copy)
    damage_tar(shards_copy, "corrupt image")
    before = psutil.Process().io_counters().read_chars
    assert fetcher.read(19) == expected[19][1]
    allowed = len(expected[19][1]) + tar.with_suffix(".idx").stat().st_size * 2 + 10_000
    assert psutil.Process().io_counters().read_chars - before < allowed < tar.stat().st_size
    with pytest.raises(InputError, match=rf"{tar}, image {expected[20][0]}: its bytes have changed.*put back the"):
        fetcher.read(20)


def test_corrupt_labels_are_named_by_their_tar(shards_copy: Shards) -> None:
    tar, sample = first_tar(shards_copy), read_index(first_tar(shards_copy).with_suffix(".idx"))[3]
    before = read_labels(shards_copy.folder, shards_copy.manifest, ("train",))
    content = tar.read_bytes()
    start = content.index(b'"labels"', sample.members["json"][0])
    digit = next(place for place in range(start, start + 400) if content[place : place + 3] in (b" 1,", b" 0,")) + 1
    with tar.open("r+b") as file:
        file.seek(digit)
        file.write(b"0" if content[digit : digit + 1] == b"1" else b"1")
    with pytest.raises(InputError, match=rf"{tar}: its labels have changed since it was written; put back the shards"):
        read_labels(shards_copy.folder, shards_copy.manifest, ("train",))
    older = tuple(dataclasses.replace(shard, labels_xxh3="") for shard in shards_copy.manifest.shards)
    after = read_labels(shards_copy.folder, dataclasses.replace(shards_copy.manifest, shards=older), ("train",))
    assert not after.equals(before)  # valid labels, but others
