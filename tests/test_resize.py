"""The sharder's resize equals Pillow's bicubic filter, and gives the same bytes on every processor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from shard.kernels.resize import resize
from shard.kernels.sums import sum_pixels
from tests.conftest import REAL, ROOT

Grey = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]


def noise(height: int, width: int) -> Grey:
    return np.random.default_rng(height * width).integers(0, 256, (height, width), dtype=np.uint8)


def resize_by_pillow(grey: Grey, width: int, height: int, box: Box) -> Grey:
    """Resize the rows, then the columns. Left to itself, Pillow resizes columns first where that is faster."""
    left, top, right, bottom = box
    wide = Image.fromarray(grey).resize((width, len(grey)), Image.Resampling.BICUBIC, (left, 0, right, len(grey)))
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC, (0, top, width, bottom)))


@pytest.mark.parametrize("shape", [(320, 390), (33, 131), (16, 16), (17, 300), (300, 17), (5, 9), (1, 1), (700, 40)])
def test_resize_equals_pillows_bit_for_bit(shape: tuple[int, int]) -> None:
    """Smaller, larger and elongated, with parts of pixels at the borders, and of the largest contrast."""
    height, width = shape
    for grey in (noise(height, width), noise(height, width) // 128 * 255):
        for target_width, target_height in ((width, height), (312, 256), (40, 31), (width + 1, 3), (1, 1), (16, 200)):
            for box in ((0, 0, width, height), (0, 0, width - 0.375, height - 0.9), (0.3, 0.25, width, height - 0.1)):
                expected = resize_by_pillow(grey, target_width, target_height, box)
                assert np.array_equal(resize(grey, target_width, target_height, box), expected), (target_width, box)


def test_any_memory_layout_is_resized_and_summed() -> None:
    grey = noise(90, 120)
    for view in (grey.T, grey[::-1, ::2], grey[3:70, 5:90]):
        assert np.array_equal(resize(view, 40, 30), resize(view.copy(), 40, 30))
        assert sum_pixels(view) == (int(view.sum()), int(np.square(view.astype(int)).sum()))
    assert sum_pixels(np.full((700, 300), 255, np.uint8)) == (255 * 210_000, 255**2 * 210_000)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: no such folder; the repository has no real radiographs")
def test_real_radiographs_are_within_45_db_of_pillow() -> None:
    for path in sorted((REAL / "cxr390").glob("*.jpg"))[::30]:
        image = Image.open(path).convert("L")
        for width, height in ((312, 256), (156, 128), (78, 64)):
            difference = resize(np.asarray(image), width, height) - np.asarray(
                image.resize((width, height), Image.Resampling.BICUBIC), float)  # fmt: skip
            assert 10 * np.log10(255**2 / max(1e-9, np.square(difference).mean())) > 45


RESULTS = """
import hashlib, numpy as np
from shard.jpeg.encoded import encode_and_check
from shard.kernels.resize import resize
from shard.kernels.sums import sum_pixels

grey = np.random.default_rng(0).integers(0, 256, (320, 390), dtype=np.uint8)
small = resize(grey[:97, :133], 61, 47, (0, 0.3, 132.7, 97))
jpeg = encode_and_check(resize(grey, 312, 256), 90)
print(hashlib.sha256(small.tobytes() + jpeg + str(sum_pixels(small)).encode()).hexdigest())
"""


@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_bytes_are_equal_without_and_with_vector_instructions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], processor: str
) -> None:
    """The baseline of the architecture, AVX2, and whatever this processor has, such as AVX-512."""
    if processor == "haswell" and platform.machine() != "x86_64":
        pytest.skip("AVX2 is an instruction set of x86-64")
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "",
                   "NUMBA_CACHE_DIR": str(tmp_path)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RESULTS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exec(RESULTS, {})
    assert done.stdout == capsys.readouterr().out
