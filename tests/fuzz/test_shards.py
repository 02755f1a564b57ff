"""Mutated tars, indexes, manifests and images in shards are refused, or read as they were written."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.loader import Backend, image_loader
from pipeline.torchvision_views import decode
from shard.fetch import Fetcher
from shard.files import sha256_of
from shard.manifest import MANIFEST, Manifest, Shard, parse_manifest, read_manifest
from shard.read import read_labels
from shard.tar import TarWriter
from shard.verify import Job, check_shard, verify
from tests.conftest import DALI, Shards
from tests.fuzz import SEED, attempt, inputs, mutate, mutate_values, report_counts


@pytest.fixture
def copy(shards: Shards, tmp_path: Path) -> Path:
    """A copy of the shards to damage."""
    out = tmp_path / "shards"
    shutil.copytree(shards.folder, out)
    return out


def read_all(folder: Path, shard: Shard, manifest: Manifest) -> tuple[list[bytes], pd.DataFrame]:
    """Read all images and labels of a shard, as loaders and the probe do."""
    single = dataclasses.replace(manifest, shards=(shard,))
    fetcher = Fetcher(folder, single, shard.split)
    images = [fetcher.read(number) for number in range(len(fetcher))]
    assert all(images) and all(fetcher.key(number) for number in range(len(fetcher)))
    return images, read_labels(folder, single, (shard.split,))


def load_all(backend: Backend, folder: Path, manifest: Manifest) -> torch.Tensor:
    """Load the images of the first shard as the probe does, [N, 1, 32, 32]."""
    loader = image_loader(backend, folder, manifest, split=manifest.shards[0].split, size=32, mean=0.5, std=0.25,
                          batch_size=16, device=torch.device("cpu"), workers=1)  # fmt: skip
    return torch.cat(list(loader))


def rehash(shard: Shard, folder: Path) -> Shard:
    """Update sizes and the hashes of the files, and leave out the others, as the author of a malicious shard could."""
    tar, index = folder / shard.tar, folder / shard.index
    return dataclasses.replace(shard, tar_bytes=tar.stat().st_size, index_bytes=index.stat().st_size,
                               tar_sha256=sha256_of(tar), index_sha256=sha256_of(index),
                               image_xxh3="", labels_xxh3="")  # fmt: skip


@pytest.mark.parametrize("which", ["tar", "index"])
def test_mutated_file_is_refused_or_read_as_written_and_with_matching_hashes_does_no_harm(
    shards: Shards, copy: Path, which: str
) -> None:
    rng = np.random.default_rng([SEED, 3])
    shard = shards.manifest.shards[0]
    job = Job(copy, shard, shards.manifest.findings, "jpeg", shards.manifest.settings["size"], decode=True)
    file = copy / getattr(shard, which)
    original, number, accepted, unnoticed = file.read_bytes(), inputs(40), 0, 0
    images, labels = read_all(copy, shard, shards.manifest)
    for _ in range(number):
        content = mutate(original, rng)
        file.write_bytes(content)
        if not attempt(read_manifest, copy)[0]:
            read_error, found = attempt(read_all, copy, shard, shards.manifest)
            assert read_error or (found[0] == images and found[1].equals(labels))
            unnoticed += not read_error and content != original
        forged = rehash(shard, copy)
        read_error, _ = attempt(read_all, copy, forged, shards.manifest)
        check_error, contents = attempt(check_shard, dataclasses.replace(job, shard=forged))
        accepted += not read_error and not check_error and not contents.faults
    assert accepted < number
    report_counts(f"{which}: files", number, number - unnoticed)
    report_counts(f"{which}: files with their right hash", number, number - accepted)


def test_mutated_manifest_is_refused_at_reading_or_by_verify(shards: Shards, copy: Path) -> None:
    rng = np.random.default_rng([SEED, 4])
    path, number, refused, found_by_verify = copy / MANIFEST, inputs(150), 0, 0
    original = path.read_text()
    content = json.loads(original)
    for turn in range(number):
        changed = mutate_values(content, rng) if turn % 4 else None
        path.write_bytes(mutate(original.encode(), rng) if changed is None else json.dumps(changed).encode())
        if attempt(read_manifest, copy)[0]:
            refused += 1
            continue
        found = parse_manifest(copy)
        if dataclasses.asdict(found) == dataclasses.asdict(shards.manifest):
            continue
        for shard in found.shards:
            attempt(read_all, copy, shard, found)
        if attempt(verify, copy, workers=1)[0]:
            found_by_verify += 1
            continue
        # Verify cannot check settings, versions and sums over the pixels.
        unchecked: dict[str, Any] = {"settings": {}, "software": {}, "pixel_mean": 0.0, "pixel_std": 0.0, "shards": ()}
        assert dataclasses.replace(found, **unchecked) == dataclasses.replace(shards.manifest, **unchecked)
    report_counts("manifests", number, refused + found_by_verify)


def test_loaders_name_a_broken_image_in_a_shard(shards: Shards, copy: Path) -> None:
    rng = np.random.default_rng([SEED, 5])
    shard = shards.manifest.shards[0]
    fetcher = Fetcher(shards.folder, dataclasses.replace(shards.manifest, shards=(shard,)), shard.split)
    originals = [fetcher.read(number) for number in range(len(fetcher))]
    number, refused = inputs(24), 0
    for turn in range(number):
        broken = int(rng.integers(0, len(originals)))
        images = [*originals[:broken], mutate(originals[broken], rng), *originals[broken + 1 :]]
        file = io.BytesIO()
        with TarWriter(file) as writer:
            for index, image in enumerate(images):
                writer.add(f"k{index}", {"jpg": image, "json": b"{}"})
        (copy / shard.tar).write_bytes(file.getvalue())
        (copy / shard.index).write_bytes(writer.index())
        manifest = dataclasses.replace(shards.manifest, shards=(rehash(shard, copy),))
        decode_error, _ = attempt(decode, Fetcher(copy, manifest, shard.split), broken)
        load_error, loaded = decode_error, None
        if DALI == "--dali" or turn % 20 == 0:  # torchvision's loader starts a process each time
            load_error, loaded = attempt(load_all, "dali" if DALI == "--dali" else "torchvision", copy, manifest)
        refused += bool(load_error)
        for line in filter(None, (decode_error, load_error)):
            assert f"image k{broken}" in line and "can't be decoded" in line, line
        if loaded is not None:
            assert len(loaded) == len(images) and bool(loaded.isfinite().all())
    report_counts("images in shards", number, refused)
