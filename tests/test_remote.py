"""Shards at an address: fetched into the cache, checked, and read as from a disk, whatever the server does."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shard.remote
from pipeline.augmentation import Augmentation
from pipeline.fetch_ahead import with_tars_ahead
from pipeline.loader import two_view_loader
from pipeline.sampler import SHARDS_PER_WINDOW, Batch, BatchSampler
from shard.address import Address, hide_secrets
from shard.cache import AT_ONCE, fetch, open_shards, open_tar
from shard.cli import run
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.read import read_index, read_labels
from shard.upload import upload
from shard.verify import verify
from shard.write import build
from tests.conftest import ROOT, Shards, same_run, train_here
from tests.servers import KEYS, FaultyServer, serve_http, serve_s3
from train.config import Config
from train.journal import CARD
from train.status import status


@pytest.fixture(scope="module")
def many(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The radiographs in 30 tars or more, which is more than the cache must hold at once."""
    out = tmp_path_factory.mktemp("many")
    build(radiographs, out, size=64, shard_size=3, workers=1)
    return Shards(out, read_manifest(out))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and short waits between attempts."""
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXR_CACHE_GB", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(shard.remote, "WAITS_S", (0.01, 0.01))
    return tmp_path / "cache"


@pytest.fixture
def web(shards: Shards) -> Iterator[FaultyServer]:
    """The shards on an HTTP server."""
    with serve_http(shards.folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket. One server for all tests: a process keeps its connection to a store."""
    import boto3

    with serve_s3() as endpoint, pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="hospital")
        yield "s3://hospital"


def put(folder: Path, prefix: str) -> None:
    """Copy a folder into the bucket, with the store's own client."""
    import boto3

    for file in folder.iterdir():
        boto3.client("s3").upload_file(str(file), "hospital", f"{prefix}/{file.name}")


