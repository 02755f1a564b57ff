"""The augmentation hyperparameters, defined once for all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

ViewDevice = Literal["cpu", "gpu"]  # where views are computed


@dataclass(frozen=True)
class Augmentation:
    """Hyperparameters of a view: crop, resize, blur, brightness, contrast, flip, normalise, in this order.

    size: height and width of a view in pixels. crop_area: range of the crop's area, relative to the image's.
    crop_ratio: range of the crop's width / height. blur_sigma: range in pixels of the view; the kernel is cut at
    3 sigma. brightness, contrast: factors are sampled from 1 ± this value; contrast pivots on the view's mean.
    mean, std: of the training pixels, scaled to 0…1. patient_positive: probability that view 2 shows another image
    of the same patient, if its shard contains one (Azizi et al., 2021, "Big self-supervised models advance medical
    image classification"). Source: SimCLR (Chen et al., 2020, appendix A) without color, since radiographs are grey.
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
    patient_positive: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError if a hyperparameter is out of range: an augmentation may be read from a file."""
        fractions = (self.flip_probability, self.blur_probability, self.patient_positive, self.brightness,
                     self.contrast)  # fmt: skip
        ranges = (self.crop_area, self.crop_ratio, self.blur_sigma)
        if not (
            type(self.size) is int and 1 <= self.size <= 4096
            and _are_numbers(self.mean, self.std) and self.std > 0
            and _are_numbers(*fractions) and all(0 <= fraction <= 1 for fraction in fractions)
            and all(type(pair) in (tuple, list) and len(pair) == 2 and _are_numbers(*pair) and 0 < pair[0] <= pair[1]
                    for pair in ranges)
            and self.crop_area[1] <= 1
        ):  # fmt: skip
            raise ValueError(f"invalid augmentation: {self}")


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
               for value in values)  # fmt: skip


@dataclass(frozen=True)
class View:
    """The sampled parameters of one view: the crop in pixels of the image, sigma in pixels of the view (0: no blur)."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    sigma: float
    brightness: float
    contrast: float


def smallest_view_size(augmentation: Augmentation) -> int:
    """Return the smallest supported view size: the fused kernel needs 16 pixels, reflection padding radius + 1."""
    return max(16, blur_radius(augmentation.blur_sigma[1]) + 1)


def blur_radius(sigma: float) -> int:
    """Return the radius in pixels of a Gaussian kernel cut at 3 sigma, as DALI computes it."""
    return math.ceil(3 * sigma)
