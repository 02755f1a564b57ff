"""Frozen features of images, in the order of the shards: computed deterministically, and cached part by part."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.loader import default_backend, image_loader
from probe.encoder import Encoder
from probe.feature_parts import Part, compute_parts, list_parts
from probe.fewshot import Rows
from probe.full_precision import device_name
from shard.files import atomic_write, sha256_of
from shard.machine import version_of
from shard.manifest import Manifest
from shard.progress import Progress
from train.checkpoint import HASH_DIGITS
from train.fingerprint import hash_code
from train.frozen_features import Features
from train.weights.preprocessing import Input

CODE = ("pipeline/loader.py", "pipeline/dali.py", "pipeline/dali_inputs.py", "pipeline/torchvision_views.py",
        "probe/feature_parts.py", "probe/full_precision.py")
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "pillow")


def read_features(
    encoders: Sequence[Encoder], shards: Path, manifest: Manifest, splits: Sequence[str], *, cache: Path,
    batch_size: int, device: torch.device, workers: int, rows: Rows | None = None,
) -> dict[str, Features]:  # fmt: skip
    """Return the features of images by encoder name, [n, F], from `cache` or computed and cached.

    rows: those of shard.read.read_labels(shards, manifest, splits), ascending; None for all. Encoders with the same
    input share one pass over the images. Features are cached a part of the images at a time, so a stopped process loses
    little. Encoders without a module are skipped. Raises InputError if features are NaN, infinite or too large.
    """
    cache.mkdir(parents=True, exist_ok=True)
    parts = _list_parts(manifest, splits, rows, batch_size)
    keys = feature_keys(encoders, manifest, splits, device, batch_size, rows)
    found = {name: [load_features(cache, key) for key in own] for name, own in keys.items()}
    opened = [encoder for encoder in encoders if encoder.name in keys]
    for images in dict.fromkeys(encoder.input for encoder in opened):
        group = [encoder for encoder in opened if encoder.input == images]
        lacking = {place: [encoder for encoder in group if found[encoder.name][place] is None]
                   for place in range(len(parts))}  # fmt: skip
        work = {place: (parts[place], own) for place, own in lacking.items() if own}
        if not work:
            continue
        total = sum(part.images for part in parts)
        with Progress("features", total, before=total - sum(part.images for part, _ in work.values())) as progress:
            computed = compute_parts(list(work.values()), shards, manifest, backend=default_backend(),
                                     batch_size=batch_size, device=device, workers=workers,
                                     progress=progress)  # fmt: skip
            for place, matrices in zip(work, computed, strict=True):
                for encoder, features in zip(lacking[place], matrices, strict=True):
                    found[encoder.name][place] = features
                    save_features(cache, keys[encoder.name][place], features)
    return join_features(found)


def join_features(parts: dict[str, list[Features | None]]) -> dict[str, Features]:
    """Join the features of each encoder's parts, in order, and remove them from `parts`: they may take gigabytes."""
    return {name: np.concatenate([features for features in parts.pop(name) if features is not None])
            for name in list(parts)}  # fmt: skip


def feature_keys(
    encoders: Sequence[Encoder], manifest: Manifest, splits: Sequence[str], device: torch.device, batch_size: int,
    rows: Rows | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    """Return the keys under which read_features caches the features of encoders, one for each part, by encoder name.

    A key hashes all that decides the features, including the code that makes the images.
    """
    # Libraries choose algorithms by the GPU and by the shape of the batch, and these differ in the last bits. They do
    # so on a CPU, too: 7 architectures had the same features in batches of 16, 32 and 64 images, but 4 of these had
    # others in batches of 5.
    common = [manifest.fingerprint(), default_backend(), device_name(device), batch_size, hash_code(CODE),
              *map(version_of, PACKAGES)]  # fmt: skip
    parts = [_hash([*common, part.split, *part.numbers]) for part in _list_parts(manifest, splits, rows, batch_size)]
    return {encoder.name: [_hash([weights, part]) for part in parts]
            for encoder in encoders if encoder.module is not None for weights in (encoder.sha256(),)}  # fmt: skip


def _list_parts(manifest: Manifest, splits: Sequence[str], rows: Rows | None, batch_size: int) -> list[Part]:
    chosen, first = dict[str, Sequence[int]](), 0
    for split in splits:
        images = manifest.images(split)
        if rows is None:
            chosen[split] = range(images)
        else:
            chosen[split] = (rows[(rows >= first) & (rows < first + images)] - first).tolist()
        first += images
    return list_parts(chosen, batch_size)


def _hash(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()[:32]


def load_features(cache: Path, key: str) -> Features | None:
    """Return the cached features of a key, or None if there are none. Deletes the file if it is corrupt."""
    for file in sorted(cache.glob(f"{key}-*.npy")):
        if file.stem.endswith(f"-{sha256_of(file)[:HASH_DIGITS]}"):
            features: Features = np.load(file)
            return features
        print(f"warning: {file} is truncated or corrupt; it is removed, and its features are computed again")
        file.unlink(missing_ok=True)
    return None


def save_features(cache: Path, key: str, features: Features) -> None:
    """Write the bytes of np.save under KEY-HASH.npy, with the file's hash, which detects corruption.

    np.save itself reports a full disk only as a number of items not written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(features))
    parts, digest = (header.getbuffer(), np.ascontiguousarray(features).data), hashlib.sha256()
    for part in parts:
        digest.update(part)
    name = f"{key}-{digest.hexdigest()[:HASH_DIGITS]}.npy"
    with atomic_write(cache / name, shared=True) as file:  # other tasks of a job array may write it too
        for part in parts:
            file.write(part)


def read_images(
    shards: Path, manifest: Manifest, splits: Sequence[str], numbers: Sequence[int], images: Input, *,
    batch_size: int, device: torch.device, workers: int,
) -> torch.Tensor:  # fmt: skip
    """Read the images of some rows of shard.read.read_labels(shards, manifest, splits), [n, 1, S, S], in that order."""
    ends = np.cumsum([manifest.images(split) for split in splits])
    rows = np.asarray(numbers, np.int64)
    places = np.searchsorted(ends, rows, side="right")
    size, result = images.size, torch.empty(0)
    for place, split in enumerate(splits):
        chosen = np.flatnonzero(places == place)
        if not len(chosen):
            continue
        samples = (rows[chosen] - ends[place] + manifest.images(split)).tolist()
        loader = image_loader(default_backend(), shards, manifest, split=split, size=size,
                              mean=images.mean, std=images.std, batch_size=batch_size, device=device, workers=workers,
                              samples=samples, interpolation=images.interpolation)  # fmt: skip
        read = torch.cat([batch.float() for batch in loader])
        if not len(result):
            result = torch.empty(len(rows), *read.shape[1:], device=read.device)
        result[torch.from_numpy(chosen).to(read.device)] = read
    return result
