"""Source files of many kinds → grey arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard.image import UnreadableImage, encode_jpeg, load_grey, to_square

RAMP = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (120, 1))  # [120, 200]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_every_eight_bit_mode_gives_the_same_greys(tmp_path: Path, mode: str) -> None:
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "image.png")
    grey = load_grey(tmp_path / "image.png", 500)
    assert grey.shape == (120, 200) and np.abs(grey.astype(int) - RAMP).max() <= 1


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 8 + 700).save(tmp_path / "image.png")
    assert np.abs(load_grey(tmp_path / "image.png", 500).astype(int) - RAMP).max() <= 2


@pytest.mark.parametrize(("size", "shape"), [(60, (60, 100)), (120, (120, 200)), (4096, (120, 200))])
def test_the_short_side_is_shrunk_and_never_enlarged(tmp_path: Path, size: int, shape: tuple[int, int]) -> None:
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    assert load_grey(tmp_path / "image.png", size).shape == shape


def test_shrinking_a_jpeg_while_decoding_stays_close_to_full_decoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8))
    smooth = coarse.resize((1000, 800), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "image.jpg", quality=95)
    full = np.asarray(Image.open(tmp_path / "image.jpg").resize((125, 100), Image.Resampling.BICUBIC)).astype(float)
    error = np.square(load_grey(tmp_path / "image.jpg", 100) - full).mean()
    assert 10 * np.log10(255**2 / error) > 40


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0truncated"])
def test_a_file_without_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage):
        load_grey(tmp_path / "image.jpg", 64)


def test_a_decompression_bomb_and_an_odd_colour_mode_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("LAB", (40, 40)).save(tmp_path / "lab.tif")
    with pytest.raises(UnreadableImage, match="LAB"):
        load_grey(tmp_path / "lab.tif", 64)
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RAMP.size - 1)
    with pytest.raises(UnreadableImage, match="Bomb"):
        load_grey(tmp_path / "image.png", 64)


def test_a_truncated_jpeg_and_a_folder_are_refused(tmp_path: Path) -> None:
    content = encode_jpeg(RAMP, 90)
    (tmp_path / "image.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "folder.jpg").mkdir()
    for name in ("image.jpg", "folder.jpg", "absent.jpg"):
        with pytest.raises(UnreadableImage):
            load_grey(tmp_path / name, 64)


def test_encoding_keeps_one_channel() -> None:
    decoded = Image.open(io.BytesIO(encode_jpeg(RAMP, 95)))
    assert decoded.mode == "L" and np.abs(np.asarray(decoded).astype(int) - RAMP).max() <= 4


def test_a_square_is_the_centre_and_black_where_the_image_ends() -> None:
    assert (to_square(RAMP, 100) == RAMP[10:110, 50:150]).all()
    padded = to_square(np.full((10, 30), 9, np.uint8), 20)
    assert padded.shape == (20, 20) and (padded[5:15] == 9).all() and padded.sum() == 9 * 200
