"""The torchvision backend against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.augmentation import Augmentation, View
from pipeline.torchvision_views import decode, make_view
from shard.fetch import Fetcher
from tests.conftest import Shards

UNSCALED = Augmentation(size=8, mean=0.0, std=1.0)


def identity(**changes: object) -> View:
    return View(**{"top": 0, "left": 0, "height": 8, "width": 8, "flip": False, "sigma": 0.0, "brightness": 1.0,
                   "contrast": 1.0, **changes})  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_identity_parameters_return_the_image(image: torch.Tensor) -> None:
    assert torch.allclose(make_view(image, identity(), UNSCALED), image, atol=1e-6)


def test_each_parameter_has_its_documented_effect(image: torch.Tensor) -> None:
    assert torch.allclose(make_view(image, identity(flip=True), UNSCALED), image.flip(-1), atol=1e-6)
    assert torch.allclose(make_view(image, identity(brightness=1.3), UNSCALED), (image * 1.3).clamp(0, 1), atol=1e-6)
    mean = image.mean()
    expected = ((image - mean) * 0.7 + mean).clamp(0, 1)
    assert torch.allclose(make_view(image, identity(contrast=0.7), UNSCALED), expected, atol=1e-6)
    cropped = make_view(image, identity(top=2, left=4, height=2, width=4), Augmentation(size=2, mean=0.0, std=1.0))
    assert cropped.shape == (1, 2, 2) and cropped.min() >= image[0, 2:4, 4:].min()
    normalised = make_view(image, identity(), Augmentation(size=8, mean=0.5, std=0.25))
    assert torch.allclose(normalised, (image - 0.5) / 0.25, atol=1e-5)


def test_blur_is_a_gaussian_cut_at_three_sigma() -> None:
    augmentation, sigma = Augmentation(size=21, mean=0.0, std=1.0), 1.5
    impulse = torch.zeros(1, 21, 21)
    impulse[0, 10, 10] = 1
    weights = np.exp(-0.5 * (np.arange(-10, 11) / sigma) ** 2) * (np.abs(np.arange(-10, 11)) <= 5)
    expected = np.outer(weights, weights) / weights.sum() ** 2
    blurred = make_view(impulse, identity(height=21, width=21, sigma=sigma), augmentation)
    assert np.abs(blurred[0].numpy() - expected).max() < 1e-6


def test_raw_and_jpeg_shards_contain_the_same_images(shards: Shards, raw_shards: Shards) -> None:
    jpeg, raw = (Fetcher(encoded.folder, encoded.manifest, "valid") for encoded in (shards, raw_shards))
    assert len(jpeg) == len(raw) == shards.manifest.images("valid")
    for index in range(len(raw)):
        assert jpeg.key(index) == raw.key(index)
        image, square = decode(jpeg, index), decode(raw, index)
        height, width = image.shape[1:]
        top, left = (height - 96) // 2, (width - 96) // 2
        assert (image[:, top : top + 96, left : left + 96] - square).abs().mean() < 0.01