def bytes_in(folder: Path) -> int:
    """Count the bytes of a folder whose files come and go."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def smallest_limit(shards: Shards) -> int:
    """Return the bytes of the tars that are needed at once, and of everything else in a folder."""
    tars = sorted((part.tar_bytes for part in shards.manifest.shards), reverse=True)
    others = sum(path.stat().st_size for path in shards.folder.iterdir() if path.suffix != ".tar")
    return sum(tars[:AT_ONCE]) + others


def leftovers(cache: Path) -> list[Path]:
    """List the tars and indexes in the cache that are being fetched, or were left incomplete."""
    return list(cache.glob("*/.*.part"))


@pytest.mark.long
def test_a_run_whose_shards_moved_to_s3_continues_to_the_same_weights(
    shards: Shards, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(shards.folder, "archives/a")
    moved = dataclasses.replace(shards, folder=Address(f"{bucket}/archives/a/"))
    train_here(shards, tmp_path / "disk", limit_steps=7)
    train_here(shards, tmp_path / "moved", limit_steps=3)
    train_here(moved, tmp_path / "moved", limit_steps=7)
    assert same_run(tmp_path / "disk", tmp_path / "moved")
    assert f'"shards": "{bucket}/archives/a"' in (tmp_path / "moved" / CARD).read_text()
    capsys.readouterr()
    status(tmp_path / "moved")
    assert re.search(rf"--shards={bucket}/archives/a( |$)", capsys.readouterr().out, re.M)


def test_an_upload_resumes_keeps_to_its_archive_and_is_what_was_built(
    shards: Shards, many: Shards, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import boto3

    client, copy, there = boto3.client("s3"), tmp_path / "copy", Address(f"{bucket}/a/b")
    shutil.copytree(shards.folder, copy)
    (copy / "valid-000000.tar").write_bytes((copy / "valid-000000.tar").read_bytes()[:-1] + b"1")
    with pytest.raises(InputError, match=r"valid-000000\.tar: sha256 .*, the manifest says"):
        upload(copy, there)
    with pytest.raises(InputError, match=r"a/b/manifest\.json: no such file"):  # it goes last
        open_shards(there)
    shutil.copy(shards.folder / "valid-000000.tar", copy)
    upload(copy, there)
    sent = re.search(r"\((\d+) of (\d+) files uploaded, the others were there\)", capsys.readouterr().out)
    assert sent and 1 <= int(sent[1]) < int(sent[2]) == 2 * len(shards.manifest.shards)
    verify(there, workers=1)
    names = {item["Key"] for item in client.list_objects_v2(Bucket="hospital", Prefix="a/b/")["Contents"]}
    parts = [name for part in shards.manifest.shards for name in (part.tar, part.index)]
    assert names == {f"a/b/{name}" for name in (*parts, "manifest.json")}

    with pytest.raises(InputError, match=r"contains another archive, whose manifest\.json differs"):
        upload(many.folder, there)
    client.delete_object(Bucket="hospital", Key="a/b/manifest.json")
    with pytest.raises(InputError, match=r"contains another archive, whose train-.* differs"):
        upload(many.folder, there)
    with pytest.raises(InputError, match=r"^http://web/a: not an address to upload to"):
        upload(shards.folder, Address("http://web/a"))


def test_an_epoch_from_a_small_cache_has_each_image_once_and_stays_below_its_limit(
    many: Shards, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(many.manifest.of_split("train")) > AT_ONCE >= 2 * SHARDS_PER_WINDOW
    limit = smallest_limit(many)
    monkeypatch.setenv("CXR_CACHE_GB", str(limit / 1e9))
    with serve_http(many.folder) as web:
        folder = open_shards(Address(web.address))
        fetcher, local = Fetcher(folder, many.manifest, "train"), Fetcher(many.folder, many.manifest, "train")
        sampler = BatchSampler(many.manifest.shard_sizes("train"), 2, seed=3)
        seen, most = list[int](), 0
        for batch in with_tars_ahead(fetcher, sampler.batches(0, 0)):
            if batch.epoch == 2:
                break
            assert [fetcher.read(index) for index in batch.indices] == [local.read(index) for index in batch.indices]
            seen += batch.indices.tolist()
            most = max(most, bytes_in(folder))
    assert len(seen) == 2 * 2 * sampler.steps and set(np.bincount(seen)) <= {1, 2}
    assert most <= limit
    requests = [web.requests[part.tar] for part in many.manifest.of_split("train")]
    assert min(requests) == 1 and 1 < max(requests) <= 3  # some were removed, and fetched again for the second epoch


def test_the_least_recently_used_tars_are_removed_first(many: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", str(smallest_limit(many) / 1e9))
    first, second, *others = many.manifest.shards
    with serve_http(many.folder) as web:
        folder = open_shards(Address(web.address))
        for part in (first, second, *others):
            fetch(folder, part)
            open_tar(folder, first).close()
    assert web.requests[first.tar] == 1
    assert not (folder / second.tar).exists() and (folder / others[-1].tar).exists()


def recorded(batches: list[Batch], taken: list[Batch]) -> Iterator[Batch]:
    """Yield batches, and add each to `taken` when it is taken."""
    for batch in batches:
        taken.append(batch)
        yield batch


@pytest.mark.parametrize("world", [1, 4])
def test_tars_are_fetched_once_and_no_further_ahead_than_the_next_window(many: Shards, world: int) -> None:
    with serve_http(many.folder) as web:
        fetcher = Fetcher(open_shards(Address(web.address)), many.manifest, "train")
        sampler = BatchSampler(many.manifest.shard_sizes("train"), 2, seed=7, rank=world - 1, world=world)
        batches = list(itertools.islice(sampler.batches(0, 0), 2 * sampler.steps))
        used = [set(fetcher.shards_of(batch.indices)) for batch in batches]
        taken, most = list[Batch](), 0
        for step, batch in enumerate(with_tars_ahead(fetcher, recorded(batches, taken))):
            assert batch is batches[step]
            assert all(web.requests[fetcher.shards[number].tar] == 1 for number in used[step])
            in_use = set().union(*used[step : len(taken) - 1])  # the batch taken last may still have to wait
            most = max(most, len(in_use))
    assert SHARDS_PER_WINDOW < most <= 2 * SHARDS_PER_WINDOW
    assert set(web.requests.values()) == {1}


def test_workers_of_torchvision_read_what_the_main_process_fetches(web: FaultyServer, shards: Shards) -> None:
    folder = open_shards(Address(web.address))
    for place in (folder, shards.folder):
        loader = two_view_loader("torchvision", place, shards.manifest, Augmentation(size=32), batch_size=32,
                                 device=torch.device("cpu"), workers=1)  # fmt: skip
        views = torch.cat([view for pair in loader for view in pair])
        if place == folder:
            fetched = views
    assert torch.equal(fetched, views) and set(web.requests.values()) == {1}


FAULTS = {
    "once 500": (["500"], ""), "cut twice": (["cut", "cut"], ""), "rotten once": (["rot"], ""),
    "always cut": (["cut"] * 9, r"ClientPayloadError.*\(3 attempts\); check the network"),
    "always 503": (["503"] * 9, r".*503.*\(3 attempts\); check the network"),
    "missing": (["404"], "no such file; check the address"), "forbidden": (["403"], "access denied.*status 403"),
    "refused": (["400"], "the server refuses it with status 400"),
    "rotten": (["rot", "rot"], "sha256 .*, the manifest says .*, also when fetched again; upload the shards again"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_server_are_survived_or_named_in_one_line(
    web: FaultyServer, shards: Shards, cache: Path, name: str
) -> None:
    faults, message = FAULTS[name]
    part = shards.manifest.of_split("train")[0]
    folder = open_shards(Address(web.address))
    web.faults[part.tar] = [int(fault) if fault.isdigit() else fault for fault in faults]
    if not message:
        fetch(folder, part)
        assert (folder / part.tar).read_bytes() == (shards.folder / part.tar).read_bytes()
    else:
        with pytest.raises(InputError, match=f"^{web.address}/{part.tar}: {message}") as error:
            read_labels(folder, shards.manifest, ("train",))
        assert "\n" not in str(error.value) and not (folder / part.tar).exists()
        for _ in range(1000):  # other tars arrive in background threads
            if leftovers(cache):
                time.sleep(0.01)
    assert leftovers(cache) == []


def test_no_manifest_and_another_file_are_named_before_anything_is_kept(web: FaultyServer, cache: Path) -> None:
    with pytest.raises(InputError, match=f"^{web.address}/none/manifest.json: no such file"):
        open_shards(Address(f"{web.address}/none"))
    web.faults["manifest.json"] = ["page"]
    with pytest.raises(InputError, match=f"^{web.address}/manifest.json: not a manifest"):
        open_shards(Address(web.address))
    assert not cache.exists()


@pytest.mark.parametrize("kind", ["image", "labels", "image of older shards"])
def test_a_tar_that_rots_in_the_cache_is_fetched_again(web: FaultyServer, shards: Shards, kind: str) -> None:
    folder, part = open_shards(Address(web.address)), shards.manifest.of_split("train")[0]
    manifest = shards.manifest
    if kind == "image of older shards":
        older = tuple(dataclasses.replace(shard, image_xxh3="") for shard in manifest.shards)
        manifest = dataclasses.replace(manifest, shards=older)
    fetch(folder, part)
    offset, size = read_index(folder / part.index)[1].members["json" if kind == "labels" else "jpg"]
    content = bytearray((folder / part.tar).read_bytes())
    content[offset + size // 2] ^= 1
    (folder / part.tar).write_bytes(content)
    for place in (folder, shards.folder):
        if kind == "labels":
            assert read_labels(place, manifest, ("train",)).equals(read_labels(shards.folder, manifest, ("train",)))
        else:
            assert Fetcher(place, manifest, "train").read(1) == Fetcher(shards.folder, manifest, "train").read(1)
    assert web.requests[part.tar] == 2


COMMAND = "import sys; from shard.__main__ import *; run('python -m shard', COMMANDS, sys.argv[1:])"


def start_verify(web: FaultyServer) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "verify", web.address, "--workers=1"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_each_file_once(web: FaultyServer) -> None:
    web.faults = {name: ["slow"] for name in ("train-000000.tar", "train-000000.idx")}
    processes = [start_verify(web) for _ in range(2)]
    for process in processes:
        assert "images as written" in process.communicate()[0]
    tars = {name: count for name, count in web.requests.items() if name.endswith((".tar", ".idx"))}
    assert set(tars.values()) == {1}


def test_a_process_killed_while_it_fetches_leaves_nothing_that_is_used(web: FaultyServer, cache: Path) -> None:
    web.faults = {"train-000000.tar": ["slow"]}
    process = start_verify(web)
    while not list(cache.glob("*/.train-000000.tar.*.part")) or not web.requests["train-000000.tar"]:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert leftovers(cache)
    again = start_verify(web)
    assert "images as written" in again.communicate()[0]
    assert leftovers(cache) == [] and web.requests["train-000000.tar"] == 2


def test_a_full_disk_under_the_cache_is_named_and_left_without_parts(
    many: Shards, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXR_CACHE", str(small_disk))
    part = max(many.manifest.shards, key=lambda part: part.tar_bytes)
    with serve_http(many.folder) as web:
        folder = open_shards(Address(web.address))
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        (small_disk / "other").write_bytes(bytes(free - part.tar_bytes // 2))
        with pytest.raises(InputError, match=r"No space left on device on this machine; free space there, or"):
            fetch(folder, part)
    assert leftovers(small_disk) == [] and not (folder / part.tar).exists()


def test_a_limit_below_what_is_read_at_once_is_refused(
    web: FaultyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    from shard.__main__ import COMMANDS

    with pytest.raises(SystemExit):
        run("python -m shard", COMMANDS, ["verify", web.address, "--cache-gb=0.000001"])
    assert "--cache-gb=1e-06: too small for http://127" in capsys.readouterr().err


def test_secrets_reach_the_server_and_nothing_else(
    web: FaultyServer, shards: Shards, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = web.address.replace("//", "//me:hunter2@") + "?signature=s3cret"
    config = Config(shards=Address(secret), out=tmp_path, dali=False)
    read_labels(config.folder, shards.manifest, ("train",))
    assert web.authorization == "Basic bWU6aHVudGVyMg=="
    assert config.plain()["shards"] == web.address
    from shard.__main__ import COMMANDS

    with pytest.raises(SystemExit):
        run("python -m shard", COMMANDS, ["info", secret.replace("?", "/none?")])
    with pytest.raises(SystemExit):
        run("python -m shard", COMMANDS, ["info", f"--shards={secret}"])
    run("python -m shard", COMMANDS, ["info", secret])
    printed = "".join(capsys.readouterr())
    kept = "".join(path.read_text(errors="replace") for path in cache.glob("*/*"))
    assert web.address in printed
    for word in ("hunter2", "s3cret"):
        assert word not in printed + kept + repr(config)


def test_addresses_that_are_none_are_refused() -> None:
    for text, message in (("ftp://me:key@host/a", "shards can be fetched from s3://"),
                          ("s3://me:key@bucket/a", "must not contain a user, a password"),
                          ("https:///a", "not an address of a folder"),
                          *((text, "^https://…: not a valid address; write blanks") for text in
                            ("https://me:k/key@host/a", "https://me:k?key@host/a", "https://me:key key@host/a",
                             "https://host/a?sign='key", "https://[key/a"))):  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            Address(text)
        assert "key" not in str(error.value)
    assert str(Address("s3://bucket/my folder/")) == "s3://bucket/my folder"
    assert hide_secrets("at https://a:b@c/d?e=f: 403") == "at https://c/d 403"
    assert hide_secrets("HTTPS://a:b@c/d?e=f abfss://g:h@i") == "HTTPS://c/d abfss://i"


def test_server_that_states_no_sizes_is_named(web: FaultyServer, shards: Shards) -> None:
    verify(Address(web.address), workers=1)
    tar = shards.manifest.shards[0].tar
    web.faults[tar] = ["unsized"]
    with pytest.raises(InputError, match=rf"{tar}: the server does not state the size of files"):
        verify(Address(web.address), workers=1)


def test_verify_of_an_address_sees_what_is_missing_there(web: FaultyServer, shards: Shards, tmp_path: Path) -> None:
    verify(Address(web.address), workers=1)
    (tmp_path / "copy").mkdir()
    for file in shards.folder.iterdir():
        if file.name != "train-000000.tar":
            (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    with (serve_http(tmp_path / "copy") as other,
          pytest.raises(InputError, match=r"train-000000\.tar: missing, the manifest says")):  # fmt: skip
        verify(Address(other.address), quick=True)


def test_verify_reads_a_tar_to_its_end_though_another_process_removes_it_from_the_cache(
    web: FaultyServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_tar = tarfile.open

    def remove_and_list(*arguments: Any, **options: Any) -> tarfile.TarFile:
        for path in cache.glob("*/*.tar"):
            path.unlink()
        return list_tar(*arguments, **options)

    monkeypatch.setattr(tarfile, "open", remove_and_list)
    verify(Address(web.address), workers=1)
    assert set(web.requests.values()) == {1}


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://: .*gcsfs.* not installed; pip install 'cxr-simclr\[remote\]'"):
        open_shards(Address("gs://bucket/a"))
