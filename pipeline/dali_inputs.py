"""Inputs of DALI's pipelines: encoded images and view parameters per batch; and translation of DALI's errors."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from numba import njit

from pipeline.augmentation import Augmentation
from pipeline.prefetch import prefetch
from pipeline.sampler import Batch
from pipeline.view_parameters import sample_view_parameters
from shard.caches import numba_can_cache
from shard.errors import InputError, OutOfMemory
from shard.fetch import Fetcher
from shard.read import CURE

NO_BLUR_SIGMA = 0.01  # the identity without a branch in the graph: the neighbors' weights are exp(-5000)
# What to do if memory runs out, for views and for whole images.
VIEWS_NEED_LESS = "lower --batch-size or --size, use --views=cpu, or lower --workers"
IMAGES_NEED_LESS = "lower --batch-size, --size or --workers"
PREFETCH_QUEUE_DEPTH = 2  # batches that each pipeline computes ahead
_jit = njit(cache=numba_can_cache(), nogil=True)


class BatchInputs:
    """An iterable of a pipeline's inputs per batch: encoded images, then the arrays of `parameters(batch, shapes)`.

    shapes: heights and widths of `batch.images`, [B, 2] or, with partners, [2 B, 2]. batch_size: of the first batch.
    has_partners: whether batches have partners. first_image_shape: height and width. raw_size: height and width of raw
    images, None for JPEGs.
    """

    def __init__(
        self, fetcher: Fetcher, batches: Iterable[Batch], parameters: Callable[[Batch, Any], tuple[Any, ...]]
    ) -> None:
        self._fetcher, self._parameters = fetcher, parameters
        self._contents = prefetch(fetcher, batches)
        # Keeps alive the arrays that DALI reads without copying, and the images among which to find an undecodable one.
        self._recent: deque[tuple[Batch, list[bytes], Any]] = deque(maxlen=PREFETCH_QUEUE_DEPTH + 3)
        self._first = self._next()
        batch, contents, _ = self._recent[0]
        self.batch_size = len(batch.indices)
        self.has_partners = batch.partners is not None
        self.first_image_shape = self._shapes(batch, contents)[0]
        self.raw_size = fetcher.raw_size

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield self._first
        while True:
            try:
                yield self._next()
            except StopIteration:
                return

    def translate_errors(self, outputs: Any, cures: str = VIEWS_NEED_LESS) -> Iterator[Any]:
        """Yield the pipeline's outputs. Raises InputError naming an undecodable image, or `cures`."""
        try:
            yield from outputs
        except (RuntimeError, MemoryError) as error:
            raise self._translate(error, cures) or error from error

    def _next(self) -> tuple[Any, ...]:
        """Return the inputs of the next batch, kept alive for as long as DALI may read them. Raises StopIteration."""
        batch, contents = next(self._contents)
        parameters = self._parameters(batch, self._shapes(batch, contents))
        encoded = [np.frombuffer(content, np.uint8) for content in contents]
        self._recent.append((batch, contents, parameters))
        if batch.partners is None:
            return (encoded, *parameters)
        return (encoded[: len(batch.indices)], encoded[len(batch.indices) :], *parameters)

    def _shapes(self, batch: Batch, contents: list[bytes]) -> Any:
        """Heights and widths of the images read for a batch, [·, 2]."""
        if self._fetcher.raw_size:
            return np.full((len(contents), 2), self._fetcher.raw_size)
        try:
            return np.array([simplejpeg.decode_jpeg_header(content)[:2] for content in contents])
        except ValueError as error:
            raise self._find_undecodable(batch, contents) or error from error

    def _translate(self, error: Exception, cures: str) -> InputError | None:
        for batch, contents, _ in self._recent:
            if not self._fetcher.raw_size and (found := self._find_undecodable(batch, contents)):
                return found
        # An image that only DALI fails to decode. It reports the position in the batch, but not which batch.
        if position := re.search(r"decode sample #(\d+)", str(error)):
            images = [self._fetcher.describe(index) for batch, *_ in self._recent
                      for index in batch.images.tolist()[int(position[1]) :: len(batch.indices)]]  # and its partner
            return InputError(f"{' or '.join(images)}: can't be decoded by DALI; {CURE}")
        return out_of_memory(error, cures)

    def _find_undecodable(self, batch: Batch, contents: list[bytes]) -> InputError | None:
        """Find the first image of a batch that libjpeg-turbo can't decode on the CPU."""
        for index, content in zip(batch.images.tolist(), contents, strict=True):
            try:
                simplejpeg.decode_jpeg(content, colorspace="GRAY")
            except ValueError as error:
                return InputError(f"{self._fetcher.describe(index)}: can't be decoded ({error}); {CURE}")
        return None


def out_of_memory(error: Exception, cures: str = VIEWS_NEED_LESS) -> OutOfMemory | None:
    """Translate DALI's out-of-memory errors; None for any other error. cures: the settings to lower."""
    text = str(error)
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in ("out of memory", "alloc")):
        reason = text.strip().rpartition("\n")[2] or type(error).__name__  # Python's MemoryError has no text
        return OutOfMemory(f"memory ran out while images were loaded: {cures} ({reason})")
    return None


def sample_batch_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, Any]:
    """Sample both views' parameters, [B, 2, 8], and flag the second views that show a partner, [B] bool.

    shapes: as in BatchInputs.
    """
    if batch.partners is None:
        has_partner = np.zeros(len(batch.indices), bool)
    else:
        shapes, has_partner = np.stack(np.split(shapes, 2), axis=1), batch.partners != batch.indices
    return sample_view_parameters(augmentation, seed, batch.epoch, batch.indices, shapes), has_partner


