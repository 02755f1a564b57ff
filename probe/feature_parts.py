"""Parts of a job that computes features: whole batches of images, whose features are kept together once computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.loader import Backend, image_loader
from probe.encoder import Encoder
from probe.full_precision import full_precision
from shard.errors import InputError
from shard.machine import retain_freed_memory
from shard.manifest import Manifest
from shard.progress import Progress
from train.frozen_features import Features
from train.out_of_memory import explain_out_of_memory

IMAGES = 1024  # in a part, if a batch has no more: a few megabytes, and seconds to minutes of work
LARGEST = 1e15  # its square is still finite in float32


class Part(NamedTuple):
    """Some images of a split: whole batches, so that a resumed job has the batches of one that never stopped."""

    split: str
    numbers: Sequence[int]

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.numbers)


def list_parts(chosen: Mapping[str, Sequence[int]], batch_size: int) -> list[Part]:
    """Divide the chosen images of each split, given by their numbers in it, into parts, in their order."""
    step = batch_size * max(1, IMAGES // batch_size)
    return [Part(split, numbers[first : first + step])
            for split, numbers in chosen.items() for first in range(0, len(numbers), step)]  # fmt: skip


def compute_parts(
    work: Sequence[tuple[Part, Sequence[Encoder]]], shards: Path, manifest: Manifest, *, backend: Backend,
    batch_size: int, device: torch.device, workers: int, progress: Progress,
) -> Iterator[list[Features]]:  # fmt: skip
    """Yield the features of each part for each of its encoders, [n, F], in float32 throughout and deterministic.

    work: parts of list_parts in their order, each with the encoders that it lacks, all with the same input. Every image
    is read once for all of them. Batches of the same images have the same features, bit for bit. Uncropped images are
    resized to size × size: a centre crop would cut off the costophrenic angles. Raises InputError if features are NaN,
    infinite or too large.
    """
    if device.type == "cpu":  # or glibc returns the outputs of each layer to the system, which clears them again
        retain_freed_memory()
    images = work[0][1][0].input
    for split, own in groupby(work, key=lambda item: item[0].split):
        items = list(own)
        loader = iter(image_loader(
            backend, shards, manifest, split=split, size=images.size, mean=images.mean, std=images.std,
            batch_size=batch_size, device=device, workers=workers, interpolation=images.interpolation,
            samples=[number for part, _ in items for number in part.numbers],
        ))  # fmt: skip
        for part, encoders in items:
            assert all(encoder.input == images for encoder in encoders)
            batches = islice(loader, -(-part.images // batch_size))
            found = [_apply(encoders, batch, images.size, batch_size, progress) for batch in batches]
            features = [np.concatenate(own_batches) for own_batches in zip(*found, strict=True)]
            for encoder, matrix in zip(encoders, features, strict=True):
                check_finite(encoder, matrix)
            yield features


def _apply(
    encoders: Sequence[Encoder], batch: torch.Tensor, size: int, batch_size: int, progress: Progress
) -> list[Features]:
    """Compute the features of a batch for each encoder."""
    # Not around the loop over batches: the code that receives the features would run in these modes, too.
    with full_precision(), torch.inference_mode(), explain_out_of_memory(
        batch.device.type, lambda: f"computing the features of {batch_size} images of {size} px at a time",
        lambda: f"lower --batch-size to {max(1, batch_size // 2)}" if batch_size > 1 else "lower --size",
    ):  # fmt: skip
        found = []
        for encoder in encoders:
            assert encoder.module is not None
            module = encoder.module.to(batch.device).eval()
            found.append(module(batch).float().cpu().numpy())
    progress.advance(len(batch))
    return found


def check_finite(encoder: Encoder, features: Features) -> None:
    """Raise InputError if features of an encoder are NaN, infinite or not below LARGEST."""
    if (wrong := ~(np.abs(features) < LARGEST).all(axis=1)).any():
        raise InputError(f"{encoder.name}: features are NaN, infinite or above {LARGEST:g} for {wrong.sum()} of "
                         f"{len(features)} images ({encoder.source}); omit it or give an earlier "
                         "checkpoint")  # fmt: skip
