"""Recipe: every augmentation number, once, for all backends; and how one view's parameters are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recipe:
    """How an image becomes a view, in this order: crop, resize, blur, brightness, contrast, flip, normalise.

    size: pixels a side of a view. crop_area, crop_ratio: share of the image's area, width/height of the crop.
    blur_sigma: in pixels of the view; the Gaussian is cut at 3 sigma. brightness, contrast: factors are drawn
    from 1 ± this; contrast pivots on the view's mean. mean, std: of the training pixels, as shares of full scale.
    Source: SimCLR (Chen et al., 2020, appendix A) without colour, since radiographs are grey.
    """

    size: int = 224
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    brightness: float = 0.4
    contrast: float = 0.4
    mean: float = 0.5
    std: float = 0.25


@dataclass(frozen=True)
class View:
    """The parameters of one view; sigma 0 means no blur."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    sigma: float
    brightness: float
    contrast: float


def draw_view(recipe: Recipe, height: int, width: int, rng: np.random.Generator) -> View:
    """Draw the parameters of one view of an image of height × width pixels."""
    top, left, crop_height, crop_width = _draw_crop(recipe, height, width, rng)
    return View(
        top, left, crop_height, crop_width,
        flip=bool(rng.random() < recipe.flip_probability),
        sigma=float(rng.uniform(*recipe.blur_sigma)) if rng.random() < recipe.blur_probability else 0.0,
        brightness=float(rng.uniform(1 - recipe.brightness, 1 + recipe.brightness)),
        contrast=float(rng.uniform(1 - recipe.contrast, 1 + recipe.contrast)),
    )  # fmt: skip


def _draw_crop(recipe: Recipe, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries, then the largest central crop whose ratio is allowed."""
    low, high = recipe.crop_ratio
    for _ in range(10):
        area = height * width * rng.uniform(*recipe.crop_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = min(width, round(height * high))
    crop_height = min(height, round(width / low))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def blur_radius(sigma: float) -> int:
    """Pixels on each side that a Gaussian cut at 3 sigma reaches; DALI's own rule, shared by all backends."""
    return math.ceil(3 * sigma)
