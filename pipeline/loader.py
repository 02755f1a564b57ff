"""two_view_loader and image_loader: the only place that chooses a backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from pipeline.recipe import Recipe
from pipeline.reference import ReferenceImages, ReferenceViews
from shard.errors import InputError
from shard.machine import cores
from shard.manifest import Manifest

Backend = Literal["dali", "torchvision"]


class ViewLoader(Protocol):
    """An epoch's batches each time it is iterated: (view1, view2), each [B, 1, S, S] float32 on the device."""

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of the next epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, between two epochs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""


class ImageLoader(Protocol):
    """Every image of a split once, in the order of the shards: [B, 1, S, S] float32 on the device."""

    def __len__(self) -> int:
        """Batches in the split, the last of them short."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the batches."""


def two_view_loader(
    backend: Backend, folder: Path, manifest: Manifest, recipe: Recipe, *, split: str = "train", batch_size: int,
    device: torch.device, workers: int = 0, seed: int = 0, rank: int = 0, world: int = 1,
) -> ViewLoader:  # fmt: skip
    """A loader of two independently drawn views of each image, every image at most once an epoch.

    An epoch has images // world // batch_size full batches on every rank; what is left over changes with the epoch.
    Equal arguments give equal batches, bit for bit on a CPU. workers: threads or processes, 0 for one a core.
    Raises InputError where the split is smaller than a batch or the backend can't be had.
    """
    images = manifest.images(split)
    if images // world < batch_size:
        raise InputError(f"--batch-size={batch_size}: {folder} has {images} images in split {split!r}"
                         f"{f' for {world} ranks' if world > 1 else ''}; lower it to {max(1, images // world)} or less")
    workers = workers or cores()
    if backend == "dali":
        views: ViewLoader = _dali().DaliViews(folder, manifest, split, recipe, batch_size=batch_size, device=device,
                                              threads=workers, seed=seed, rank=rank, world=world)  # fmt: skip
        return views
    return ReferenceViews(folder, manifest, split, recipe, batch_size=batch_size, device=device, workers=workers,
                          seed=seed, rank=rank, world=world)  # fmt: skip


def image_loader(
    backend: Backend, folder: Path, manifest: Manifest, *, split: str, size: int, mean: float, std: float,
    batch_size: int, device: torch.device, workers: int = 0,
) -> ImageLoader:  # fmt: skip
    """A loader of whole images resized to size × size and normalised, in the order of shard.read.read_labels."""
    workers = workers or cores()
    if backend == "dali":
        images: ImageLoader = _dali().DaliImages(folder, manifest, split, size, mean, std, batch_size=batch_size,
                                                 device=device, threads=workers)  # fmt: skip
        return images
    return ReferenceImages(folder, manifest, split, size, mean, std, batch_size=batch_size, device=device,
                           workers=workers)  # fmt: skip


def has_dali() -> bool:
    """Whether DALI is installed here."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def _dali() -> Any:
    """pipeline.dali, imported only where it is asked for: it takes a second, and is not to be had everywhere."""
    if not has_dali():
        raise InputError("--dali: NVIDIA DALI is not installed; pip install nvidia-dali-cuda120 (Linux only), "
                         "or leave --dali out to use torchvision")
    from pipeline import dali

    return dali
