"""The fused kernel against torchvision: borders, sizes, precision, shared workspaces and numba's cache."""

from __future__ import annotations

import os
import shutil
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
from pipeline.fused.kernel import make_views
from pipeline.fused.workspaces import Workspaces
from pipeline.torchvision_views import as_view, make_view
from pipeline.view_parameters import sample_view_parameters
from tests.conftest import REAL, ROOT


def fused(
    image: Any, parameters: Any, augmentation: Augmentation, *, half: bool = False,
    workspaces: Workspaces | None = None,
) -> Any:  # fmt: skip
    """Both views of an image [H, W] uint8, [2, 1, S, S]; NaN where the kernel wrote nothing."""
    views = np.full((2, 1, augmentation.size, augmentation.size), np.nan, np.float16 if half else np.float32)
    out = views.view(np.uint16) if half else views
    workspaces = workspaces or Workspaces(1, augmentation, *image.shape)
    make_views(out[0], out[1], image[..., None], image[..., None], np.asarray(parameters, float), augmentation.mean,
               augmentation.std, workspaces.scratch, workspaces.starts, workspaces.locks)  # fmt: skip
    return views


def reference(image: Any, parameters: Any, augmentation: Augmentation) -> Any:
    """The same by torchvision."""
    tensor = torch.from_numpy(image.astype(np.float32) / 255)[None]
    return torch.stack([make_view(tensor, as_view(list(row)), augmentation) for row in parameters]).numpy()


def largest_error(image: Any, parameters: Any, augmentation: Augmentation) -> float:
    """The largest difference between the two, in grey levels of 255."""
    difference = fused(image, parameters, augmentation) - reference(image, parameters, augmentation)
    return float(np.abs(difference).max()) * augmentation.std * 255


def test_views_equal_torchvisions_on_real_radiographs() -> None:
    """500 random sets of parameters, borders included."""
    folder = REAL / "cxr390"
    files = sorted(folder.glob("*.jpg"))[:125] if folder.is_dir() else []
    if not files:
        pytest.skip(f"needs real radiographs in {folder}")
    augmentation, largest = Augmentation(mean=0.5, std=0.25), 0.0
    for index, file in enumerate(files):
        image = simplejpeg.decode_jpeg(file.read_bytes(), colorspace="GRAY")[..., 0]
        for epoch in range(2):
            parameters = sample_view_parameters(augmentation, 0, epoch, [index], [image.shape])[0]
            largest = max(largest, largest_error(image, parameters, augmentation))
    print(f"{len(files) * 4} views differ by at most {largest:.4f} grey levels")
    assert largest < 0.05


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 31, 64, 100, 224])
@pytest.mark.parametrize(("height", "width"), [(40, 33), (97, 250), (320, 390), (1100, 300)])
def test_views_of_any_image_and_view_size_equal_torchvisions(height: int, width: int, size: int) -> None:
    """On noise, upsampled and downsampled, also for sizes that are no multiples of 16."""
    augmentation = Augmentation(size=size, mean=0.4, std=0.3)
    image = noise(height, width)
    for epoch in range(4):
        parameters = sample_view_parameters(augmentation, 1, epoch, [epoch], [image.shape])[0]
        assert largest_error(image, parameters, augmentation) < 0.05, parameters


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.4, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crops_at_corners_and_of_one_pixel_equal_torchvisions(sigma: float, flip: float) -> None:
    augmentation = Augmentation(size=48, blur_sigma=(0.1, 7.0))
    image = noise(64, 77)
    for top, left, height, width in ((0, 0, 30, 20), (34, 57, 30, 20), (0, 57, 64, 20), (63, 76, 1, 1), (5, 5, 2, 70)):
        parameters = [[top, left, height, width, flip, sigma, 1.4, 1.4], [0, 0, 64, 77, 0, sigma, 0.6, 0.6]]
        assert largest_error(image, parameters, augmentation) < 0.05, (top, left)


def test_pixels_outside_the_crop_do_not_affect_the_view() -> None:
    image = np.full((60, 70), 255, np.uint8)
    image[10:40, 20:50] = noise(30, 30) // 2
    parameters = [[10, 20, 30, 30, 0, 2.0, 1.0, 1.0], [10, 20, 30, 30, 1, 0.0, 1.0, 1.0]]
    at_origin = np.array(parameters)
    at_origin[:, :2] = 0
    augmentation = Augmentation(size=32)
    expected = fused(np.ascontiguousarray(image[10:40, 20:50]), at_origin, augmentation)
    assert np.abs(fused(image, parameters, augmentation) - expected).max() < 1e-5