def stock_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, ...]:
    """Inputs of the stock graph: the arrays of view_inputs for view 1, then for view 2.

    A batch with partners adds an array of flags, [B] bool: whether view 2 shows a partner.
    """
    parameters, has_partner = sample_batch_parameters(augmentation, seed, batch, shapes)
    arrays = (array for view in range(2) for array in view_inputs(parameters[:, view], augmentation.size))
    return (*arrays, *(() if batch.partners is None else (has_partner,)))


def view_inputs(parameters: Any, size: int) -> tuple[Any, ...]:
    """Convert the parameters of one view per image, [B, 8] in the order of View, to the inputs of dali.make_view.

    Returns start and shape of the crop, [B, 2] int32; the arrays of resize_inputs, the brightness multiplied into the
    row factors; flip [B] int32, sigma [B] and contrast [B] float32. Computing them here saves operators in the graph.
    """
    start, shape = (np.ascontiguousarray(parameters[:, k : k + 2], np.int32) for k in (0, 2))
    pad_start, padded_shape, roi_start, roi_end, rows, columns = resize_inputs(shape, size)
    rows *= parameters[:, 6, None, None, None].astype(np.float32)
    return (start, shape, pad_start, padded_shape, roi_start, roi_end, rows, columns,
            parameters[:, 4].astype(np.int32), np.maximum(parameters[:, 5], NO_BLUR_SIGMA).astype(np.float32),
            parameters[:, 7].astype(np.float32))  # fmt: skip


def resize_inputs(shapes: Any, size: int, interpolation: str = "bilinear") -> tuple[Any, ...]:
    """Convert heights and widths of images, [B, 2], to the inputs with which dali.resize equals torchvision's resize.

    They differ at the border: DALI divides an output pixel by the weight of all its taps, torchvision by the weight of
    the taps inside the image. So the image is padded with zeros as far as the taps reach, and the result is multiplied
    by the ratio of the two weights: a factor per row times a factor per column.

    Returns the start of the padded image (negative) and its shape, [B, 2] int32; start and end of the image in it,
    [B, 2] float32; and the factors of rows, [B, size, 1, 1], and columns, [B, 1, size, 1], float32.
    """
    shapes = np.asarray(shapes, np.int32)
    support = 2 if interpolation == "bicubic" else 1
    padding = support * (shapes // size + 2)
    rows, columns = (border_weights(shapes[:, axis], size, interpolation) for axis in (0, 1))
    return (-padding, shapes + 2 * padding, padding.astype(np.float32), (padding + shapes).astype(np.float32),
            rows[:, :, None, None], columns[:, None, :, None])  # fmt: skip


def border_weights(lengths: Any, size: int, interpolation: str = "bilinear") -> Any:
    """Compute the weight of all taps of an antialiased resize over the weight of those inside, [B, size] float32.

    lengths: pixels before the resize, [B]; size: pixels after it. 1 if all taps are inside.
    """
    weights = np.ones((len(lengths), size), np.float32)
    _fill_border_weights(weights, np.asarray(lengths, np.int64), interpolation == "bicubic")
    return weights


@_jit
def _cubic(x: float) -> float:
    """Keys' cubic kernel with a = -1/2, as in Pillow, PyTorch's antialiased resize and DALI; 0 ≤ x < 2."""
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2


@_jit  # NumPy took 2 ms per batch, on the thread that feeds DALI; this takes 0.1 ms
def _fill_border_weights(weights: Any, lengths: Any, cubic: bool) -> None:
    size = weights.shape[1]
    for image in range(lengths.size):
        scale = lengths[image] / size
        stretch = max(scale, 1.0)
        support = 2 * stretch if cubic else stretch
        for k in range(size):
            center = (k + 0.5) * scale - 0.5  # in pixels before the resize
            first, last = math.floor(center - support) + 1, math.ceil(center + support) - 1
            if first >= 0 and last < lengths[image]:
                continue
            total, inside = 0.0, 0.0
            for position in range(first, last + 1):
                distance = abs(position - center) / stretch
                weight = _cubic(distance) if cubic else 1.0 - distance
                total += weight
                if 0 <= position < lengths[image]:
                    inside += weight
            weights[image, k] = total / inside


def fused_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, ...]:
    """Inputs of the fused graph: view parameters and the boxes to decode.

    Without partners: parameters [B, 2, 8], their crops relative to the box; start and shape of the box that contains
    both crops, [B, 2] int32. With partners: start and shape of view 2's box follow, and flags, [B] bool: whether view 2
    shows a partner. Each image with a partner then has a box that contains only its own crop.
    """
    parameters, has_partner = sample_batch_parameters(augmentation, seed, batch, shapes)
    starts, ends = parameters[:, :, 0:2].copy(), parameters[:, :, 0:2] + parameters[:, :, 2:4]  # [B, 2, 2]
    starts[~has_partner] = starts[~has_partner].min(axis=1, keepdims=True)
    ends[~has_partner] = ends[~has_partner].max(axis=1, keepdims=True)
    parameters[:, :, 0:2] -= starts
    boxes = [np.ascontiguousarray(part[:, view], np.int32) for view in range(2) for part in (starts, ends - starts)]
    return (parameters, *boxes[:2]) if batch.partners is None else (parameters, *boxes, has_partner)
