"""A PNG of view pairs: what the network sees of a radiograph."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from pipeline.recipe import Recipe, View, draw_view
from pipeline.reference import ShardImages, make_view
from shard.errors import InputError
from shard.files import replacing
from shard.manifest import read_manifest


def preview(shards: Path, *, out: Path = Path("views.png"), images: int = 6, size: int = 224, seed: int = 0) -> None:
    """Draw rows of image, view 1, view 2 from the training split of SHARDS, the views' parameters above them."""
    for name, value, low, high in (("images", images, 1, 64), ("size", size, 8, 2048), ("seed", seed, 0, 2**63)):
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: wants a number from {low} to {high}")
    manifest = read_manifest(shards)
    recipe = Recipe(size=size, mean=0.0, std=1.0)  # shown as grey levels, so nothing is taken out
    source = ShardImages(shards, manifest, "train")
    count = min(images, len(source))
    rng = np.random.default_rng(seed)
    figure, axes = plt.subplots(count, 3, figsize=(7.2, 2.55 * count), squeeze=False, layout="constrained")
    for row, number in zip(axes, rng.permutation(len(source))[:count], strict=True):
        image = source[int(number)]
        views = [draw_view(recipe, image.shape[-2], image.shape[-1], rng) for _ in range(2)]
        pictures = [image, *(make_view(image, view, recipe) for view in views)]
        titles = [source.key(int(number)), *map(_describe, views)]
        for axis, picture, title in zip(row, pictures, titles, strict=True):
            axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=7)
            axis.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    print(f"{out}: {count} images with two views each")


def _describe(view: View) -> str:
    crop = f"{view.width}×{view.height} at {view.left},{view.top}"
    flip = ", flipped" if view.flip else ""
    return f"{crop}{flip}\nblur {view.sigma:.1f}, brightness {view.brightness:.2f}, contrast {view.contrast:.2f}"
