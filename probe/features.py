"""Images → frozen features, deterministic, one row an image in the order of the shards; computed once and kept."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.loader import Backend, default_backend, image_loader
from probe.encoders import Encoder
from probe.preprocessing import Input
from shard.errors import InputError
from shard.files import atomic_write, sha256_of
from shard.machine import version_of
from shard.manifest import Manifest
from train.checkpoint import HASH_DIGITS
from train.fingerprint import hash_code
from train.frozen_features import Features

CODE = ("pipeline/loader.py", "pipeline/dali.py", "pipeline/dali_inputs.py", "pipeline/torchvision_views.py",
        "probe/features.py")

LARGEST = 1e15  # whose square float32 still holds


def read_features(
    encoders: Sequence[Encoder], shards: Path, manifest: Manifest, splits: Sequence[str], *, cache: Path,
    batch_size: int, device: torch.device, workers: int,
) -> dict[str, Features]:  # fmt: skip
    """Features of every image of the splits by each encoder's name, those of `cache` where they are there.

    What is not is computed, encoders that want the same images together, and kept there by a hash of the weights, the
    shards, and how the images were made. An encoder that can't be had is left out. Raises InputError where features
    are NaN, infinite or too large.
    """
    cache.mkdir(parents=True, exist_ok=True)
    backend = default_backend()
    keys = {encoder.name: _key(encoder, manifest, splits, backend, device) for encoder in encoders
            if encoder.module is not None}  # fmt: skip
    known = {name: _kept(cache, key) for name, key in keys.items()}
    wanted = [encoder for encoder in encoders if encoder.name in keys and known[encoder.name] is None]
    for images in dict.fromkeys(encoder.input for encoder in wanted):
        alike = [encoder for encoder in wanted if encoder.input == images]
        modules = [encoder.module for encoder in alike if encoder.module is not None]
        found = extract_features(modules, shards, manifest, splits, images, backend=backend, batch_size=batch_size,
                                 device=device, workers=workers)  # fmt: skip
        for encoder, features in zip(alike, found, strict=True):
            if (wrong := ~(np.abs(features) < LARGEST).all(axis=1)).any():
                raise InputError(f"{encoder.name}: makes features that are NaN, infinite or above {LARGEST:g} of "
                                 f"{wrong.sum()} of {len(features)} images ({encoder.source}); leave it out or take an "
                                 "earlier checkpoint")  # fmt: skip
            known[encoder.name] = features
            _keep(cache, keys[encoder.name], features)
    return {name: features for name, features in known.items() if features is not None}


def _kept(cache: Path, key: str) -> Features | None:
    """The features that were kept under a key; None where there are none, or their bytes are not those written."""
    for file in sorted(cache.glob(f"{key}-*.npy")):
        if file.stem.endswith(f"-{sha256_of(file)[:HASH_DIGITS]}"):
            features: Features = np.load(file)
            return features
        print(f"warning: {file} is truncated or corrupt; it is removed, and its features are made anew")
        file.unlink(missing_ok=True)
    return None


def _keep(cache: Path, key: str, features: Features) -> None:
    """Write what np.save does, under a name with the file's hash, so that rot is told of.

    By itself np.save says of a full disk only how many items were left.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(features))
    parts, digest = (header.getbuffer(), np.ascontiguousarray(features).data), hashlib.sha256()
    for part in parts:
        digest.update(part)
    name = f"{key}-{digest.hexdigest()[:HASH_DIGITS]}.npy"
    with atomic_write(cache / name, shared=True) as file:  # other tasks of an array may be at it too
        for part in parts:
            file.write(part)


def read_images(
    shards: Path, manifest: Manifest, splits: Sequence[str], numbers: Sequence[int], images: Input, *,
    batch_size: int, device: torch.device, workers: int,
) -> torch.Tensor:  # fmt: skip
    """The images of some rows of shard.read.read_labels(shards, manifest, splits): [n, 1, S, S], in the order given."""
    ends = np.cumsum([manifest.images(split) for split in splits])
    wanted = np.asarray(numbers, np.int64)
    places = np.searchsorted(ends, wanted, side="right")
    size, found = images.size, torch.empty(0)
    for place, split in enumerate(splits):
        chosen = np.flatnonzero(places == place)
        if not len(chosen):
            continue
        samples = (wanted[chosen] - ends[place] + manifest.images(split)).tolist()
        loader = image_loader(default_backend(), shards, manifest, split=split, size=size,
                              mean=images.mean, std=images.std, batch_size=batch_size, device=device, workers=workers,
                              samples=samples, interpolation=images.interpolation)  # fmt: skip
        read = torch.cat([batch.float() for batch in loader])
        if not len(found):
            found = torch.empty(len(wanted), *read.shape[1:], device=read.device)
        found[torch.from_numpy(chosen).to(read.device)] = read
    return found


def _key(encoder: Encoder, manifest: Manifest, splits: Sequence[str], backend: str, device: torch.device) -> str:
    """A hash of all that decides an encoder's features, the code that makes the images included."""
    decides = [encoder.sha256(), manifest.fingerprint(), *splits, backend, device.type, hash_code(CODE),
               *map(version_of, ("torch", "torchvision", "nvidia-dali-cuda120", "pillow"))]  # fmt: skip
    return hashlib.sha256(json.dumps(decides, allow_nan=False).encode()).hexdigest()[:32]


def extract_features(
    modules: Sequence[nn.Module], shards: Path, manifest: Manifest, splits: Sequence[str], images: Input, *,
    backend: Backend, batch_size: int, device: torch.device, workers: int,
) -> list[Features]:  # fmt: skip
    """Features of every image of the splits under each encoder: a list of [N, F] float32, in float32 throughout.

    Row i belongs to row i of shard.read.read_labels(shards, manifest, splits). Images are resized whole to
    size × size: a centre crop would cut the costophrenic angles off.
    """
    for module in modules:
        module.to(device).eval()
    rows: list[list[torch.Tensor]] = [[] for _ in modules]
    total = sum(manifest.images(split) for split in splits)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, torch.inference_mode(), tqdm(total=total, desc="features", unit=" images", disable=None) as bar:
        for split in splits:
            loader = image_loader(
                backend, shards, manifest, split=split, size=images.size, mean=images.mean, std=images.std,
                batch_size=batch_size, device=device, workers=workers, interpolation=images.interpolation,
            )  # fmt: skip
            for batch in loader:
                for module, kept in zip(modules, rows, strict=True):
                    kept.append(module(batch).float().cpu())
                bar.update(len(batch))
    features = [torch.cat(kept).numpy() for kept in rows]
    assert all(len(matrix) == total for matrix in features), (total, [len(matrix) for matrix in features])
    return features
