"""What DALI's graphs are fed, a batch at a time: the images' bytes and their views' parameters; and what went wrong."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import simplejpeg

from pipeline.augmentation import Augmentation
from pipeline.prefetch import prefetch
from pipeline.sampler import Batch
from pipeline.view_parameters import sample_view_parameters
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.read import CURE

NO_BLUR_SIGMA = 0.01  # its outer taps are exp(-5000): the identity, without a branch in the graph
BATCHES_QUEUED = 2  # made before they are asked for, by each pipeline


class BatchInputs:
    """What a pipeline is fed, a batch at a time: the images' bytes, and arrays of `parameters(batch, shapes)`.

    batch_size: of the first batch; paired: whether there are partners; first_shape: height and width of the first
    image; raw_size: of raw images, else None.
    """

    def __init__(
        self, fetcher: Fetcher, batches: Iterable[Batch], parameters: Callable[[Batch, Any], tuple[Any, ...]]
    ) -> None:
        self._fetcher, self._draw = fetcher, parameters
        self._read = prefetch(fetcher, batches)
        # What DALI still reads, since it makes no copies, and where to look for an image that it can't decode.
        self._recent: deque[tuple[Batch, list[bytes], Any]] = deque(maxlen=BATCHES_QUEUED + 3)
        self._first = self._next()
        self.batch_size = len(self._recent[0][0].indices)
        self.paired = self._recent[0][0].partners is not None
        self.first_shape = self._shapes(*self._recent[0][:2])[0]
        self.raw_size = fetcher.raw_size

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield self._first
        while True:
            try:
                yield self._next()
            except StopIteration:
                return

    def translate_errors(self, made: Any) -> Iterator[Any]:
        """What the pipeline makes; where it fails, an InputError that names the image, or the settings to lower."""
        try:
            yield from made
        except (RuntimeError, MemoryError) as error:
            raise self._explain(error) or error from error

    def _next(self) -> tuple[Any, ...]:
        """A batch's bytes and its parameters, remembered as long as DALI may read them. Raises StopIteration."""
        batch, contents = next(self._read)
        drawn = self._draw(batch, self._shapes(batch, contents))
        encoded = [np.frombuffer(content, np.uint8) for content in contents]
        self._recent.append((batch, contents, drawn))
        if batch.partners is None:
            return (encoded, *drawn)
        return (encoded[: len(batch.indices)], encoded[len(batch.indices) :], *drawn)

    def _shapes(self, batch: Batch, contents: list[bytes]) -> Any:
        """Heights and widths of what is read for a batch, [·, 2]."""
        if self._fetcher.raw_size:
            return np.full((len(contents), 2), self._fetcher.raw_size)
        try:
            return np.array([simplejpeg.decode_jpeg_header(content)[:2] for content in contents])
        except ValueError as error:
            raise self._undecodable(batch, contents) or error from error

    def _explain(self, error: Exception) -> InputError | None:
        for batch, contents, _ in self._recent:
            if not self._fetcher.raw_size and (found := self._undecodable(batch, contents)):
                return found
        if said := re.search(r"decode sample #(\d+)", str(error)):  # what DALI alone can't, of a batch unknown
            images = [self._fetcher.where(image) for batch, *_ in self._recent
                      for image in batch.images.tolist()[int(said[1]) :: len(batch.indices)]]  # its partner's as well
            return InputError(f"{' or '.join(images)}: can't be decoded by DALI; {CURE}")
        return out_of_memory(error)

    def _undecodable(self, batch: Batch, contents: list[bytes]) -> InputError | None:
        """The first image of a batch that libjpeg-turbo, on the CPU, can't decode."""
        for number, content in zip(batch.images.tolist(), contents, strict=True):
            try:
                simplejpeg.decode_jpeg(content, colorspace="GRAY")
            except ValueError as fault:
                return InputError(f"{self._fetcher.where(number)}: can't be decoded ({fault}); {CURE}")
        return None


def out_of_memory(error: Exception) -> InputError | None:
    """What to lower, where DALI says that memory ran out; None where it says something else."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(said in text for said in ("out of memory", "alloc")):
        return InputError("memory ran out while views were made: lower --batch-size or --size, make them on the CPU "
                          f"with --views=cpu, or lower --workers ({str(error).strip().splitlines()[-1]})")
    return None


def sample_batch_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, Any]:
    """The views' parameters, [B, 2, 8], and which second views are of a partner, [B]; shapes: as in BatchInputs."""
    if batch.partners is None:
        return sample_view_parameters(augmentation, seed, batch.epoch, batch.indices,
                                      shapes), np.zeros(len(batch.indices), bool)
    of_views = np.stack(np.split(shapes, 2), axis=1)
    return sample_view_parameters(augmentation, seed, batch.epoch, batch.indices,
                                  of_views), batch.partners != batch.indices


