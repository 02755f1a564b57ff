"""torchvision backend on the CPU, and the readable reference for the other backends."""

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
from pipeline.workers import check_shared_memory, move_to_shared_memory, translate_worker_errors
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.read import CURE
from shard.shared_memory import free_bytes

# Forked workers start instantly and exit cleanly. By default a spawned process would spawn its workers too, and those
# abort with a message on exit. None: the platform's default.
START_METHOD = "fork" if sys.platform == "linux" else None


def view_batches(
    fetcher: Fetcher, batches: Iterable[Batch], augmentation: Augmentation, *, seed: int, device: torch.device,
    workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Yield both views of each batch's images, [B, 1, S, S] float32 on the device each; workers: processes."""
    for view1, view2 in map_in_workers(partial(make_views, fetcher, augmentation, seed), fetcher, batches, workers):
        yield view1.to(device), view2.to(device)


def image_batches(
    fetcher: Fetcher, batches: Iterable[Batch], size: int, mean: float, std: float, *, device: torch.device,
    workers: int, interpolation: str,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yield each batch's uncropped images, resized and normalised, [B, 1, S, S] float32 on the device."""
    function = partial(_load_images, fetcher, size, mean, std, interpolation)
    for images in map_in_workers(function, fetcher, batches, workers):
        yield images.to(device)


def make_views(
    fetcher: Fetcher, augmentation: Augmentation, seed: int, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both views of one batch in this process, [B, 1, S, S] float32 each."""
    views1, views2 = [], []
    for index, partner in zip(batch.indices.tolist(), batch.view2_indices.tolist(), strict=True):
        image1 = decode(fetcher, index)
        image2 = image1 if partner == index else decode(fetcher, partner)
        parameters1, parameters2 = sample_views(augmentation, seed, batch.epoch, index, image1, image2)
        views1.append(make_view(image1, parameters1, augmentation))
        views2.append(make_view(image2, parameters2, augmentation))
    return torch.stack(views1), torch.stack(views2)


def _load_images(
    fetcher: Fetcher, size: int, mean: float, std: float, interpolation: str, batch: Batch
) -> torch.Tensor:  # fmt: skip
    mode = InterpolationMode(interpolation)
    images = [F.resize(decode(fetcher, index), [size, size], mode, antialias=True) for index in batch.indices.tolist()]
    if interpolation == "bicubic":  # overshoots at edges; 8-bit images, which networks are trained on, are clipped
        images = [image.clamp(0, 1) for image in images]
    normalised: torch.Tensor = F.normalize(torch.stack(images), [mean], [std])
    return normalised


def map_in_workers(
    function: Callable[[Batch], Any], fetcher: Fetcher, batches: Iterable[Batch], workers: int
) -> Iterator[Any]:  # fmt: skip
    """Apply `function` to each batch in worker processes and yield the results in order.

    Raises InputError if `function` does, if a worker dies, or if shared memory is too small.
    """
    # Collect garbage before forking. A DALI pipeline that is garbage in this process would otherwise be collected in
    # a worker too, and wait there for threads that a fork does not copy.
    gc.collect()
    count, free = length_hint(batches), free_bytes()
    with translate_worker_errors(workers):
        with _keep_sigchld_handler(), warnings.catch_warnings():
            # --workers may deliberately exceed the number of cores.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            # DataLoader seeds its workers from `generator`; its default would advance the global RNG state.
            loader = DataLoader(_BatchDataset(function, fetcher), batch_size=None, sampler=_IterableSampler(batches),
                                num_workers=workers, worker_init_fn=_freeze_garbage, generator=torch.Generator(),
                                multiprocessing_context=START_METHOD)  # fmt: skip
            results = iter(loader)
        for step, result in enumerate(results):
            if isinstance(result, InputError):
                raise result
            if step == 0:
                check_shared_memory(result, workers, count, free)
            yield result


@contextlib.contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Restore the SIGCHLD handler that DataLoader replaces: PyTorch's raises at an arbitrary line of the main thread.

    A dead worker is still reported within seconds, where its batch is awaited.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():  # PyTorch sets no handler in other threads
        signal.signal(signal.SIGCHLD, before)


def _freeze_garbage(worker: int) -> None:
    gc.freeze()  # a worker never collects objects of the parent process


class _BatchDataset(Dataset[Any]):
    """A dataset whose items are function(batch), or the InputError it raised: DataLoader would wrap the exception."""

    def __init__(self, function: Callable[[Batch], Any], fetcher: Fetcher) -> None:
        self._function, self._fetcher, self._epoch = function, fetcher, -1

    def __getitem__(self, batch: Batch) -> Any:
        if batch.epoch != self._epoch:
            self._epoch = batch.epoch
            self._fetcher.reopen()
        try:
            return move_to_shared_memory(self._function(batch))
        except InputError as error:
            return error


class _IterableSampler(Sampler[Batch]):
    """Yields the batches of an iterable in order."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def decode(fetcher: Fetcher, index: int) -> torch.Tensor:
    """Decode an image of the split, [1, H, W] float32 in 0…1. Raises InputError naming it if it is corrupt."""
    content = fetcher.read(index)
    if fetcher.raw_size:
        grey = np.frombuffer(content, np.uint8).reshape(fetcher.raw_size, fetcher.raw_size)
    else:
        try:
            grey = np.asarray(Image.open(io.BytesIO(content), formats=["JPEG"]).convert("L"))
        except Exception as error:  # Pillow may raise any exception on corrupt bytes
            raise InputError(f"{fetcher.describe(index)}: can't be decoded ({error}); {CURE}") from None
    return torch.from_numpy(grey.astype(np.float32) / 255)[None]


def sample_views(
    augmentation: Augmentation, seed: int, epoch: int, index: int, image1: torch.Tensor, image2: torch.Tensor
) -> tuple[View, View]:  # fmt: skip
    """Sample the parameters of both views of an image; image1, image2: the images they are computed from, [1, H, W]."""
    shapes = [[image1.shape[-2:], image2.shape[-2:]]]
    row1, row2 = sample_view_parameters(augmentation, seed, epoch, [index], shapes)[0].tolist()
    return as_view(row1), as_view(row2)


def as_view(row: list[float]) -> View:
    """Convert a row of sample_view_parameters, [8], into a View."""
    top, left, height, width, flip, *rest = row
    return View(int(top), int(left), int(height), int(width), bool(flip), *rest)


def make_view(image: torch.Tensor, view: View, augmentation: Augmentation) -> torch.Tensor:
    """Compute one view with the given parameters: image [1, H, W] in 0…1 → [1, size, size] float32, normalised."""
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
