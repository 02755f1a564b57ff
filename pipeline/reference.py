"""torchvision: the plain, readable twin of every backend, on the CPU."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.recipe import Recipe, View, blur_radius, draw_view
from shard.manifest import Manifest
from shard.read import Sample, read_index, read_members


class ReferenceViews:
    """Two views of every training image, epoch after epoch; see loader.two_view_loader for the promise.

    A sample's two views depend on the seed, the epoch and the sample alone, not on ranks, batches or workers.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, recipe: Recipe, *, batch_size: int, device: torch.device,
        workers: int, seed: int, rank: int, world: int,
    ) -> None:  # fmt: skip
        self._images = ShardImages(folder, manifest, split)
        self._recipe, self._batch_size, self._workers = recipe, batch_size, workers
        self._device, self._seed, self._rank, self._world = device, seed, rank, world
        self._steps = len(self._images) // world // batch_size
        self._epoch = 0

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._images))
        mine = order[self._rank :: self._world][: self._steps * self._batch_size]
        views = _Views(self._images, self._recipe, self._seed, self._epoch)
        batches = DataLoader(views, self._batch_size, sampler=mine.tolist(), num_workers=self._workers)
        for view1, view2 in batches:
            yield view1.to(self._device), view2.to(self._device)
        self._epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, between two epochs."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the batches that follow are the same bit for bit."""
        self._epoch = state["epoch"]


class ReferenceImages:
    """Every image of a split once, in the order of the shards; see loader.image_loader for the promise."""

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, size: int, mean: float, std: float, *,
        batch_size: int, device: torch.device, workers: int,
    ) -> None:  # fmt: skip
        resized = _Resized(ShardImages(folder, manifest, split), size, mean, std)
        self._device = device
        self._batches = DataLoader(resized, batch_size=batch_size, num_workers=workers)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self._batches:
            yield batch.to(self._device)


class ShardImages(Dataset[torch.Tensor]):
    """The decoded images of a split by number: [1, H, W] float32 in 0…1."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        raw = manifest.settings["encoding"] == "raw"
        self._extension = "raw" if raw else "jpg"
        self._raw_size = manifest.settings["size"]
        self._samples: list[tuple[Path, Sample]] = []
        for shard in manifest.of_split(split):
            self._samples += [(folder / shard.tar, sample) for sample in read_index(folder / shard.index)]

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, number: int) -> str:
        """The key of an image."""
        return self._samples[number][1].key

    def content(self, number: int) -> bytes:
        """The bytes of an image as they lie in the shard."""
        tar, sample = self._samples[number]
        (content,) = read_members(tar, [sample], self._extension)
        return content

    def __getitem__(self, number: int) -> torch.Tensor:
        content = self.content(number)
        if self._extension == "raw":
            grey = np.frombuffer(content, np.uint8).reshape(self._raw_size, self._raw_size)
        else:
            grey = np.asarray(Image.open(io.BytesIO(content)))
        return torch.from_numpy(grey.astype(np.float32) / 255)[None]


class _Views(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, images: ShardImages, recipe: Recipe, seed: int, epoch: int) -> None:
        self._images, self._recipe, self._key = images, recipe, (seed, epoch)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._images[number]
        first, second = (self._make(image, number, view) for view in (1, 2))
        return first, second

    def _make(self, image: torch.Tensor, number: int, view: int) -> torch.Tensor:
        rng = np.random.default_rng([*self._key, number, view])
        return make_view(image, draw_view(self._recipe, image.shape[-2], image.shape[-1], rng), self._recipe)


class _Resized(Dataset[torch.Tensor]):
    def __init__(self, images: ShardImages, size: int, mean: float, std: float) -> None:
        self._images, self._size, self._mean, self._std = images, size, mean, std

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> torch.Tensor:
        resized = F.resize(self._images[number], [self._size, self._size], antialias=True)
        normalised: torch.Tensor = F.normalize(resized, [self._mean], [self._std])
        return normalised


def make_view(image: torch.Tensor, view: View, recipe: Recipe) -> torch.Tensor:
    """One view with the given parameters: image [1, H, W] in 0…1 → [1, size, size] float32, normalised."""
    x = F.resized_crop(image, view.top, view.left, view.height, view.width, [recipe.size, recipe.size], antialias=True)
    if view.sigma > 0:
        window = 2 * blur_radius(view.sigma) + 1
        x = F.gaussian_blur(x, [window, window], [view.sigma, view.sigma])
    x = F.adjust_brightness(x, view.brightness)
    x = F.adjust_contrast(x, view.contrast)
    if view.flip:
        x = F.horizontal_flip(x)
    normalised: torch.Tensor = F.normalize(x, [recipe.mean], [recipe.std])
    return normalised
