"""NVIDIA DALI: the only file that imports it. One graph, built on the GPU where there is one, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from pipeline.recipe import Recipe
from shard.manifest import Manifest

# One buffer of a few shards mixes what the sharder shuffled once; the tars themselves change order every epoch.
SHUFFLE_BUFFER = 2048
NO_BLUR_SIGMA = 0.01  # a window of 3 whose outer taps are exp(-5000): the identity, and no branch in the graph


class DaliViews:
    """Two views of every training image, epoch after epoch; see loader.two_view_loader for the promise."""

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, recipe: Recipe, *, batch_size: int,
        device: torch.device, threads: int, seed: int, rank: int, world: int,
    ) -> None:  # fmt: skip
        self._steps = manifest.images(split) // world // batch_size
        self._arguments = _pipeline_arguments(batch_size, device, threads, seed + rank)
        self._source = _Source(folder, manifest, split, rank, world, seed)
        self._recipe = recipe
        self._checkpoint: bytes | None = None
        self._batches: Any = None

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._batches is None:
            self._batches = self._build()
        # The reader pads to equal batch counts over ranks; the padding, and what is short of a batch, is left out
        # on all ranks alike. Every batch is drawn all the same: the reader's epoch ends only then.
        for step, (batch,) in enumerate(self._batches):
            if step < self._steps:
                yield batch["view1"], batch["view2"]
        self._batches.reset()

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, between two epochs."""
        if self._batches is None:
            self._batches = self._build()
        return {"pipeline": self._batches.checkpoints()[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the batches that follow are the same bit for bit."""
        self._checkpoint = state["pipeline"]
        self._batches = None

    def _build(self) -> Any:
        pipeline = _views_pipeline(self._source, self._recipe, **self._arguments, checkpoint=self._checkpoint)
        return _iterate(pipeline, ["view1", "view2"])


class DaliImages:
    """Every image of some splits once, in the order of the shards; see loader.image_loader for the promise."""

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, size: int, mean: float, std: float, *,
        batch_size: int, device: torch.device, threads: int,
    ) -> None:  # fmt: skip
        self._source = _Source(folder, manifest, split, 0, 1, 0)
        self._size, self._mean, self._std = size, mean, std
        self._arguments = _pipeline_arguments(batch_size, device, threads, 0)
        self._batches_an_epoch = -(-manifest.images(split) // batch_size)

    def __len__(self) -> int:
        return self._batches_an_epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        pipeline = _images_pipeline(self._source, self._size, self._mean, self._std, **self._arguments)
        for (batch,) in _iterate(pipeline, ["image"]):
            yield batch["image"]


def decode_batches(
    folder: Path, manifest: Manifest, split: str, *, batch_size: int, device: torch.device, threads: int
) -> Iterator[int]:
    """Read and decode a split's images again and again and do nothing else: yields how many, a batch at a time."""
    arguments = _pipeline_arguments(batch_size, device, threads, 0)
    pipeline = _decode_pipeline(_Source(folder, manifest, split, 0, 1, 0), **arguments)
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield len(images)


class _Source:
    """Which tars a rank reads, and how."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, rank: int, world: int, seed: int) -> None:
        shards = manifest.of_split(split)
        raw = manifest.settings["encoding"] == "raw"
        self.raw_size = manifest.settings["size"] if raw else None
        self._reader = {
            "paths": [str(folder / shard.tar) for shard in shards],
            "index_paths": [str(folder / shard.index) for shard in shards],
            "ext": ["raw" if raw else "jpg"],
            "missing_component_behavior": "error",
            "shard_id": rank,
            "num_shards": world,
            "pad_last_batch": True,
            "name": "reader",
        }
        self._seed = seed
        self._samples = sum(shard.samples for shard in shards)

    def read(self, *, shuffle: bool) -> Any:
        """The encoded bytes of a batch, shuffled within a buffer and over tars or in order."""
        if not shuffle:
            return fn.readers.webdataset(**self._reader)
        return fn.readers.webdataset(
            **self._reader, random_shuffle=True, initial_fill=min(SHUFFLE_BUFFER, self._samples),
            shuffle_after_epoch=True, seed=self._seed, shuffle_after_epoch_seed=self._seed,
        )  # fmt: skip


@pipeline_def(enable_checkpointing=True)
def _views_pipeline(source: _Source, recipe: Recipe) -> tuple[Any, Any]:
    image, shape = decode(source.read(shuffle=True), source.raw_size, on_gpu=Pipeline.current().device_id is not None)
    return (
        make_view(image, draw_parameters(shape, recipe), recipe),
        make_view(image, draw_parameters(shape, recipe), recipe),
    )


@pipeline_def
def _images_pipeline(source: _Source, size: int, mean: float, std: float) -> Any:
    image, _ = decode(source.read(shuffle=False), source.raw_size, on_gpu=Pipeline.current().device_id is not None)
    return normalise(resize(image, size), mean, std)


@pipeline_def
def _decode_pipeline(source: _Source) -> Any:
    return decode(source.read(shuffle=True), source.raw_size, on_gpu=Pipeline.current().device_id is not None)[0]


def decode(encoded: Any, raw_size: int | None, *, on_gpu: bool) -> tuple[Any, Any]:
    """Encoded bytes → (image HWC uint8 with one channel, its shape as a CPU tensor)."""
    if raw_size is not None:
        image = fn.reshape(encoded, shape=[raw_size, raw_size, 1], layout="HWC")
        shape = image.shape()
        return (image.gpu() if on_gpu else image), shape
    image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
    return image, fn.peek_image_shape(encoded)


def draw_parameters(shape: Any, recipe: Recipe) -> dict[str, Any]:
    """The parameters of one view of each image of a batch, under the names of recipe.View."""
    start, extent = fn.random_crop_generator(
        shape, random_area=list(recipe.crop_area), random_aspect_ratio=list(recipe.crop_ratio)
    )
    blurred = fn.random.coin_flip(probability=recipe.blur_probability)
    sigma = _uniform(*recipe.blur_sigma)
    return {
        "start": start,
        "extent": extent,
        "flip": fn.random.coin_flip(probability=recipe.flip_probability),
        "sigma": blurred * sigma,
        "brightness": _uniform(1 - recipe.brightness, 1 + recipe.brightness),
        "contrast": _uniform(1 - recipe.contrast, 1 + recipe.contrast),
    }


def _uniform(low: float, high: float) -> Any:
    """A number in low…high for each sample; DALI's own refuses a range of one number."""
    return fn.random.uniform(range=[low, high]) if high > low else types.Constant(low)


def make_view(image: Any, parameters: dict[str, Any], recipe: Recipe) -> Any:
    """One view: image HWC uint8 → CHW float32 [1, size, size], normalised."""
    x = fn.slice(image, start=parameters["start"], shape=parameters["extent"], axes=[0, 1])
    x = resize(x, recipe.size)
    x = fn.gaussian_blur(x, sigma=math.max(parameters["sigma"], NO_BLUR_SIGMA))
    x = math.clamp(x * parameters["brightness"], 0.0, 255.0)
    # DALI's own contrast pivots on mid-grey; the recipe's, as torchvision's, on the mean of the view.
    mean = fn.reductions.mean(x)
    x = math.clamp((x - mean) * parameters["contrast"] + mean, 0.0, 255.0)
    return normalise(x, recipe.mean, recipe.std, mirror=parameters["flip"])


def resize(image: Any, size: int) -> Any:
    """HWC → [size, size, 1] float32 in 0…255, antialiased as torchvision's bilinear."""
    return fn.resize(image, size=[size, size], interp_type=types.INTERP_TRIANGULAR, antialias=True, dtype=types.FLOAT)


def normalise(image: Any, mean: float, std: float, mirror: Any = 0) -> Any:
    """HWC float32 in 0…255 → CHW float32 with the given statistics taken out, mirrored where asked."""
    return fn.crop_mirror_normalize(
        image, mean=[mean * 255], std=[std * 255], mirror=mirror, output_layout="CHW", dtype=types.FLOAT
    )


def _pipeline_arguments(batch_size: int, device: torch.device, threads: int, seed: int) -> dict[str, Any]:
    device_id = (device.index or 0) if device.type == "cuda" else None
    return {"batch_size": batch_size, "num_threads": threads, "device_id": device_id, "seed": seed}


def _iterate(pipeline: Pipeline, names: list[str]) -> Any:
    # PARTIAL with pad_last_batch shows every sample once an epoch on all ranks; the other policies drift.
    return DALIGenericIterator([pipeline], names, reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL)
