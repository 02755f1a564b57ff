"""The fused operator against torchvision, at its borders, at odd sizes, and with more threads than workspaces."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.augmentation import Augmentation
from pipeline.fused import Workspaces, make_views
from pipeline.torchvision_views import as_view, make_view
from pipeline.view_parameters import sample_view_parameters
from tests.conftest import REAL, ROOT

RECIPE = Augmentation(mean=0.5, std=0.25)


def fused(image: Any, parameters: Any, augmentation: Augmentation, *, half: bool = False, spaces: Any = None) -> Any:
    """Both views [2, 1, S, S] of an image [H, W] uint8; NaN where the operator wrote nothing."""
    views = np.full((2, 1, augmentation.size, augmentation.size), np.nan, np.float16 if half else np.float32)
    into = views.view(np.uint16) if half else views
    spaces = spaces or Workspaces(1, augmentation, *image.shape)
    make_views(into[0], into[1], image[..., None], image[..., None], np.asarray(parameters, float), augmentation.mean,
               augmentation.std, spaces.numbers, spaces.starts, spaces.taken)  # fmt: skip
    return views


def twin(image: Any, parameters: Any, augmentation: Augmentation) -> Any:
    whole = torch.from_numpy(image.astype(np.float32) / 255)[None]
    return torch.stack([make_view(whole, as_view(list(row)), augmentation) for row in parameters]).numpy()


def grey_levels_off(image: Any, parameters: Any, augmentation: Augmentation, **how: Any) -> float:
    off = np.abs(fused(image, parameters, augmentation, **how).astype(np.float32) - twin(image, parameters,
                                                                                         augmentation))
    return float(off.max()) * augmentation.std * 255


def test_views_equal_torchvisions_on_real_radiographs() -> None:
    """500 random sets of parameters, borders included: within 1/255, and in fact within a hundredth of that."""
    folder = REAL / "cxr390"
    files = sorted(folder.glob("*.jpg"))[:125] if folder.is_dir() else []
    if not files:
        pytest.skip(f"needs real radiographs in {folder}")
    worst = 0.0
    for number, file in enumerate(files):
        image = simplejpeg.decode_jpeg(file.read_bytes(), colorspace="GRAY")[..., 0]
        for epoch in range(2):
            parameters = sample_view_parameters(RECIPE, 0, epoch, [number], [image.shape])[0]
            worst = max(worst, grey_levels_off(image, parameters, RECIPE))
    print(f"{len(files) * 4} views, at most {worst:.4f} grey levels off")
    assert worst < 0.05


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 31, 64, 100, 224])
@pytest.mark.parametrize(("height", "width"), [(40, 33), (97, 250), (320, 390), (1100, 300)])
def test_any_size_of_image_and_view(height: int, width: int, size: int) -> None:
    """Noise is the hardest picture there is; few-fold enlarging, many-fold reducing, widths that 16 does not divide."""
    augmentation = Augmentation(size=size, mean=0.4, std=0.3)
    image = noise(height, width)
    for epoch in range(4):
        parameters = sample_view_parameters(augmentation, 1, epoch, [epoch], [image.shape])[0]
        assert grey_levels_off(image, parameters, augmentation) < 0.05, parameters


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.4, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crops_at_the_images_corners_and_of_one_pixel(sigma: float, flip: float) -> None:
    augmentation = Augmentation(size=48, blur_sigma=(0.1, 7.0))
    image = noise(64, 77)
    for top, left, height, width in ((0, 0, 30, 20), (34, 57, 30, 20), (0, 57, 64, 20), (63, 76, 1, 1), (5, 5, 2, 70)):
        parameters = [[top, left, height, width, flip, sigma, 1.4, 1.4], [0, 0, 64, 77, 0, sigma, 0.6, 0.6]]
        assert grey_levels_off(image, parameters, augmentation) < 0.05, (top, left)


def test_nothing_beyond_the_crop_shows() -> None:
    image = np.full((60, 70), 255, np.uint8)
    image[10:40, 20:50] = noise(30, 30) // 2
    parameters = [[10, 20, 30, 30, 0, 2.0, 1.0, 1.0], [10, 20, 30, 30, 1, 0.0, 1.0, 1.0]]
    alone = np.array(parameters)
    alone[:, :2] = 0
    augmentation = Augmentation(size=32)
    wanted = fused(np.ascontiguousarray(image[10:40, 20:50]), alone, augmentation)
    assert np.abs(fused(image, parameters, augmentation) - wanted).max() < 1e-5


def test_half_precision_rounds_and_does_nothing_else() -> None:
    image = noise(320, 390)
    for size in (224, 37):
        augmentation = Augmentation(size=size)
        parameters = sample_view_parameters(augmentation, 0, 0, [5], [image.shape])[0]
        single, half = fused(image, parameters, augmentation), fused(image, parameters, augmentation, half=True)
        assert np.array_equal(single.astype(np.float16), half)


def test_workspaces_too_few_or_too_small_change_nothing() -> None:
    """Six threads share two workspaces made for smaller images; whoever finds none fetches memory."""
    augmentation = Augmentation(size=64)
    spaces = Workspaces(2, augmentation, 200, 200)
    images = [noise(height, 150 + height, seed) for seed, height in enumerate((100, 150, 700, 190, 900, 130) * 20)]
    drawn = [sample_view_parameters(augmentation, 0, 0, [seed], [image.shape])[0] for seed, image in enumerate(images)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda pair: fused(*pair, augmentation, spaces=spaces), zip(images, drawn,
                                                                                             strict=True)))
    for image, parameters, views in zip(images, drawn, together, strict=True):
        assert np.array_equal(views, fused(image, parameters, augmentation))
    assert not spaces.taken.any()


@pytest.mark.parametrize(("height", "width", "size"), [(320, 390, 224), (1100, 300, 100), (40, 33, 31), (3, 900, 64)])
def test_a_view_stays_within_its_workspace(height: int, width: int, size: int) -> None:
    """What lies after it is another thread's: none of it may change, at the largest crop and the widest blur."""
    augmentation, image = Augmentation(size=size), noise(height, width)
    spaces = Workspaces(2, augmentation, height, width)
    half = spaces.numbers.size // 2
    spaces.numbers[half:] = 7
    fused(image, [[0, 0, height, width, flip, 2.0, 1.4, 1.4] for flip in (0, 1)], augmentation, spaces=spaces)
    assert (spaces.numbers[half:] == 7).all() and spaces.numbers[:half].any() and not spaces.taken.any()


def test_compiled_once_and_kept(tmp_path: Path) -> None:
    """A second process finds what the first compiled: numba's cache counts a hit, and nothing new is written."""
    code = ("import numpy as np; from pipeline import fused; from pipeline.augmentation import Augmentation\n"
            "r = Augmentation(size=32); s = fused.Workspaces(1, r, 40, 40); v = np.zeros((2, 1, 32, 32), 'f4')\n"
            "i = np.zeros((40, 40, 1), 'u1'); p = np.array([[0, 0, 40, 40, 0, 1, 1, 1.0]] * 2)\n"
            "fused.make_views(v[0], v[1], i, i, p, 0.5, 0.2, s.numbers, s.starts, s.taken)\n"
            "fused.dali_functions(half=False)\n"
            "print(sum(fused.make_views.stats.cache_hits.values()))")  # fmt: skip
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hits.append((int(done.stdout), sorted(path.name for path in tmp_path.rglob("*.nb*"))))
    assert hits[0][0] == 0 and hits[1][0] == 1 and hits[0][1] == hits[1][1] and hits[0][1]
