"""The published recipe."""

from __future__ import annotations

from pipeline.recipe import Recipe, blur_radius, least_size


def test_the_defaults_are_the_published_recipe() -> None:
    recipe = Recipe()
    assert (recipe.size, recipe.crop_area, recipe.crop_ratio) == (224, (0.2, 1.0), (3 / 4, 4 / 3))
    assert (recipe.flip_probability, recipe.blur_probability, recipe.blur_sigma) == (0.5, 0.5, (0.1, 2.0))
    assert (recipe.brightness, recipe.contrast) == (0.4, 0.4)


def test_the_blur_reaches_three_sigma() -> None:
    assert [blur_radius(sigma) for sigma in (0.1, 1.0, 1.01, 2.0)] == [1, 3, 4, 6]
    assert least_size(Recipe()) == 16 and least_size(Recipe(blur_sigma=(0.1, 8.0))) == 25
