"""Baseline loaders without our code, each tuned as far as a few lines allow. They yield image counts indefinitely."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.augmentation import Augmentation
from pipeline.prefetch import prefetch
from pipeline.sampler import Batch
from pipeline.torchvision_views import START_METHOD
from pipeline.view_parameters import sample_view_parameters
from pipeline.workers import translate_worker_errors
from shard.fetch import Fetcher
from shard.manifest import Manifest

BLUR_WINDOW = 23  # pixels, as published: a tenth of the view


def published(fetcher: Fetcher, augmentation: Augmentation, batch_size: int, threads: int) -> Iterator[int]:
    """Run the published study's loader. Yields the number of images of each batch."""
    for view1, _ in published_views(fetcher, augmentation, batch_size, threads):
        yield len(view1)


def published_views(
    fetcher: Fetcher, augmentation: Augmentation, batch_size: int, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Run the published study's loader: PIL in RGB, torchvision's transforms, DataLoader workers.

    Yields two views, each [B, 3, S, S].
    """
    loader = DataLoader(_PublishedDataset(fetcher, augmentation), batch_size, shuffle=True, num_workers=threads,
                        drop_last=True, persistent_workers=True, multiprocessing_context=START_METHOD)  # fmt: skip
    with translate_worker_errors(threads):
        while True:
            yield from loader


class _PublishedDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, fetcher: Fetcher, augmentation: Augmentation) -> None:
        self._fetcher = fetcher
        self._augment = v2.Compose([
            v2.RandomResizedCrop(augmentation.size, scale=augmentation.crop_area, ratio=augmentation.crop_ratio),
            v2.RandomHorizontalFlip(augmentation.flip_probability),
            v2.RandomApply([v2.GaussianBlur(BLUR_WINDOW, augmentation.blur_sigma)], p=augmentation.blur_probability),
            v2.ColorJitter(brightness=augmentation.brightness, contrast=augmentation.contrast),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([augmentation.mean] * 3, [augmentation.std] * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._fetcher)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(self._fetcher.read(number))).convert("RGB")
        return self._augment(image), self._augment(image)


def opencv(fetcher: Fetcher, batches: Iterator[Batch], augmentation: Augmentation, threads: int) -> Iterator[int]:
    """Make 8-bit grey views with OpenCV and libjpeg-turbo in threads. Does not normalise; yields image counts."""
    import cv2  # an optional dependency, used only here

    cv2.setNumThreads(1)
    levels = np.arange(256, dtype=np.float32)

    def make_views(content: bytes, view_parameters: Any, views: Any) -> None:
        image = simplejpeg.decode_jpeg(content, colorspace="GRAY")[..., 0]
        for view, parameters in zip(views, view_parameters, strict=True):
            top, left, height, width, flip, sigma, brightness, contrast = parameters
            crop = image[int(top) : int(top + height), int(left) : int(left + width)]
            x = cv2.resize(crop, (augmentation.size, augmentation.size), interpolation=cv2.INTER_AREA)
            if sigma:
                x = cv2.GaussianBlur(x, (0, 0), sigma)
            pivot = cv2.mean(x)[0] * brightness
            table = np.clip((np.clip(levels * brightness, 0, 255) - pivot) * contrast + pivot, 0, 255).astype(np.uint8)
            x = cv2.LUT(x, table)
            view[:] = cv2.flip(x, 1) if flip else x

    with ThreadPoolExecutor(threads) as pool:
        for batch, contents in prefetch(fetcher, batches):
            shapes = [simplejpeg.decode_jpeg_header(content)[:2] for content in contents]
            parameters = sample_view_parameters(augmentation, 0, batch.epoch, batch.indices, shapes).tolist()
            views = torch.empty(len(contents), 2, augmentation.size, augmentation.size, dtype=torch.uint8)
            list(pool.map(make_views, contents, parameters, views.numpy()))
            yield len(views)


def turbojpeg(fetcher: Fetcher, batches: Iterator[Batch], threads: int) -> Iterator[int]:
    """Read and decode with libjpeg-turbo in threads, without DALI. Yields image counts."""

    def decode(content: bytes) -> None:
        simplejpeg.decode_jpeg(content, colorspace="GRAY")

    with ThreadPoolExecutor(threads) as pool:
        for _, contents in prefetch(fetcher, batches):
            yield len(list(pool.map(decode, contents)))


def stock_dali(
    folder: Path, manifest: Manifest, augmentation: Augmentation, batch_size: int, threads: int
) -> Iterator[int]:
    """Run DALI's own reader and CPU operators in grey, as a first version would be written. Yields image counts."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    shards = manifest.of_split("train")

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
    def graph() -> Any:
        encoded = fn.readers.webdataset(
            paths=[str(folder / shard.tar) for shard in shards], ext=["jpg"],
            index_paths=[str(folder / shard.index) for shard in shards], random_shuffle=True, initial_fill=512,
        )  # fmt: skip
        image = fn.decoders.image(encoded, output_type=types.GRAY)
        return tuple(view(image) for _ in range(2))

    def view(image: Any) -> Any:
        x = fn.random_resized_crop(image, size=[augmentation.size, augmentation.size],
                                   random_area=list(augmentation.crop_area),
                                   random_aspect_ratio=list(augmentation.crop_ratio))  # fmt: skip
        sigma = fn.random.coin_flip(probability=augmentation.blur_probability)
        sigma = sigma * fn.random.uniform(range=augmentation.blur_sigma)
        x = fn.gaussian_blur(x, window_size=BLUR_WINDOW, sigma=sigma + 0.01)
        x = fn.brightness_contrast(x, brightness=_around_one(fn, augmentation.brightness),
                                   contrast=_around_one(fn, augmentation.contrast))  # fmt: skip
        flip = fn.random.coin_flip(probability=augmentation.flip_probability)
        return fn.crop_mirror_normalize(x, mean=[augmentation.mean * 255], std=[augmentation.std * 255],
                                        mirror=flip)  # fmt: skip

    for (views,) in DALIGenericIterator([graph()], ["view1", "view2"]):
        yield len(views["view1"])


def _around_one(fn: Any, width: float) -> Any:
    return fn.random.uniform(range=[1 - width, 1 + width])
