"""Compute frozen features of all images, deterministically and in the order of the shards, and cache them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.loader import Backend, default_backend, image_loader
from probe.encoder import Encoder
from probe.full_precision import device_name, full_precision
from shard.errors import InputError
from shard.files import atomic_write, sha256_of
from shard.machine import version_of
from shard.manifest import Manifest
from shard.progress import Progress
from train.checkpoint import HASH_DIGITS
from train.fingerprint import hash_code
from train.frozen_features import Features
from train.out_of_memory import explain_out_of_memory
from train.weights.preprocessing import Input

CODE = ("pipeline/loader.py", "pipeline/dali.py", "pipeline/dali_inputs.py", "pipeline/torchvision_views.py",
        "probe/features.py", "probe/full_precision.py")
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "pillow")

LARGEST = 1e15  # its square is still finite in float32


def read_features(
    encoders: Sequence[Encoder], shards: Path, manifest: Manifest, splits: Sequence[str], *, cache: Path,
    batch_size: int, device: torch.device, workers: int,
) -> dict[str, Features]:  # fmt: skip
    """Return the features of every image of the splits by encoder name, from `cache` or computed and cached.

    Encoders with the same input are computed together. The key of an entry hashes the weights, the shards and how the
    images are made. Encoders without a module are skipped. Raises InputError if features are NaN, infinite or too
    large.
    """
    cache.mkdir(parents=True, exist_ok=True)
    backend, keys = default_backend(), feature_keys(encoders, manifest, splits, device, batch_size)
    result = {name: load_features(cache, key) for name, key in keys.items()}
    missing = [encoder for encoder in encoders if encoder.name in keys and result[encoder.name] is None]
    for images in dict.fromkeys(encoder.input for encoder in missing):
        group = [encoder for encoder in missing if encoder.input == images]
        modules = [encoder.module for encoder in group if encoder.module is not None]
        computed = extract_features(modules, shards, manifest, splits, images, backend=backend, batch_size=batch_size,
                                    device=device, workers=workers)  # fmt: skip
        for encoder, features in zip(group, computed, strict=True):
            check_finite(encoder, features)
            result[encoder.name] = features
            save_features(cache, keys[encoder.name], features)
    return {name: features for name, features in result.items() if features is not None}


def feature_keys(
    encoders: Sequence[Encoder], manifest: Manifest, splits: Sequence[str], device: torch.device, batch_size: int
) -> dict[str, str]:
    """Return the keys under which read_features caches the features of encoders, by encoder name.

    A key hashes all that decides the features, including the code that makes the images.
    """
    # Libraries choose algorithms by the GPU and by the shape of the batch, and these differ in the last bits. They do
    # so on a CPU, too: 7 architectures had the same features in batches of 16, 32 and 64 images, but 4 of these had
    # others in batches of 5.
    return {encoder.name: _hash([encoder.sha256(), manifest.fingerprint(), *splits, default_backend(),
                                 device_name(device), batch_size, hash_code(CODE), *map(version_of, PACKAGES)])
            for encoder in encoders if encoder.module is not None}  # fmt: skip


def _hash(values: Sequence[str | int]) -> str:
    return hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()[:32]


def check_finite(encoder: Encoder, features: Features) -> None:
    """Raise InputError if features of an encoder are NaN, infinite or not below LARGEST."""
    if (wrong := ~(np.abs(features) < LARGEST).all(axis=1)).any():
        raise InputError(f"{encoder.name}: features are NaN, infinite or above {LARGEST:g} for {wrong.sum()} of "
                         f"{len(features)} images ({encoder.source}); omit it or give an earlier "
                         "checkpoint")  # fmt: skip


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


def extract_features(
    modules: Sequence[nn.Module], shards: Path, manifest: Manifest, splits: Sequence[str], images: Input, *,
    backend: Backend, batch_size: int, device: torch.device, workers: int,
) -> list[Features]:  # fmt: skip
    """Compute the features of every image of the splits for each module: a list of [N, F], in float32 throughout.

    Row i belongs to row i of shard.read.read_labels(shards, manifest, splits). Uncropped images are resized to size ×
    size: a centre crop would cut off the costophrenic angles.
    """
    rows: list[list[Features]] = [[] for _ in modules]
    total = sum(manifest.images(split) for split in splits)
    with Progress("features", total) as progress:
        done = 0
        for split in splits:
            for found in feature_batches(modules, shards, manifest, split, images, backend=backend,
                                         batch_size=batch_size, device=device, workers=workers):  # fmt: skip
                for features, kept in zip(found, rows, strict=True):
                    kept.append(features)
                done += len(found[0])
                progress.show(done)
    matrices = [np.concatenate(kept) for kept in rows]
    assert all(len(matrix) == total for matrix in matrices), (total, [len(matrix) for matrix in matrices])
    return matrices


def feature_batches(
    modules: Sequence[nn.Module], shards: Path, manifest: Manifest, split: str, images: Input, *, backend: Backend,
    batch_size: int, device: torch.device, workers: int, samples: Sequence[int] | None = None,
) -> Iterator[list[Features]]:  # fmt: skip
    """Yield the features of each batch of a split, [B, F] for each module, in float32 throughout and deterministic.

    samples: as in image_loader. Batches of the same images have the same features, bit for bit.
    """
    with _explain_out_of_memory(images.size, batch_size, device):
        for module in modules:
            module.to(device).eval()
    loader = image_loader(backend, shards, manifest, split=split, size=images.size, mean=images.mean, std=images.std,
                          batch_size=batch_size, device=device, workers=workers, samples=samples,
                          interpolation=images.interpolation)  # fmt: skip
    for batch in loader:
        # Not around the loop: the code that receives the features would run in these modes, too.
        with full_precision(), torch.inference_mode(), _explain_out_of_memory(images.size, batch_size, device):
            found = [module(batch).float().cpu().numpy() for module in modules]
        yield found


def _explain_out_of_memory(size: int, batch_size: int, device: torch.device) -> AbstractContextManager[None]:
    return explain_out_of_memory(
        device.type, lambda: f"computing the features of {batch_size} images of {size} px at a time",
        lambda: f"lower --batch-size to {max(1, batch_size // 2)}" if batch_size > 1 else "lower --size",
    )  # fmt: skip