def stock_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, ...]:
    """Inputs of the stock graph: the arrays of view_inputs for view 1, then for view 2. A batch with partners adds a
    boolean array, [B]: whether view 2 comes from a partner."""
    drawn, paired = sample_batch_parameters(augmentation, seed, batch, shapes)
    arrays = (array for view in range(2) for array in view_inputs(drawn[:, view], augmentation.size))
    return (*arrays, *(() if batch.partners is None else (paired,)))


def view_inputs(parameters: Any, size: int) -> tuple[Any, ...]:
    """Parameters of one view of each image, [B, 8] in the order of View → the arrays that dali.make_view takes.

    start, extent of the crop [B, 2]; then those of resize_inputs, whose row weights contain the brightness; flip [B],
    sigma [B] and contrast [B]. They are computed here because each is one operator less in the graph.
    """
    start, extent = (np.ascontiguousarray(parameters[:, k : k + 2], np.int32) for k in (0, 2))
    margin, around, roi_start, roi_end, rows, columns = resize_inputs(extent, size)
    rows *= parameters[:, 6, None, None, None].astype(np.float32)
    return (start, extent, margin, around, roi_start, roi_end, rows, columns, parameters[:, 4].astype(np.int32),
            np.maximum(parameters[:, 5], NO_BLUR_SIGMA).astype(np.float32), parameters[:, 7].astype(np.float32))


def resize_inputs(extents: Any, size: int, interpolation: str = "bilinear") -> tuple[Any, ...]:
    """Heights and widths of images, [B, 2] → the arrays with which dali.resize resizes them as torchvision does.

    DALI divides an output pixel by the weight of all its taps, torchvision by the weight of those inside the image. So
    the image gets a margin of zeros as wide as the taps reach, and the result is multiplied by the ratio of the two
    weights, which is a product of one factor per row, [B, size, 1, 1], and one per column, [B, 1, size, 1].
    Returns minus the margin and the shape with it, [B, 2] int32, where the image lies in it, [B, 2] float32 each, and
    the two factors.
    """
    extents = np.asarray(extents, np.int32)
    reach = 2 if interpolation == "bicubic" else 1
    margin = reach * (extents // size + 2)  # as far as the triangle reaches, or the cubic
    rows, columns = (border_weights(extents[:, axis], size, interpolation) for axis in (0, 1))
    return (-margin, extents + 2 * margin, margin.astype(np.float32), (margin + extents).astype(np.float32),
            rows[:, :, None, None], columns[:, None, :, None])  # fmt: skip


def border_weights(lengths: Any, size: int, interpolation: str = "bilinear") -> Any:
    """Weight of all taps of an antialiased resize over the weight of those inside, [B, size] float32.

    lengths: pixels before the resize, [B]; size: pixels after it. 1 except within a tap's reach of the border.
    """
    scale = np.asarray(lengths, np.float64)[:, None] / size  # [B, 1]
    wide = np.maximum(scale, 1.0)
    reach = 2 * wide if interpolation == "bicubic" else wide
    centre = (np.arange(size) + 0.5) * scale - 0.5  # [B, size], in pixels before the resize
    whole, inside = np.zeros_like(centre), np.zeros_like(centre)
    first = np.floor(centre - reach)
    for k in range(2 * int(np.ceil(reach.max())) + 2):
        place = first + k
        away = np.abs(place - centre) / wide
        weight = _cubic(away) if interpolation == "bicubic" else np.maximum(0.0, 1.0 - away)
        whole += weight
        inside += weight * ((place >= 0) & (place < scale * size - 0.5))
    return (whole / inside).astype(np.float32)


def _cubic(x: Any) -> Any:
    """Keys's cubic kernel with a = -1/2, as Pillow, PyTorch's antialiased resize and DALI have it; x ≥ 0."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def fused_parameters(augmentation: Augmentation, seed: int, batch: Batch, shapes: Any) -> tuple[Any, ...]:
    """What the fused operator is fed: the views' parameters, [B, 2, 8], within a box that holds both crops and is all
    that is decoded, and that box's start and extent. In a batch with partners there follow the same of their boxes,
    each image's holding its own crop alone, and which second views are of one."""
    drawn, paired = sample_batch_parameters(augmentation, seed, batch, shapes)
    starts, ends = drawn[:, :, 0:2].copy(), drawn[:, :, 0:2] + drawn[:, :, 2:4]  # [B, 2, 2]
    starts[~paired] = starts[~paired].min(axis=1, keepdims=True)
    ends[~paired] = ends[~paired].max(axis=1, keepdims=True)
    drawn[:, :, 0:2] -= starts
    boxes = [np.ascontiguousarray(part[:, view], np.int32) for view in range(2) for part in (starts, ends - starts)]
    return (drawn, *boxes[:2]) if batch.partners is None else (drawn, *boxes, paired)
