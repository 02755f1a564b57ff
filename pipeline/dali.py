"""NVIDIA DALI: the only file that imports it. It decodes; views are stock operators on a GPU, one fused on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, islice, tee
from typing import Any, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from nvidia.dali.plugin.numba import NumbaFunction
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import BATCHES_QUEUED, BatchInputs, fused_parameters, resize_inputs, stock_parameters
from pipeline.fused import Workspaces, dali_constants, dali_functions
from pipeline.sampler import Batch
from shard.fetch import Fetcher

PIPELINES = 4  # side by side on a CPU, at most: each holds its own batches in memory
Made = TypeVar("Made")


def view_batches(
    fetcher: Fetcher, batches: Iterable[Batch], augmentation: Augmentation, *, seed: int, device: torch.device,
    fused: bool,
    threads: int, half: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Both views of each batch's images, on the device.

    fused: made on the CPU by the fused operator, and carried to the device; else by stock operators on the device.
    """

    def start(batches: Iterable[Batch], threads: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A pipeline's share of the batches."""
        if fused:
            feed = BatchInputs(fetcher, batches, lambda batch, shapes: fused_parameters(augmentation, seed, batch,
                                                                                        shapes))
            side = 2 * max(feed.first_shape)  # generous: most images of a set are about as large as its first
            spaces = Workspaces(threads, augmentation, side, side)
            graph = _fused_views(feed, augmentation, half, spaces, **_arguments(feed, device, threads))
            graph.spaces = spaces  # its threads work in there, and it waits for them before it goes
        else:
            feed = BatchInputs(fetcher, batches, lambda batch, shapes: stock_parameters(augmentation, seed, batch,
                                                                                        shapes))
            graph = _stock_views(feed, augmentation, half, **_arguments(feed, device, threads))
        for (made,) in feed.translate_errors(_iterate(graph, ["view1", "view2"])):
            yield made["view1"], made["view2"]

    return _interleave(start, batches, threads, PIPELINES if fused else 1)


def image_batches(
    fetcher: Fetcher, batches: Iterable[Batch], size: int, mean: float, std: float, *, device: torch.device,
    workers: int, interpolation: str,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Each batch's images whole, resized and normalised, on the device."""

    def start(batches: Iterable[Batch], threads: int) -> Iterator[torch.Tensor]:
        """A pipeline's share of the batches."""
        feed = BatchInputs(fetcher, batches, lambda batch, shapes: resize_inputs(shapes, size, interpolation))
        graph = _whole_images(feed, size, mean, std, interpolation, **_arguments(feed, device, threads))
        for (made,) in feed.translate_errors(_iterate(graph, ["image"])):
            yield made["image"]

    return _interleave(start, batches, workers, 1 if device.type == "cuda" else PIPELINES)


def decode_batches(
    fetcher: Fetcher, batches: Iterable[Batch], *, device: torch.device, threads: int
) -> Iterator[int]:
    """Read and decode and do nothing else: yields how many images, a batch at a time."""

    def start(batches: Iterable[Batch], threads: int) -> Iterator[int]:
        """A pipeline's share of the batches, counted."""
        feed = BatchInputs(fetcher, batches, lambda batch, shapes: ())
        graph = _decoded(feed, **_arguments(feed, device, threads))
        yield from feed.translate_errors(_counted(graph))

    return _interleave(start, batches, threads, 1 if device.type == "cuda" else PIPELINES)


def _interleave(
    start: Callable[[Iterable[Batch], int], Iterator[Made]], batches: Iterable[Batch], threads: int, most: int
) -> Iterator[Made]:
    """Batches in their order from some pipelines in turn, which share the threads.

    After each of its operators a pipeline waits for its last thread; another's work fills that gap.
    """
    count, made = min(threads, most), []
    for k, copy in enumerate(tee(batches, count)):
        own = islice(copy, k, None, count)
        if (first := next(own, None)) is not None:  # else there are fewer batches than pipelines
            made.append(start(chain([first], own), threads // count + (k < threads % count)))
    for turn in cycle(made):
        try:
            yield next(turn)
        except StopIteration:
            return


def _inputs(feed: BatchInputs, kinds: list[Any], dimensions: list[int]) -> list[Any]:
    """The graph's inputs: bytes, with partners those of view 2, then each of the parameters' arrays."""
    encoded = 1 + feed.paired
    inputs: list[Any] = fn.external_source(
        source=iter(feed), num_outputs=encoded + len(kinds), batch=True, no_copy=True,
        dtype=[types.UINT8] * encoded + kinds, ndim=[1] * encoded + dimensions,
    )  # fmt: skip
    return inputs


# Of feed.resize_inputs: margin, shape with it, where the image lies in it, factors of rows and of columns.
RESIZE_KINDS, RESIZE_DIMENSIONS = [types.INT32] * 2 + [types.FLOAT] * 4, [1, 1, 1, 1, 3, 3]
# Of feed.view_inputs: start, extent, those above, flip, sigma, contrast.
VIEW_KINDS = [types.INT32] * 2 + RESIZE_KINDS + [types.INT32, types.FLOAT, types.FLOAT]
VIEW_DIMENSIONS = [1, 1, *RESIZE_DIMENSIONS, 0, 0, 0]
BOX_KINDS, BOX_DIMENSIONS = [types.INT32, types.INT32], [1, 1]


# In these two a sample's branch alone is run: where view 2 is of no partner, none is decoded.


@pipeline_def
def _stock_views(feed: BatchInputs, augmentation: Augmentation, half: bool) -> tuple[Any, Any]:
    if feed.paired:
        encoded, others, *drawn, paired = _inputs(feed, [*VIEW_KINDS * 2, types.BOOL], [*VIEW_DIMENSIONS * 2, 0])
        image = decode(encoded, feed.raw_size, on_gpu=on_gpu())
        if paired:  # noqa: SIM108 – a sample's, for DALI, which knows no other form
            other = decode(others, feed.raw_size, on_gpu=on_gpu())
        else:
            other = image
    else:
        encoded, *drawn = _inputs(feed, VIEW_KINDS * 2, VIEW_DIMENSIONS * 2)
        image = other = decode(encoded, feed.raw_size, on_gpu=on_gpu())
    first, second = drawn[: len(VIEW_KINDS)], drawn[len(VIEW_KINDS) :]
    return make_view(image, first, augmentation, half=half), make_view(other, second, augmentation, half=half)


@pipeline_def
def _fused_views(feed: BatchInputs, augmentation: Augmentation, half: bool, spaces: Workspaces) -> tuple[Any, Any]:
    if feed.paired:
        encoded, others, drawn, start, extent, its_start, its_extent, paired = _inputs(feed,
            [types.FLOAT64, *BOX_KINDS, *BOX_KINDS, types.BOOL], [2, *BOX_DIMENSIONS, *BOX_DIMENSIONS, 0])
        image = decode_box(encoded, start, extent, feed.raw_size)
        if paired:  # noqa: SIM108 – as above
            other = decode_box(others, its_start, its_extent, feed.raw_size)
        else:
            other = image
    else:
        encoded, drawn, start, extent = _inputs(feed, [types.FLOAT64, *BOX_KINDS], [2, *BOX_DIMENSIONS])
        image = other = decode_box(encoded, start, extent, feed.raw_size)
    same = [np.repeat(array[None], feed.batch_size, axis=0) for array in dali_constants(spaces, augmentation)]
    constants = fn.external_source(source=lambda: same, num_outputs=3, batch=True, no_copy=True)
    view1, view2 = fused_views(image, other, drawn, constants, half=half)
    return (view1.gpu(), view2.gpu()) if on_gpu() else (view1, view2)


@pipeline_def
def _whole_images(feed: BatchInputs, size: int, mean: float, std: float, interpolation: str) -> Any:
    encoded, *given = _inputs(feed, RESIZE_KINDS, RESIZE_DIMENSIONS)
    resized = resize(decode(encoded, feed.raw_size, on_gpu=on_gpu()), given, size, interpolation)
    if interpolation == "bicubic":  # overshoots at edges, as the 8-bit images that networks are trained on can't
        resized = math.clamp(resized, 0.0, 255.0)
    return normalise(resized, mean, std)


@pipeline_def
def _decoded(feed: BatchInputs) -> Any:
    (encoded,) = _inputs(feed, [], [])
    return decode(encoded, feed.raw_size, on_gpu=on_gpu())


def on_gpu() -> bool:
    """Whether the pipeline being defined is one for a GPU."""
    return Pipeline.current().device_id is not None


def decode(encoded: Any, raw_size: int | None, *, on_gpu: bool) -> Any:
    """Encoded bytes → image HWC uint8 with one channel."""
    if raw_size:
        image = fn.reshape(encoded, shape=[raw_size, raw_size, 1], layout="HWC")
        return image.gpu() if on_gpu else image
    return fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.GRAY,
                             adjust_orientation=False)  # fmt: skip


def decode_box(encoded: Any, start: Any, extent: Any, raw_size: int | None) -> Any:
    """Encoded bytes → the part of an image that begins at `start` and is `extent` large, on the CPU."""
    if raw_size:
        return fn.slice(decode(encoded, raw_size, on_gpu=False), start=start, shape=extent, axes=[0, 1])
    # libjpeg-turbo passes over what lies left, right and below.
    return fn.decoders.image_slice(encoded, device="cpu", start=start, shape=extent, axes=[0, 1],
                                   output_type=types.GRAY, adjust_orientation=False)  # fmt: skip


class FusedViews(NumbaFunction):  # type: ignore[misc]  # DALI leaves it untyped
    """numba_function, for functions that are compiled already."""

    def _get_run_fn_cpu(self, run_fn: Any, *_: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


def fused_views(image: Any, other: Any, parameters: Any, constants: Any, *, half: bool) -> tuple[Any, Any]:
    """Both views by pipeline.fused inside the graph: images HWC uint8, one a view → two CHW, float32 or float16.

    parameters: [2, 8], each within its image. constants: fused.dali_constants.
    """
    kind = types.UINT16 if half else types.FLOAT  # the operator refuses FLOAT16
    run, shapes = dali_functions(half=half)
    operator = FusedViews(
        run_fn=run, setup_fn=shapes, out_types=[kind, kind], outs_ndim=[3, 3],
        in_types=[types.UINT8, types.UINT8, types.FLOAT64, types.UINT8, types.FLOAT64, types.INT64],
        ins_ndim=[3, 3, 2, 1, 1, 1],
    )  # fmt: skip
    view1, view2 = operator(image, other, parameters, *constants)
    return (fn.reinterpret(view1, dtype=types.FLOAT16), fn.reinterpret(view2, dtype=types.FLOAT16)) if half else (
        view1, view2)  # fmt: skip


def make_view(image: Any, parameters: list[Any], augmentation: Augmentation, *, half: bool = False) -> Any:
    """One view by stock operators: image HWC uint8 → CHW [1, size, size], normalised.

    parameters: the arrays of feed.view_inputs. 13 operators on pixels.
    """
    start, extent, *given, flip, sigma, contrast = parameters
    x = resize(fn.slice(image, start=start, shape=extent, axes=[0, 1]), given, augmentation.size)  # and brightness
    x = math.clamp(fn.gaussian_blur(x, sigma=sigma), 0.0, 255.0)
    # DALI's own contrast pivots on mid-grey; the augmentation's, as torchvision's, on the mean of the view.
    mean = fn.reductions.mean(x)
    x = math.clamp((x - mean) * contrast + mean, 0.0, 255.0)
    return normalise(x, augmentation.mean, augmentation.std, mirror=flip, half=half)


def resize(image: Any, parameters: list[Any], size: int, interpolation: str = "bilinear") -> Any:
    """HWC uint8 → [size, size, 1] float32 in 0…255, as torchvision's antialiased bilinear or bicubic.

    parameters: the arrays of feed.resize_inputs, which says how the border is treated.
    """
    margin, around, roi_start, roi_end, rows, columns = parameters
    kind = types.INTERP_CUBIC if interpolation == "bicubic" else types.INTERP_TRIANGULAR
    x = fn.slice(image, start=margin, shape=around, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0.0)
    x = fn.resize(x, size=[size, size], roi_start=roi_start, roi_end=roi_end, antialias=True, dtype=types.FLOAT,
                  interp_type=kind)  # fmt: skip
    if x.device == "gpu":
        rows, columns = rows.gpu(), columns.gpu()
    return x * rows * columns


def normalise(image: Any, mean: float, std: float, mirror: Any = 0, half: bool = False) -> Any:
    """HWC float32 in 0…255 → CHW with the given statistics taken out, mirrored where asked."""
    return fn.crop_mirror_normalize(image, mean=[mean * 255], std=[std * 255], mirror=mirror, output_layout="CHW",
                                    dtype=types.FLOAT16 if half else types.FLOAT)  # fmt: skip


def _arguments(feed: BatchInputs, device: torch.device, threads: int) -> dict[str, Any]:
    device_id = (device.index or 0) if device.type == "cuda" else None
    # Only partners want conditionals; to read a graph's code for them costs a start most of a second.
    return {"batch_size": feed.batch_size, "num_threads": threads, "device_id": device_id,
            "prefetch_queue_depth": BATCHES_QUEUED, "enable_conditionals": feed.paired}  # fmt: skip


def _iterate(pipeline: Any, names: list[str]) -> Iterator[Any]:
    yield from DALIGenericIterator([pipeline], names)  # which runs the first batch as soon as it is made


def _counted(pipeline: Any) -> Iterator[int]:
    """How many images each batch has, until there is no other."""
    pipeline.build()
    while True:
        try:
            (images,) = pipeline.run()
        except StopIteration:
            return
        yield len(images)