def test_half_precision_views_are_rounded_single_precision_views() -> None:
    image = noise(320, 390)
    for size in (224, 37):
        augmentation = Augmentation(size=size)
        parameters = sample_view_parameters(augmentation, 0, 0, [5], [image.shape])[0]
        single, half = fused(image, parameters, augmentation), fused(image, parameters, augmentation, half=True)
        assert np.array_equal(single.astype(np.float16), half)


def test_too_few_and_too_small_workspaces_do_not_change_views() -> None:
    """Six threads share two workspaces, too small for some images. The kernel allocates memory in all other cases."""
    augmentation = Augmentation(size=64)
    workspaces = Workspaces(2, augmentation, 200, 200)
    images = [noise(height, 150 + height, seed) for seed, height in enumerate((100, 150, 700, 190, 900, 130) * 20)]
    parameters = [sample_view_parameters(augmentation, 0, 0, [index], [image.shape])[0]
                  for index, image in enumerate(images)]  # fmt: skip
    with ThreadPoolExecutor(6) as pool:
        views = pool.map(lambda *pair: fused(*pair, augmentation, workspaces=workspaces), images, parameters)
    for image, rows, pair in zip(images, parameters, views, strict=True):
        assert np.array_equal(pair, fused(image, rows, augmentation))
    assert not workspaces.locks.any()


@pytest.mark.parametrize(("height", "width", "size"), [(320, 390, 224), (1100, 300, 100), (40, 33, 31), (3, 900, 64)])
def test_kernel_writes_only_to_its_own_workspace(height: int, width: int, size: int) -> None:
    """The largest crop and the widest blur do not change the next workspace, which belongs to another thread."""
    augmentation, image = Augmentation(size=size), noise(height, width)
    workspaces = Workspaces(2, augmentation, height, width)
    own, other = np.split(workspaces.scratch, 2)
    other[:] = 7
    fused(image, [[0, 0, height, width, flip, 2.0, 1.4, 1.4] for flip in (0, 1)], augmentation, workspaces=workspaces)
    assert (other == 7).all() and own.any() and not workspaces.locks.any()


def run_python(code: str, root: Path, cache: Path) -> str:
    """Run code with the packages in `root` and numba's cache in `cache`; return its output."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.long
def test_second_process_loads_the_compiled_kernel_from_the_cache(tmp_path: Path) -> None:
    code = ("import numpy as np; from pipeline.augmentation import Augmentation\n"
            "from pipeline.fused.dali_operator import dali_functions\n"
            "from pipeline.fused.kernel import make_views; from pipeline.fused.workspaces import Workspaces\n"
            "w = Workspaces(1, Augmentation(size=32), 40, 40); v = np.zeros((2, 1, 32, 32), 'f4')\n"
            "i = np.zeros((40, 40, 1), 'u1'); p = np.array([[0, 0, 40, 40, 0, 1, 1, 1.0]] * 2)\n"
            "make_views(v[0], v[1], i, i, p, 0.5, 0.2, w.scratch, w.starts, w.locks)\n"
            "dali_functions(half=False)\n"
            "print(sum(make_views.stats.cache_hits.values()))")  # fmt: skip
    hits, files = [], []
    for _ in range(2):
        hits.append(run_python(code, ROOT, tmp_path))
        files.append(sorted(path.name for path in tmp_path.rglob("*.nb*")))
    assert hits == ["0", "1"] and files[0] == files[1] and files[0]


def test_change_in_any_source_file_of_the_kernel_invalidates_the_cache(tmp_path: Path) -> None:
    """numba itself checks only the file of the function that it loads."""
    for package in ("pipeline", "shard"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = ("import pipeline; from pipeline.fused.simd import round_up; round_up(3)\n"
            "print(pipeline.__path__[0], sum(round_up.stats.cache_hits.values()))")  # fmt: skip

    def hits() -> int:
        package, count = run_python(code, tmp_path, tmp_path / "cache").rsplit(" ", 1)
        assert package == str(tmp_path / "pipeline")
        return int(count)

    assert (hits(), hits()) == (0, 1)
    for changed in ("pipeline/fused/simd.py", "pipeline/augmentation.py", "shard/kernels/llvm.py"):
        with (tmp_path / changed).open("a") as file:
            file.write("CHANGED = True\n")
        assert hits() == 0
