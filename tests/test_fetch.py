"""Images fetched by number are those written; a tar that goes, shrinks or rots is an error that says which and why."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shard.fetch
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.read import read_index, read_members
from tests.conftest import Shards


@pytest.fixture
def copied(shards: Shards, tmp_path: Path) -> Shards:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    return Shards(folder, read_manifest(folder))


def written(made: Shards, split: str) -> list[tuple[str, bytes]]:
    extension = made.manifest.settings["encoding"].replace("jpeg", "jpg")
    pairs = []
    for part in made.manifest.of_split(split):
        samples = read_index(made.folder / part.index)
        keys = (sample.key for sample in samples)
        pairs += list(zip(keys, read_members(made.folder / part.tar, samples, extension), strict=True))
    return pairs


def test_images_come_as_written_in_any_order_and_from_many_threads(
    shards: Shards, raw_shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard.fetch, "OPEN_TARS", 1)  # files are closed and opened all the time
    for made in (shards, raw_shards):
        fetcher, wanted = Fetcher(made.folder, made.manifest, "train"), written(made, "train")
        assert len(fetcher) == len(wanted) == made.manifest.images("train") > 40  # in two tars at least
        order = np.random.default_rng(0).permutation(np.tile(np.arange(len(wanted)), 5)).tolist()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fetcher.read, order)) == [wanted[number][1] for number in order]
        assert [fetcher.key(number) for number in range(0, len(wanted), 7)] == [key for key, _ in wanted[::7]]
        assert len(fetcher._files) == 1


def test_it_goes_to_other_processes(shards: Shards) -> None:
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    content = fetcher.read(3)
    assert pickle.loads(pickle.dumps(fetcher)).read(3) == content


def first_tar(made: Shards) -> Path:
    return made.folder / made.manifest.of_split("train")[0].tar


def middle_of(made: Shards, number: int) -> int:
    sample = read_index(first_tar(made).with_suffix(".idx"))[number]
    offset, size = sample.members["jpg"]
    return offset + size // 2


def flip_byte(path: Path, place: int) -> None:
    """In place, as a disk would: the same file, size and inode."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("reopened", [False, True])
def test_what_rots_or_shrinks_after_it_was_read_is_named_with_tar_and_key(copied: Shards, reopened: bool) -> None:
    fetcher, tar = Fetcher(copied.folder, copied.manifest, "train"), first_tar(copied)
    before = fetcher.read(5)
    flip_byte(tar, middle_of(copied, 4))
    if reopened:
        fetcher.reopen()
    assert fetcher.read(5) == before  # its neighbour is as good as before
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(4)}: its bytes have changed.*verify.*run"):
        fetcher.read(4)
    with tar.open("r+b") as file:
        file.truncate(middle_of(copied, 6))
    assert fetcher.read(5) == before
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(6)}: ends at \d+ bytes, the manifest says \d+"):
        fetcher.read(6)


def test_what_goes_is_missed_when_it_is_looked_for_anew(copied: Shards) -> None:
    fetcher, tar = Fetcher(copied.folder, copied.manifest, "train"), first_tar(copied)
    before = fetcher.read(5)
    tar.rename(tar.with_suffix(".gone"))
    assert fetcher.read(5) == before  # still open
    fetcher.reopen()
    with pytest.raises(InputError, match=rf"{tar}, image {fetcher.key(5)}: No such file.*put back the shards"):
        fetcher.read(5)
    tar.with_suffix(".gone").rename(tar)
    assert fetcher.read(5) == before


@pytest.mark.parametrize("harm", ["rot", "rot beside the images", "shrink", "grow", "gone", "stale index"])
def test_what_was_harmed_before_its_first_reading(copied: Shards, harm: str) -> None:
    fetcher, tar = Fetcher(copied.folder, copied.manifest, "train"), first_tar(copied)
    if harm == "rot":
        flip_byte(tar, middle_of(copied, 20))
    elif harm == "rot beside the images":
        flip_byte(tar, 3)
    elif harm == "shrink":
        with tar.open("r+b") as file:
            file.truncate(tar.stat().st_size - 512)
    elif harm == "grow":
        with tar.open("ab") as file:
            file.write(b"\0")
    elif harm == "gone":
        tar.unlink()
    else:
        flip_byte(tar.with_suffix(".idx"), 40)
    told = {"gone": "No such file", "shrink": "bytes, the manifest says", "grow": "bytes, the manifest says"}
    with pytest.raises(InputError, match=f"{told.get(harm, 'sha256 .*the manifest says')}.*put back the shards"):
        fetcher.read(0)
