"""The published recipe, and the distributions its parameters are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipeline.recipe import Recipe, blur_radius, draw_view


def test_the_defaults_are_the_published_recipe() -> None:
    recipe = Recipe()
    assert (recipe.size, recipe.crop_area, recipe.crop_ratio) == (224, (0.2, 1.0), (3 / 4, 4 / 3))
    assert (recipe.flip_probability, recipe.blur_probability, recipe.blur_sigma) == (0.5, 0.5, (0.1, 2.0))
    assert (recipe.brightness, recipe.contrast) == (0.4, 0.4)


@pytest.mark.parametrize(("height", "width"), [(320, 390), (100, 400)])  # the second often needs the fall-back
def test_crops_have_torchvisions_distribution(height: int, width: int) -> None:
    rng, recipe, count = np.random.default_rng(0), Recipe(), 8000
    views = [draw_view(recipe, height, width, rng) for _ in range(count)]
    ours = np.array([[view.top, view.left, view.height, view.width] for view in views], float)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], float)
    spread = theirs.std(axis=0)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * spread * math.sqrt(2 / count)).all()
    assert (np.abs(ours.std(axis=0) / spread - 1) < 0.06).all()
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    ratio = lambda boxes: np.quantile(np.log(boxes[:, 3] / boxes[:, 2]), quantiles)  # noqa: E731
    assert ratio(ours) == pytest.approx(ratio(theirs), abs=0.02)
    assert all(0 <= view.top <= height - view.height and 0 <= view.left <= width - view.width for view in views)


def test_the_other_parameters_have_the_recipes_moments() -> None:
    rng, count = np.random.default_rng(1), 20000
    views = [draw_view(Recipe(), 64, 64, rng) for _ in range(count)]
    close = 5 / math.sqrt(count)
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.5 * close)
    sigmas = np.array([view.sigma for view in views])
    assert (sigmas > 0).mean() == pytest.approx(0.5, abs=0.5 * close)
    blurred = sigmas[sigmas > 0]
    assert blurred.mean() == pytest.approx(1.05, abs=0.02) and blurred.min() >= 0.1 and blurred.max() <= 2.0
    for name in ("brightness", "contrast"):
        values = np.array([getattr(view, name) for view in views])
        assert values.mean() == pytest.approx(1.0, abs=0.24 * close)
        assert values.std() == pytest.approx(0.8 / math.sqrt(12), rel=0.03)
        assert values.min() >= 0.6 and values.max() <= 1.4


def test_probabilities_of_nought_and_one_are_kept() -> None:
    rng = np.random.default_rng(0)
    never = [draw_view(Recipe(flip_probability=0, blur_probability=0), 64, 64, rng) for _ in range(200)]
    always = [draw_view(Recipe(flip_probability=1, blur_probability=1), 64, 64, rng) for _ in range(200)]
    assert not any(view.flip or view.sigma for view in never)
    assert all(view.flip and view.sigma for view in always)


def test_the_blur_reaches_three_sigma() -> None:
    assert [blur_radius(sigma) for sigma in (0.1, 1.0, 1.01, 2.0)] == [1, 3, 4, 6]
