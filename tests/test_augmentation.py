"""The augmentation's hyperparameters: defaults and bounds."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.augmentation import Augmentation, blur_radius, smallest_view_size


def test_defaults_are_the_published_hyperparameters() -> None:
    augmentation = Augmentation()
    assert (augmentation.size, augmentation.crop_area, augmentation.crop_ratio) == (224, (0.2, 1.0), (3 / 4, 4 / 3))
    assert (augmentation.flip_probability, augmentation.blur_probability) == (0.5, 0.5)
    assert augmentation.blur_sigma == (0.1, 2.0)
    assert (augmentation.brightness, augmentation.contrast) == (0.4, 0.4)


def test_blur_radius_is_three_sigma() -> None:
    assert [blur_radius(sigma) for sigma in (0.1, 1.0, 1.01, 2.0)] == [1, 3, 4, 6]
    assert smallest_view_size(Augmentation()) == 16 and smallest_view_size(Augmentation(blur_sigma=(0.1, 8.0))) == 25


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 0), ("size", 224.0), ("size", 2**40), ("size", True), ("mean", "0.5"), ("mean", float("nan")),
     ("std", 0.0), ("std", float("inf")), ("crop_area", (0.5, 1.5)), ("crop_area", (0.0, 1.0)), ("crop_area", 0.5),
     ("crop_ratio", (1.0,)), ("crop_ratio", (2.0, 1.0)), ("blur_sigma", (0.1, None)), ("flip_probability", -0.1),
     ("blur_probability", 2), ("brightness", 1.5), ("contrast", float("nan")), ("patient_positive", None)],
)  # fmt: skip
def test_augmentation_refuses_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="invalid augmentation: Augmentation"):
        Augmentation(**{name: value})
