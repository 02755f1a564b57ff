"""The NVIDIA DALI backend, and the only module that imports DALI.

DALI reads, decodes and, on a GPU, computes the views with its own operators. On a CPU one fused operator computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, islice, tee
from typing import Any, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from nvidia.dali.backend import ReleaseUnusedMemory
from nvidia.dali.plugin.numba import NumbaFunction
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import (
    IMAGES_NEED_LESS,
    PREFETCH_QUEUE_DEPTH,
    BatchInputs,
    fused_parameters,
    resize_inputs,
    stock_parameters,
)
from pipeline.fused.dali_operator import dali_constants, dali_functions
from pipeline.fused.workspaces import Workspaces
from pipeline.sampler import Batch
from shard.fetch import Fetcher
from shard.machine import retain_freed_memory

# The hardware decoder of an A100, H100 or newer decodes all images. By default a third go to CUDA kernels, whose first
# stage runs on the CPU. On an H200 two threads decoded 33,000 images/s instead of 14,000 (docs/gpu.md), and the pixels
# of grey images equal libjpeg-turbo's. Padding 0: by default each thread reserves 16 MB on the GPU and 16 MB of pinned
# memory at the start; buffers of a megapixel are quickly allocated when needed.
GPU_DECODER = {"device": "mixed", "hw_decoder_load": 1.0, "device_memory_padding": 0, "host_memory_padding": 0}
CPU_PIPELINES = 4  # the maximum, since each keeps its own batches in memory
Output = TypeVar("Output")


def view_batches(
    fetcher: Fetcher, batches: Iterable[Batch], augmentation: Augmentation, *, seed: int, device: torch.device,
    fused: bool, threads: int, half: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Yield both views of each batch's images, [B, 1, S, S] on the device each.

    fused: compute them on the CPU by the fused operator, then copy them to the device; else by stock operators on the
    device.
    """

    def start(batches: Iterable[Batch], threads: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        inputs_of = fused_parameters if fused else stock_parameters
        inputs = BatchInputs(fetcher, batches, lambda batch, shapes: inputs_of(augmentation, seed, batch, shapes))
        if fused:
            side = 2 * max(inputs.first_image_shape)  # generous: most images of a dataset are about as large
            workspaces = Workspaces(threads, augmentation, side, side)
            graph = _fused_views(inputs, augmentation, half, workspaces, **_arguments(inputs, device, threads))
            graph.workspaces = workspaces  # its threads use this memory until the pipeline is destroyed
        else:
            graph = _stock_views(inputs, augmentation, half, **_arguments(inputs, device, threads))
        for (output,) in inputs.translate_errors(_iterate(graph, ["view1", "view2"])):
            yield output["view1"], output["view2"]

    if device.type == "cpu":
        retain_freed_memory()
    return _interleave(start, batches, threads, CPU_PIPELINES if fused else 1)


def image_batches(
    fetcher: Fetcher, batches: Iterable[Batch], size: int, mean: float, std: float, *, device: torch.device,
    workers: int, interpolation: str,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yield each batch's uncropped images, resized and normalised, [B, 1, S, S] float32 on the device."""

    def start(batches: Iterable[Batch], threads: int) -> Iterator[torch.Tensor]:
        inputs = BatchInputs(fetcher, batches, lambda batch, shapes: resize_inputs(shapes, size, interpolation))
        graph = _whole_images(inputs, size, mean, std, interpolation, **_arguments(inputs, device, threads))
        for (output,) in inputs.translate_errors(_iterate(graph, ["image"]), IMAGES_NEED_LESS):
            yield output["image"]

    return _interleave(start, batches, workers, _pipelines_on(device))


def decode_batches(
    fetcher: Fetcher, batches: Iterable[Batch], *, device: torch.device, threads: int
) -> Iterator[int]:
    """Read and decode each batch, discard the images and yield their number."""

    def start(batches: Iterable[Batch], threads: int) -> Iterator[int]:
        inputs = BatchInputs(fetcher, batches, lambda batch, shapes: ())
        yield from inputs.translate_errors(_batch_sizes(_decoded(inputs, **_arguments(inputs, device, threads))))

    if device.type == "cpu":
        retain_freed_memory()
    return _interleave(start, batches, threads, _pipelines_on(device))


def release_memory() -> None:
    """Free the memory that DALI keeps after its pipelines have been destroyed, on the GPU and pinned."""
    ReleaseUnusedMemory()


def _pipelines_on(device: torch.device) -> int:
    return 1 if device.type == "cuda" else CPU_PIPELINES


def _interleave(
    start: Callable[[Iterable[Batch], int], Iterator[Output]], batches: Iterable[Batch], threads: int, limit: int
) -> Iterator[Output]:
    """Distribute the batches round-robin over up to `limit` pipelines that share the threads; yield results in order.

    A pipeline waits for its slowest thread after each operator. Several pipelines fill these gaps.
    """
    count, pipelines = min(threads, limit), []
    for k, copy in enumerate(tee(batches, count)):
        own = islice(copy, k, None, count)
        if (first := next(own, None)) is not None:  # else there are fewer batches than pipelines
            pipelines.append(start(chain([first], own), threads // count + (k < threads % count)))
    for pipeline in cycle(pipelines):
        try:
            yield next(pipeline)
        except StopIteration:
            return


def external_inputs(inputs: BatchInputs, dtypes: list[Any], ndims: list[int]) -> list[Any]:
    """Define the graph's inputs: encoded images (with partners, also those of view 2), then the parameter arrays."""
    encoded = 1 + inputs.has_partners
    nodes: list[Any] = fn.external_source(
        source=iter(inputs), num_outputs=encoded + len(dtypes), batch=True, no_copy=True,
        dtype=[types.UINT8] * encoded + dtypes, ndim=[1] * encoded + ndims,
    )  # fmt: skip
    return nodes


# Types and dimensions per sample of the arrays of dali_inputs.resize_inputs and view_inputs, and of a box's start and
# shape.
RESIZE_DTYPES, RESIZE_NDIMS = [types.INT32] * 2 + [types.FLOAT] * 4, [1, 1, 1, 1, 3, 3]
VIEW_DTYPES = [types.INT32] * 2 + RESIZE_DTYPES + [types.INT32, types.FLOAT, types.FLOAT]
VIEW_NDIMS = [1, 1, *RESIZE_NDIMS, 0, 0, 0]
BOX_DTYPES, BOX_NDIMS = [types.INT32, types.INT32], [1, 1]


# DALI runs only the branch that a sample takes in `if has_partner`: it decodes a second image only if there is one.


@pipeline_def
def _stock_views(inputs: BatchInputs, augmentation: Augmentation, half: bool) -> tuple[Any, Any]:
    if inputs.has_partners:
        encoded, encoded2, *parameters, has_partner = external_inputs(
            inputs, [*VIEW_DTYPES * 2, types.BOOL], [*VIEW_NDIMS * 2, 0])  # fmt: skip
        image = decode(encoded, inputs.raw_size, on_gpu=on_gpu())
        if has_partner:  # noqa: SIM108 – DALI translates this statement, but not a conditional expression
            image2 = decode(encoded2, inputs.raw_size, on_gpu=on_gpu())
        else:
            image2 = image
    else:
        encoded, *parameters = external_inputs(inputs, VIEW_DTYPES * 2, VIEW_NDIMS * 2)
        image = image2 = decode(encoded, inputs.raw_size, on_gpu=on_gpu())
    first, second = parameters[: len(VIEW_DTYPES)], parameters[len(VIEW_DTYPES) :]
    return make_view(image, first, augmentation, half=half), make_view(image2, second, augmentation, half=half)


@pipeline_def
def _fused_views(
    inputs: BatchInputs, augmentation: Augmentation, half: bool, workspaces: Workspaces
) -> tuple[Any, Any]:  # fmt: skip
    if inputs.has_partners:
        encoded, encoded2, parameters, start, shape, start2, shape2, has_partner = external_inputs(
            inputs, [types.FLOAT64, *BOX_DTYPES, *BOX_DTYPES, types.BOOL], [2, *BOX_NDIMS, *BOX_NDIMS, 0])  # fmt: skip
        image = decode_box(encoded, start, shape, inputs.raw_size)
        if has_partner:  # noqa: SIM108 – as above
            image2 = decode_box(encoded2, start2, shape2, inputs.raw_size)
        else:
            image2 = image
    else:
        encoded, parameters, start, shape = external_inputs(inputs, [types.FLOAT64, *BOX_DTYPES], [2, *BOX_NDIMS])
        image = image2 = decode_box(encoded, start, shape, inputs.raw_size)
    repeated = [np.repeat(array[None], inputs.batch_size, axis=0) for array in dali_constants(workspaces, augmentation)]
    constants = fn.external_source(source=lambda: repeated, num_outputs=3, batch=True, no_copy=True)
    view1, view2 = fused_views(image, image2, parameters, constants, half=half)
    return (view1.gpu(), view2.gpu()) if on_gpu() else (view1, view2)


@pipeline_def
def _whole_images(inputs: BatchInputs, size: int, mean: float, std: float, interpolation: str) -> Any:
    encoded, *parameters = external_inputs(inputs, RESIZE_DTYPES, RESIZE_NDIMS)
    resized = resize(decode(encoded, inputs.raw_size, on_gpu=on_gpu()), parameters, size, interpolation)
    if interpolation == "bicubic":  # overshoots at edges; 8-bit images, which networks are trained on, are clipped
        resized = math.clamp(resized, 0.0, 255.0)
    return normalise(resized, mean, std)


@pipeline_def
def _decoded(inputs: BatchInputs) -> Any:
    (encoded,) = external_inputs(inputs, [], [])
    return decode(encoded, inputs.raw_size, on_gpu=on_gpu())


def on_gpu() -> bool:
    """Whether the pipeline that is being defined runs on a GPU."""
    return Pipeline.current().device_id is not None


def decode(encoded: Any, raw_size: int | None, *, on_gpu: bool) -> Any:
    """Decode JPEG or raw bytes into an image [H, W, 1] uint8."""
    if raw_size:
        image = fn.reshape(encoded, shape=[raw_size, raw_size, 1], layout="HWC")
        return image.gpu() if on_gpu else image
    return fn.decoders.image(encoded, output_type=types.GRAY, adjust_orientation=False,
                             **(GPU_DECODER if on_gpu else {"device": "cpu"}))  # fmt: skip


def decode_box(encoded: Any, start: Any, shape: Any, raw_size: int | None) -> Any:
    """Decode a box of an image on the CPU, [h, w, 1] uint8; start, shape: its (row, column) and (height, width)."""
    if raw_size:
        return fn.slice(decode(encoded, raw_size, on_gpu=False), start=start, shape=shape, axes=[0, 1])
    # libjpeg-turbo skips what lies left, right and below.
    return fn.decoders.image_slice(encoded, device="cpu", start=start, shape=shape, axes=[0, 1],
                                   output_type=types.GRAY, adjust_orientation=False)  # fmt: skip


class CompiledFunction(NumbaFunction):  # type: ignore[misc]  # DALI leaves it untyped
    """DALI's numba_function for functions that are already compiled."""

    def _get_run_fn_cpu(self, run_fn: Any, *_: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


def fused_views(image: Any, image2: Any, parameters: Any, constants: Any, *, half: bool) -> tuple[Any, Any]:
    """Compute both views by pipeline.fused in the graph, [1, size, size] float32 or float16 each.

    image, image2: of view 1 and view 2, [H, W, 1] uint8. parameters: [2, 8], crops relative to their images.
    constants: of dali_constants.
    """
    dtype = types.UINT16 if half else types.FLOAT  # numba_function rejects FLOAT16
    run, setup = dali_functions(half=half)
    operator = CompiledFunction(
        run_fn=run, setup_fn=setup, out_types=[dtype, dtype], outs_ndim=[3, 3],
        in_types=[types.UINT8, types.UINT8, types.FLOAT64, types.UINT8, types.FLOAT64, types.INT64],
        ins_ndim=[3, 3, 2, 1, 1, 1],
    )  # fmt: skip
    view1, view2 = operator(image, image2, parameters, *constants)
    if not half:
        return view1, view2
    return fn.reinterpret(view1, dtype=types.FLOAT16), fn.reinterpret(view2, dtype=types.FLOAT16)


def make_view(image: Any, parameters: list[Any], augmentation: Augmentation, *, half: bool = False) -> Any:
    """Compute one view by stock operators: image [H, W, 1] uint8 → [1, size, size], normalised.

    parameters: the arrays of dali_inputs.view_inputs.
    """
    start, shape, *resize_parameters, flip, sigma, contrast = parameters
    # The resize also applies the brightness.
    x = resize(fn.slice(image, start=start, shape=shape, axes=[0, 1]), resize_parameters, augmentation.size)
    x = math.clamp(fn.gaussian_blur(x, sigma=sigma), 0.0, 255.0)
    # fn.contrast pivots on mid-grey; torchvision pivots on the view's mean.
    mean = fn.reductions.mean(x)
    x = math.clamp((x - mean) * contrast + mean, 0.0, 255.0)
    return normalise(x, augmentation.mean, augmentation.std, mirror=flip, half=half)


def resize(image: Any, parameters: list[Any], size: int, interpolation: str = "bilinear") -> Any:
    """Resize with antialiasing as torchvision does: [H, W, 1] uint8 → [size, size, 1] float32 in 0…255.

    parameters: the arrays of dali_inputs.resize_inputs. interpolation: bilinear or bicubic.
    """
    pad_start, padded_shape, roi_start, roi_end, rows, columns = parameters
    interp_type = types.INTERP_CUBIC if interpolation == "bicubic" else types.INTERP_TRIANGULAR
    x = fn.slice(image, start=pad_start, shape=padded_shape, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0.0)
    x = fn.resize(x, size=[size, size], roi_start=roi_start, roi_end=roi_end, antialias=True, dtype=types.FLOAT,
                  interp_type=interp_type)  # fmt: skip
    if x.device == "gpu":
        rows, columns = rows.gpu(), columns.gpu()
    return x * rows * columns


def normalise(image: Any, mean: float, std: float, mirror: Any = 0, half: bool = False) -> Any:
    """Normalise and optionally flip: [H, W, 1] float32 in 0…255 → [1, H, W]; mean, std: of pixels in 0…1."""
    return fn.crop_mirror_normalize(image, mean=[mean * 255], std=[std * 255], mirror=mirror, output_layout="CHW",
                                    dtype=types.FLOAT16 if half else types.FLOAT)  # fmt: skip


def _arguments(inputs: BatchInputs, device: torch.device, threads: int) -> dict[str, Any]:
    device_id = (device.index or 0) if device.type == "cuda" else None
    # Only graphs with partners contain conditionals. Parsing a graph's code for them delays its start by most of a
    # second.
    return {"batch_size": inputs.batch_size, "num_threads": threads, "device_id": device_id,
            "prefetch_queue_depth": PREFETCH_QUEUE_DEPTH, "enable_conditionals": inputs.has_partners}  # fmt: skip


def _iterate(pipeline: Any, names: list[str]) -> Iterator[Any]:
    yield from DALIGenericIterator([pipeline], names)  # lazily: its constructor already runs the first batch


def _batch_sizes(pipeline: Any) -> Iterator[int]:
    """Run a pipeline with one output until its inputs end, and yield the batch sizes."""
    pipeline.build()
    while True:
        try:
            (images,) = pipeline.run()
        except StopIteration:
            return
        yield len(images)
