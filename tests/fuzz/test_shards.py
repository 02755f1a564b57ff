"""Mutated tars, indexes, manifests and images within shards: told of, or what is read is what was written."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
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
    """Shards of one's own to damage."""
    out = tmp_path / "shards"
    shutil.copytree(shards.folder, out)
    return out


def read_all(folder: Path, shard: Shard, manifest: Manifest) -> None:
    """Everything that is ever read of a shard: by verify, by loaders, by the probe."""
    one = dataclasses.replace(manifest, shards=(shard,))
    fetcher = Fetcher(folder, one, shard.split)
    for number in range(len(fetcher)):
        assert len(fetcher.read(number)) > 0 and fetcher.key(number)
    read_labels(folder, one, (shard.split,))


def load_all(backend: Backend, folder: Path, manifest: Manifest) -> torch.Tensor:
    """[N, 1, 32, 32], the images of the first shard as the probe sees them."""
    loader = image_loader(backend, folder, manifest, split=manifest.shards[0].split, size=32, mean=0.5, std=0.25,
                          batch_size=16, device=torch.device("cpu"), workers=1)  # fmt: skip
    return torch.cat(list(loader))


def signed(shard: Shard, folder: Path) -> Shard:
    """The shard as a manifest would have it whose writer meant the files as they are."""
    tar, index = folder / shard.tar, folder / shard.index
    return dataclasses.replace(shard, tar_bytes=tar.stat().st_size, index_bytes=index.stat().st_size,
                               tar_sha256=sha256_of(tar), index_sha256=sha256_of(index))  # fmt: skip


@pytest.mark.parametrize("which", ["tar", "index"])
def test_a_mutated_file_is_refused_and_one_that_was_meant_so_does_no_harm(
    shards: Shards, copy: Path, which: str
) -> None:
    rng = np.random.default_rng([SEED, 3])
    shard = shards.manifest.shards[0]
    job = Job(copy, shard, shards.manifest.findings, "jpeg", shards.manifest.settings["size"], decode=True)
    file = copy / getattr(shard, which)
    original, number, meant = file.read_bytes(), inputs(40), 0
    for _ in range(number):
        content = mutate(original, rng)
        file.write_bytes(content)
        if content != original:
            assert attempt(read_manifest, copy)[0] or attempt(read_all, copy, shard, shards.manifest)[0]
        lied = signed(shard, copy)  # its hashes are right: what is in it may still be anything
        unread, _ = attempt(read_all, copy, lied, shards.manifest)
        said, seen = attempt(check_shard, dataclasses.replace(job, shard=lied))
        meant += not unread and not said and not seen.faults
    assert meant < number
    report_counts(f"{which}: files", number, number)
    report_counts(f"{which}: files with their right hash", number, number - meant)


def test_a_mutated_manifest_is_refused_or_found_out_by_verify(shards: Shards, copy: Path) -> None:
    rng = np.random.default_rng([SEED, 4])
    path, number, no, late = copy / MANIFEST, inputs(150), 0, 0
    original = path.read_text()
    content = json.loads(original)
    for turn in range(number):
        changed = mutate_values(content, rng) if turn % 4 else None
        path.write_bytes(mutate(original.encode(), rng) if changed is None else json.dumps(changed).encode())
        if attempt(read_manifest, copy)[0]:
            no += 1
            continue
        found = parse_manifest(copy)
        if dataclasses.asdict(found) == dataclasses.asdict(shards.manifest):
            continue
        for shard in found.shards:
            attempt(read_all, copy, shard, found)
        if attempt(verify, copy, workers=1)[0]:
            late += 1
            continue
        # What nothing can be compared with: who wrote it and how, and sums over the pixels.
        unknown: dict[str, Any] = {"settings": {}, "software": {}, "pixel_mean": 0.0, "pixel_std": 0.0, "shards": ()}
        assert dataclasses.replace(found, **unknown) == dataclasses.replace(shards.manifest, **unknown)
    report_counts("manifests", number, no + late)


def test_a_broken_image_in_shards_is_named_by_every_loader(shards: Shards, copy: Path) -> None:
    rng = np.random.default_rng([SEED, 5])
    shard = shards.manifest.shards[0]
    fetcher = Fetcher(shards.folder, dataclasses.replace(shards.manifest, shards=(shard,)), shard.split)
    whole = [fetcher.read(number) for number in range(len(fetcher))]
    number, no = inputs(24), 0
    for turn in range(number):
        place = int(rng.integers(0, len(whole)))
        images = [*whole[:place], mutate(whole[place], rng), *whole[place + 1 :]]
        file = io.BytesIO()
        with TarWriter(file) as writer:
            for at, image in enumerate(images):
                writer.add(f"k{at}", {"jpg": image, "json": b"{}"})
        (copy / shard.tar).write_bytes(file.getvalue())
        (copy / shard.index).write_bytes(writer.index())
        manifest = dataclasses.replace(shards.manifest, shards=(signed(shard, copy),))
        alone, _ = attempt(decode, Fetcher(copy, manifest, shard.split), place)
        said, made = alone, None
        if DALI == "--dali" or turn % 20 == 0:  # torchvision's loader starts a process each time
            said, made = attempt(load_all, "dali" if DALI == "--dali" else "torchvision", copy, manifest)
        no += bool(said)
        for line in filter(None, (alone, said)):
            assert f"image k{place}" in line and "can't be decoded" in line, line
        if made is not None:
            assert len(made) == len(images) and bool(made.isfinite().all())
    report_counts("images in shards", number, no)
