"""torchvision: the plain, readable twin of every backend, on the CPU."""

from __future__ import annotations

import contextlib
import gc
import io
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import length_hint
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode

from pipeline.augmentation import Augmentation, View, blur_radius
from pipeline.sampler import Batch
from pipeline.view_parameters import sample_view_parameters
from pipeline.workers import check_room, explaining_workers, share
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.read import CURE
from shard.shared_memory import free_bytes

# Workers begin as copies of this process: at once, and they leave without a word. A process that multiprocessing has
# spawned would spawn them, and those abort aloud as they leave. (None: as the system has it.)
START = "fork" if sys.platform == "linux" else None


def view_batches(
    fetcher: Fetcher, batches: Iterable[Batch], augmentation: Augmentation, *, seed: int, device: torch.device,
    workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Both views of each batch's images, float32 on the device; workers: processes."""
    for view1, view2 in _in_workers(partial(_make_views, fetcher, augmentation, seed), fetcher, batches, workers):
        yield view1.to(device), view2.to(device)


def image_batches(
    fetcher: Fetcher, batches: Iterable[Batch], size: int, mean: float, std: float, *, device: torch.device,
    workers: int, interpolation: str,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Each batch's images whole, resized and normalised, float32 on the device."""
    make = partial(_make_images, fetcher, size, mean, std, interpolation)
    for images in _in_workers(make, fetcher, batches, workers):
        yield images.to(device)


def _make_views(fetcher: Fetcher, augmentation: Augmentation, seed: int, batch: Batch) -> tuple[torch.Tensor,
                                                                                                torch.Tensor]:
    views1, views2 = [], []
    for number, other in zip(batch.indices.tolist(), batch.view2_indices.tolist(), strict=True):
        image1 = decode(fetcher, number)
        image2 = image1 if other == number else decode(fetcher, other)
        first, second = draw(augmentation, seed, batch.epoch, number, image1, image2)
        views1.append(make_view(image1, first, augmentation))
        views2.append(make_view(image2, second, augmentation))
    return torch.stack(views1), torch.stack(views2)


def _make_images(
    fetcher: Fetcher, size: int, mean: float, std: float, interpolation: str, batch: Batch
) -> torch.Tensor:  # fmt: skip
    how = InterpolationMode(interpolation)
    images = [F.resize(decode(fetcher, number), [size, size], how, antialias=True) for number in batch.indices.tolist()]
    if interpolation == "bicubic":  # overshoots at edges, as the 8-bit images that networks are trained on can't
        images = [image.clamp(0, 1) for image in images]
    normalised: torch.Tensor = F.normalize(torch.stack(images), [mean], [std])
    return normalised


def _in_workers(
    make: Callable[[Batch], Any], fetcher: Fetcher, batches: Iterable[Batch], workers: int
) -> Iterator[Any]:  # fmt: skip
    """What `make` makes of each batch, in order, in processes of its own."""
    # A worker begins as a copy of this process. A pipeline of DALI's that has been dropped and not yet collected would
    # be collected there too, and wait for threads that are not there.
    gc.collect()
    count, free = length_hint(batches), free_bytes()
    with explaining_workers(workers):
        with _no_error_out_of_the_blue(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # as --workers asks
            # None of a DataLoader's randomness is used; a generator of its own keeps it from drawing on the trainer's.
            loader = DataLoader(_Batches(make, fetcher), batch_size=None, sampler=_Once(batches), num_workers=workers,
                                worker_init_fn=_keep_what_was_copied, generator=torch.Generator(),
                                multiprocessing_context=START)  # fmt: skip
            results = iter(loader)
        for number, made in enumerate(results):
            if isinstance(made, InputError):
                raise made
            if number == 0:
                check_room(made, workers, count, free)
            yield made


@contextlib.contextmanager
def _no_error_out_of_the_blue() -> Iterator[None]:
    """Leave SIGCHLD as it was: PyTorch's handler raises wherever the trainer stands, in the middle of a step or a test.

    That a worker has died is still told where its batch is waited for, some seconds later.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():  # elsewhere PyTorch sets none
        signal.signal(signal.SIGCHLD, before)


def _keep_what_was_copied(worker: int) -> None:
    gc.freeze()


class _Batches(Dataset[Any]):
    """`make` as a DataLoader wants it: an item is a batch, or the InputError that would come out wrapped if raised."""

    def __init__(self, make: Callable[[Batch], Any], fetcher: Fetcher) -> None:
        self._make, self._fetcher, self._epoch = make, fetcher, -1

    def __getitem__(self, batch: Batch) -> Any:
        if batch.epoch != self._epoch:
            self._epoch = batch.epoch
            self._fetcher.reopen()
        try:
            return share(self._make(batch))
        except InputError as error:
            return error


class _Once(Sampler[Batch]):
    """Batches in the order they come."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def decode(fetcher: Fetcher, number: int) -> torch.Tensor:
    """An image of the split: [1, H, W] float32 in 0…1. Raises InputError naming it where it can't be decoded."""
    content = fetcher.read(number)
    if fetcher.raw_size:
        grey = np.frombuffer(content, np.uint8).reshape(fetcher.raw_size, fetcher.raw_size)
    else:
        try:
            grey = np.asarray(Image.open(io.BytesIO(content), formats=["JPEG"]).convert("L"))
        except Exception as error:  # a decoder may raise anything at broken bytes
            raise InputError(f"{fetcher.where(number)}: can't be decoded ({error}); {CURE}") from None
    return torch.from_numpy(grey.astype(np.float32) / 255)[None]


def draw(
    augmentation: Augmentation, seed: int, epoch: int, number: int, image1: torch.Tensor, image2: torch.Tensor
) -> tuple[View, View]:  # fmt: skip
    """The parameters of both views of an image, by its number in the split; each is made of one [1, H, W]."""
    shapes = [[image1.shape[-2:], image2.shape[-2:]]]
    first, second = sample_view_parameters(augmentation, seed, epoch, [number], shapes)[0].tolist()
    return as_view(first), as_view(second)


def as_view(drawn: list[float]) -> View:
    """A row of sample_view_parameters by name."""
    top, left, height, width, flip, *rest = drawn
    return View(int(top), int(left), int(height), int(width), bool(flip), *rest)


def make_view(image: torch.Tensor, view: View, augmentation: Augmentation) -> torch.Tensor:
    """One view with the given parameters: image [1, H, W] in 0…1 → [1, size, size] float32, normalised."""
    x = F.resized_crop(image, view.top, view.left, view.height, view.width, [augmentation.size, augmentation.size],
                       antialias=True)
    if view.sigma > 0:
        window = 2 * blur_radius(view.sigma) + 1
        x = F.gaussian_blur(x, [window, window], [view.sigma, view.sigma])
    x = F.adjust_brightness(x, view.brightness)
    x = F.adjust_contrast(x, view.contrast)
    if view.flip:
        x = F.horizontal_flip(x)
    normalised: torch.Tensor = F.normalize(x, [augmentation.mean], [augmentation.std])
    return normalised
