"""What one would write without us, each as good as it gets in a few lines: batches without end, as image counts."""

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

WINDOW = 23  # of the Gaussian, as the study had it: a tenth of the view


def published(fetcher: Fetcher, augmentation: Augmentation, batch_size: int, threads: int) -> Iterator[int]:
    """The study's loader, counted."""
    for view1, _ in published_views(fetcher, augmentation, batch_size, threads):
        yield len(view1)


def published_views(
    fetcher: Fetcher, augmentation: Augmentation, batch_size: int, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The study's loader: PIL in RGB, torchvision's transforms, DataLoader workers; two views, each [B, 3, S, S]."""
    loader = DataLoader(_Published(fetcher, augmentation), batch_size, shuffle=True, num_workers=threads,
                        drop_last=True,
                        persistent_workers=True, multiprocessing_context=START_METHOD)  # fmt: skip
    with translate_worker_errors(threads):
        while True:
            yield from loader


class _Published(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, fetcher: Fetcher, augmentation: Augmentation) -> None:
        self._fetcher = fetcher
        self._augment = v2.Compose([
            v2.RandomResizedCrop(augmentation.size, scale=augmentation.crop_area, ratio=augmentation.crop_ratio),
            v2.RandomHorizontalFlip(augmentation.flip_probability),
            v2.RandomApply([v2.GaussianBlur(WINDOW, augmentation.blur_sigma)], p=augmentation.blur_probability),
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
    """OpenCV and libjpeg-turbo on 8-bit grey in threads; normalising is left to whoever takes the 8-bit views."""
    import cv2  # an extra, for this rival alone

    cv2.setNumThreads(1)
    levels = np.arange(256, dtype=np.float32)

    def make(content: bytes, parameters: Any, into: Any) -> None:
        """Both views of an image."""
        image = simplejpeg.decode_jpeg(content, colorspace="GRAY")[..., 0]
        for view, (top, left, height, width, flip, sigma, brightness, contrast) in zip(into, parameters, strict=True):
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
            drawn = sample_view_parameters(augmentation, 0, batch.epoch, batch.indices, shapes).tolist()
            views = torch.empty(len(contents), 2, augmentation.size, augmentation.size, dtype=torch.uint8)
            list(pool.map(make, contents, drawn, views.numpy()))
            yield len(views)


def turbojpeg(fetcher: Fetcher, batches: Iterator[Batch], threads: int) -> Iterator[int]:
    """libjpeg-turbo in threads, without DALI: reading and decoding, and nothing else."""

    def decode(content: bytes) -> None:
        simplejpeg.decode_jpeg(content, colorspace="GRAY")

    with ThreadPoolExecutor(threads) as pool:
        for _, contents in prefetch(fetcher, batches):
            yield len(list(pool.map(decode, contents)))


def stock_dali(folder: Path, manifest: Manifest, augmentation: Augmentation, batch_size: int,
               threads: int) -> Iterator[int]:
    """DALI's own reader and operators on the CPU, in grey, as one would write them first."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    shards = manifest.of_split("train")

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
    def graph() -> Any:
        """Decoded once, two views."""
        encoded = fn.readers.webdataset(
            paths=[str(folder / shard.tar) for shard in shards], ext=["jpg"],
            index_paths=[str(folder / shard.index) for shard in shards], random_shuffle=True, initial_fill=512,
        )  # fmt: skip
        image = fn.decoders.image(encoded, output_type=types.GRAY)
        return tuple(view(image) for _ in range(2))

    def view(image: Any) -> Any:
        """One, as the study has them."""
        x = fn.random_resized_crop(image, size=[augmentation.size, augmentation.size],
                                   random_area=list(augmentation.crop_area),
                                   random_aspect_ratio=list(augmentation.crop_ratio))  # fmt: skip
        sigma = fn.random.coin_flip(probability=augmentation.blur_probability)
        sigma = sigma * fn.random.uniform(range=augmentation.blur_sigma)
        x = fn.gaussian_blur(x, window_size=WINDOW, sigma=sigma + 0.01)
        x = fn.brightness_contrast(x, brightness=_around_one(fn, augmentation.brightness),
                                   contrast=_around_one(fn, augmentation.contrast))  # fmt: skip
        flip = fn.random.coin_flip(probability=augmentation.flip_probability)
        return fn.crop_mirror_normalize(x, mean=[augmentation.mean * 255], std=[augmentation.std * 255],
                                        mirror=flip)  # fmt: skip

    for (made,) in DALIGenericIterator([graph()], ["view1", "view2"]):
        yield len(made["view1"])


def _around_one(fn: Any, by: float) -> Any:
    return fn.random.uniform(range=[1 - by, 1 + by])
