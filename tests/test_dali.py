"""The DALI graph: equal to the torchvision twin, buildable for a GPU, exact over epochs and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: it is to be had for Linux alone")

from nvidia.dali import Pipeline, fn, ops, pipeline_def, types

from pipeline import dali, reference
from pipeline.loader import image_loader, two_view_loader
from pipeline.recipe import Recipe, draw_view
from tests.conftest import Shards

CPU = torch.device("cpu")


def test_a_view_equals_torchvisions_for_the_same_parameters(raw_shards: Shards) -> None:
    """Within 2/255 away from the border, where the two resample and blur by other conventions."""
    recipe = Recipe(size=64, mean=0.0, std=1.0)
    images = reference.ShardImages(raw_shards.folder, raw_shards.manifest, "train")
    rng = np.random.default_rng(0)
    for number in range(60):
        image = images[number]
        view = draw_view(recipe, 96, 96, rng)
        wanted = reference.make_view(image, view, recipe)
        found = dali_view((image[0, ..., None] * 255).round().numpy().astype(np.uint8), view, recipe)
        # A resampling tap reaches (source / target) pixels of the source, a blur 3 sigma, into the view.
        border = 2 + int(np.ceil(3 * view.sigma))
        inner = (slice(None), slice(border, -border), slice(border, -border))
        assert np.abs(found[inner] - wanted.numpy()[inner]).max() <= 2 / 255, view


def constant(value: Any) -> Any:
    return lambda: [np.asarray(value)]


def dali_view(image: np.ndarray, view: Any, recipe: Recipe, device_id: int | None = None) -> np.ndarray:
    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id)
    def one_view() -> Any:
        source = fn.external_source(source=constant(image), layout="HWC")
        source = source if device_id is None else source.gpu()
        values = {
            "start": np.array([view.top, view.left], np.int32),
            "extent": np.array([view.height, view.width], np.int32),
            "flip": np.int32(view.flip),
            "sigma": np.float32(view.sigma),
            "brightness": np.float32(view.brightness),
            "contrast": np.float32(view.contrast),
        }
        parameters = {name: fn.external_source(source=constant(value)) for name, value in values.items()}
        return dali.make_view(source, parameters, recipe)

    pipeline = one_view()
    pipeline.build()
    (found,) = pipeline.run()
    return np.array(found.as_cpu().at(0))


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_every_operator_of_the_gpu_graph_exists_for_the_gpu(shards: Shards, raw_shards: Shards, encoding: str) -> None:
    """A GPU pipeline can't be built here, so its operators are looked up in DALI's registries instead."""
    made = shards if encoding == "jpeg" else raw_shards
    source = dali._Source(made.folder, made.manifest, "train", 0, 1, 0)
    pipeline = Pipeline(batch_size=4, num_threads=1, device_id=0)
    with pipeline:
        image, shape = dali.decode(source.read(shuffle=True), source.raw_size, on_gpu=True)
        output = dali.make_view(image, dali.draw_parameters(shape, Recipe()), Recipe())
    registered = {"gpu": ops.gpu_ops(), "mixed": ops.mixed_ops(), "cpu": ops.cpu_ops()}
    assert output.device == "gpu"
    seen = operators_of(output)
    assert all(name in registered[device] for name, device in seen), seen
    pixels = {name for name, device in seen if device in ("gpu", "mixed")}
    expected = {"Slice", "Resize", "GaussianBlur", "_ArithmeticGenericOp", "CropMirrorNormalize"}
    assert {name.split("__")[-1] for name in pixels} >= expected, pixels


def operators_of(node: Any) -> set[tuple[str, str]]:
    """(operator, device) of everything an output is computed from."""
    seen: set[tuple[str, str]] = set()
    waiting, visited = [node], set()
    while waiting:
        source = waiting.pop().source
        if source is None or id(source) in visited:
            continue
        visited.add(id(source))
        seen.add((source._op.schema_name, source._op.device))
        waiting += list(source.inputs)
    return seen


def test_whole_images_equal_torchvisions_in_the_order_of_the_index(shards: Shards) -> None:
    def load(backend: Any) -> torch.Tensor:
        return torch.cat(list(image_loader(backend, shards.folder, shards.manifest, split="train", size=48, mean=0.4,
                                           std=0.2, batch_size=13, device=CPU, workers=1)))  # fmt: skip

    ours, twin = load("dali"), load("torchvision")
    assert ours.shape == twin.shape == (shards.manifest.images("train"), 1, 48, 48)
    assert (ours - twin)[..., 2:-2, 2:-2].abs().max() * 0.2 <= 2 / 255


def test_drawn_parameters_have_the_recipes_moments() -> None:
    recipe, count = Recipe(), 20000

    @pipeline_def(batch_size=count, num_threads=2, device_id=None, seed=1)
    def parameters() -> Any:
        drawn = dali.draw_parameters(types.Constant(np.array([320, 390, 1], np.int64)), recipe)
        return tuple(drawn[name] for name in ("start", "extent", "flip", "sigma", "brightness", "contrast"))

    pipeline = parameters()
    pipeline.build()
    start, extent, flip, sigma, brightness, contrast = (np.array(out.as_array(), float) for out in pipeline.run())
    rng = np.random.default_rng(0)
    views = [draw_view(recipe, 320, 390, rng) for _ in range(count)]
    for name, column in (("top", start[:, 0]), ("left", start[:, 1]), ("height", extent[:, 0]), ("width", extent[:, 1]),
                         ("flip", flip), ("sigma", sigma), ("brightness", brightness),
                         ("contrast", contrast)):  # fmt: skip
        twin = np.array([getattr(view, name) for view in views], float)
        assert column.mean() == pytest.approx(twin.mean(), abs=5 * twin.std() * np.sqrt(2 / count)), name
        assert column.std() == pytest.approx(twin.std(), rel=0.03), name
    assert abs(np.corrcoef(brightness.ravel(), contrast.ravel())[0, 1]) < 0.03


def epoch_of(loader: Any) -> torch.Tensor:
    return torch.cat([torch.stack(batch, 1) for batch in loader])


def loader_of(made: Shards, *, seed: int = 0, workers: int = 1, batch_size: int = 16, rank: int = 0, world: int = 1,
              recipe: Recipe | None = None) -> Any:  # fmt: skip
    return two_view_loader("dali", made.folder, made.manifest, recipe or Recipe(size=16), batch_size=batch_size,
                           device=CPU, workers=workers, seed=seed, rank=rank, world=world)  # fmt: skip


def test_same_seed_same_batches_whatever_the_threads_and_everything_else_differs(shards: Shards) -> None:
    loader, twin = loader_of(shards, workers=1), loader_of(shards, workers=2)
    first, second = epoch_of(loader), epoch_of(loader)
    assert torch.equal(epoch_of(twin), first) and torch.equal(epoch_of(twin), second)
    assert not torch.equal(first, second)
    assert not torch.equal(epoch_of(loader_of(shards, seed=1)), first)
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).all()
    assert len(first) == len(loader) * 16 == shards.manifest.images("train") // 16 * 16


@pytest.mark.parametrize(("world", "batch_size"), [(1, 16), (2, 7), (3, 16), (4, 5)])
def test_no_sample_is_seen_twice_an_epoch_over_ranks(raw_shards: Shards, world: int, batch_size: int) -> None:
    """With every augmentation off, a view is the image itself: its bytes say which sample it was."""
    off = Recipe(size=96, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_probability=0, blur_probability=0,
                 brightness=0, contrast=0, mean=0.0, std=1 / 255)  # fmt: skip
    images = raw_shards.manifest.images("train")
    known = {image.numpy().tobytes() for image in whole_images(raw_shards)}
    assert len(known) == images
    loaders = [loader_of(raw_shards, rank=rank, world=world, batch_size=batch_size, recipe=off)
               for rank in range(world)]  # fmt: skip
    left_out = []
    for _ in range(4):
        seen = [view.round().to(torch.uint8).numpy().tobytes() for loader in loaders for view in epoch_of(loader)[:, 0]]
        assert len(seen) == len(set(seen)) and set(seen) <= known
        assert images - len(seen) <= batch_size * world - 1 + (world - 1)
        left_out.append(frozenset(known - set(seen)))
    assert len({len(loader) for loader in loaders}) == 1
    assert not left_out[0] or len(set(left_out)) > 1


def whole_images(made: Shards) -> list[torch.Tensor]:
    images = reference.ShardImages(made.folder, made.manifest, "train")
    return [(images[number] * 255).round().to(torch.uint8) for number in range(len(images))]


def test_a_restored_loader_goes_on_bit_for_bit(shards: Shards) -> None:
    loader = loader_of(shards)
    epoch_of(loader)
    state = loader.state_dict()
    wanted = [epoch_of(loader), epoch_of(loader)]
    other = loader_of(shards)
    other.load_state_dict(state)
    assert torch.equal(epoch_of(other), wanted[0]) and torch.equal(epoch_of(other), wanted[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_gpu_makes_the_views_that_the_cpu_makes(raw_shards: Shards) -> None:
    recipe, rng = Recipe(size=64, mean=0.0, std=1.0), np.random.default_rng(0)
    images = reference.ShardImages(raw_shards.folder, raw_shards.manifest, "train")
    for number in range(30):
        image = (images[number][0, ..., None] * 255).round().numpy().astype(np.uint8)
        view = draw_view(recipe, 96, 96, rng)
        assert np.abs(dali_view(image, view, recipe) - dali_view(image, view, recipe, device_id=0)).max() <= 2 / 255
