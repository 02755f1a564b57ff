"""Augmentation: every augmentation number, once, for all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

ViewDevice = Literal["auto", "cpu", "gpu"]  # views are made


@dataclass(frozen=True)
class Augmentation:
    """How an image becomes a view, in this order: crop, resize, blur, brightness, contrast, flip, normalise.

    size: pixels a side of a view. crop_area, crop_ratio: share of the image's area, width/height of the crop.
    blur_sigma: in pixels of the view; the Gaussian is cut at 3 sigma. brightness, contrast: factors are drawn
    from 1 ± this; contrast pivots on the view's mean. mean, std: of the training pixels, as shares of full scale.
    patient_positive: the probability that view 2 is of another image of the patient (Azizi et al., 2021, "Big
    self-supervised models advance medical image classification"), where it has a partner in its shard.
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
    patient_positive: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError where no view can be made so: an augmentation may be read from a file."""
        shares = (self.flip_probability, self.blur_probability, self.patient_positive, self.brightness, self.contrast)
        ranges = (self.crop_area, self.crop_ratio, self.blur_sigma)
        if not (
            type(self.size) is int and 1 <= self.size <= 4096
            and _are_numbers(self.mean, self.std) and self.std > 0
            and _are_numbers(*shares) and all(0 <= share <= 1 for share in shares)
            and all(type(pair) in (tuple, list) and len(pair) == 2 and _are_numbers(*pair) and 0 < pair[0] <= pair[1]
                    for pair in ranges)
            and self.crop_area[1] <= 1
        ):  # fmt: skip
            raise ValueError(f"no views can be made by {self}")


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
               for value in values)  # fmt: skip


@dataclass(frozen=True)
class View:
    """The parameters of one view, in the order of sample_view_parameters; sigma 0 means no blur."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    sigma: float
    brightness: float
    contrast: float


def smallest_view_size(augmentation: Augmentation) -> int:
    """The smallest views the loaders make: the fused operator works by 16 pixels, and a blur mirrors the border."""
    return max(16, blur_radius(augmentation.blur_sigma[1]) + 1)


def blur_radius(sigma: float) -> int:
    """Pixels on each side that a Gaussian cut at 3 sigma reaches; DALI's own rule, shared by all backends."""
    return math.ceil(3 * sigma)
