"""View parameters: uniforms equal to NumPy's Philox, torchvision's crops, and the augmentation's distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipeline.augmentation import Augmentation
from pipeline.view_parameters import UNIFORMS, fill_uniforms, sample_view_parameters, shuffle_keys

COLUMNS = ("top", "left", "height", "width", "flip", "sigma", "brightness", "contrast")


def numpy_uniforms(seed: int, epoch: int, index: int, view: int) -> Any:
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, index, view, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(UNIFORMS)


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (5, 7, 223_413, 1), (2**63 + 1, 99, 2**40 + 3, 1)])
def test_uniforms_equal_numpys_philox(key: tuple[int, int, int, int]) -> None:
    found = np.empty(UNIFORMS)
    fill_uniforms(found, *(np.uint64(word) for word in key))
    assert np.array_equal(found, numpy_uniforms(*key))


def reference_view(augmentation: Augmentation, height: int, width: int, u: Any) -> list[float]:
    """RandomResizedCrop's algorithm and the other parameters, written out; u: the uniform numbers of the view."""
    low, high = augmentation.crop_ratio
    for k in range(10):
        smallest, largest = augmentation.crop_area
        area = height * width * (smallest + u[8 + 2 * k] * (largest - smallest))
        ratio = math.exp(math.log(low) + u[9 + 2 * k] * (math.log(high) - math.log(low)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1))
            break
    else:
        if width / height < low:
            w, h = width, round(width / low)
        elif width / height > high:
            w, h = round(height * high), height
        else:
            w, h = width, height
        top, left = (height - h) // 2, (width - w) // 2
    sigma = augmentation.blur_sigma[0] + u[4] * (augmentation.blur_sigma[1] - augmentation.blur_sigma[0])
    return [top, left, h, w, float(u[2] < augmentation.flip_probability),
            sigma if u[3] < augmentation.blur_probability else 0.0,
            1 - augmentation.brightness + u[5] * 2 * augmentation.brightness,
            1 - augmentation.contrast + u[6] * 2 * augmentation.contrast]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(320, 390), (100, 400), (400, 100), (96, 96), (17, 31)])
def test_view_parameters_equal_a_reference_implementation(height: int, width: int) -> None:
    count, augmentation = 400, Augmentation()
    found = sample_view_parameters(augmentation, 3, 2, np.arange(count), np.tile([height, width], (count, 1)))
    expected = [[reference_view(augmentation, height, width, numpy_uniforms(3, 2, index, view)) for view in range(2)]
                for index in range(count)]  # fmt: skip
    assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize(("height", "width"), [(320, 390), (100, 400)])  # the second shape often needs the fallback
def test_crops_have_torchvisions_distribution(height: int, width: int) -> None:
    count = 20000
    shapes = np.tile([height, width], (count // 2, 1))
    ours = sample_view_parameters(Augmentation(), 0, 0, np.arange(count // 2), shapes).reshape(count, 8)[:, :4]
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], float)
    spread = theirs.std(axis=0)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * spread * math.sqrt(2 / count)).all()
    assert (np.abs(ours.std(axis=0) / spread - 1) < 0.03).all()
    for measure in (lambda boxes: np.log(boxes[:, 3] / boxes[:, 2]), lambda boxes: boxes[:, 2] * boxes[:, 3]):
        both = [np.quantile(measure(boxes), (0.05, 0.25, 0.5, 0.75, 0.95)) for boxes in (ours, theirs)]
        assert np.abs(both[0] - both[1]).max() < 0.02 * np.ptp(measure(theirs))
    top, left, h, w = ours.T
    assert (top >= 0).all() and (top <= height - h).all() and (left >= 0).all() and (left <= width - w).all()


def test_other_parameters_have_the_augmentations_moments() -> None:
    count = 20000
    shapes = np.full((count // 2, 2), 64)
    parameters = sample_view_parameters(Augmentation(), 1, 0, np.arange(count // 2), shapes).reshape(count, 8)
    column = dict(zip(COLUMNS, parameters.T, strict=True))
    tolerance = 5 / math.sqrt(count)
    assert column["flip"].mean() == pytest.approx(0.5, abs=0.5 * tolerance)
    sigmas = column["sigma"]
    assert (sigmas > 0).mean() == pytest.approx(0.5, abs=0.5 * tolerance)
    blurred = sigmas[sigmas > 0]
    assert blurred.mean() == pytest.approx(1.05, abs=0.02) and blurred.min() >= 0.1 and blurred.max() <= 2.0
    for name in ("brightness", "contrast"):
        assert column[name].mean() == pytest.approx(1.0, abs=0.24 * tolerance)
        assert column[name].std() == pytest.approx(0.8 / math.sqrt(12), rel=0.03)
        assert column[name].min() >= 0.6 and column[name].max() <= 1.4
    with np.errstate(invalid="ignore"):  # only height and width are correlated
        correlation = np.abs(np.corrcoef(parameters.T))[4:, 4:]
    assert correlation[~np.eye(4, dtype=bool)].max() < 0.04


def test_parameters_differ_by_view_index_epoch_and_seed_only() -> None:
    def sample(seed: int, epoch: int, indices: list[int]) -> Any:
        return sample_view_parameters(Augmentation(), seed, epoch, indices, np.tile([320, 390], (len(indices), 1)))

    first = sample(1, 2, [7, 8, 9])
    assert np.array_equal(first, sample(1, 2, [9, 8, 7])[::-1]) and np.array_equal(first[:1], sample(1, 2, [7]))
    rows = [*first.reshape(6, 8), *sample(1, 3, [7, 8, 9]).reshape(6, 8), *sample(2, 2, [7, 8, 9]).reshape(6, 8)]
    assert len({tuple(row[6:]) for row in rows}) == len(rows)


def test_probabilities_zero_and_one_are_exact() -> None:
    shapes = np.full((200, 2), 64)
    never = sample_view_parameters(Augmentation(flip_probability=0, blur_probability=0), 0, 0, np.arange(200), shapes)
    always = sample_view_parameters(Augmentation(flip_probability=1, blur_probability=1), 0, 0, np.arange(200), shapes)
    assert not never[..., 4:6].any() and always[..., 4:6].all()


def test_shuffle_keys_are_uniform_and_differ_by_stream() -> None:
    keys = shuffle_keys(0, 0, 20000, 2)
    assert keys.mean() == pytest.approx(0.5, abs=0.01) and keys.std() == pytest.approx(12**-0.5, rel=0.02)
    assert len(set(keys)) == len(keys) and not set(keys) & set(shuffle_keys(0, 0, 20000, 3))
    assert abs(np.corrcoef(keys[:-1], keys[1:])[0, 1]) < 0.03
