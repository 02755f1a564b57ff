"""Source images of many kinds are loaded as grey arrays, or refused with the reason."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, features

from shard.errors import UnreadableImage
from shard.grey import Grey
from shard.image import center_crop, encode_jpeg, load_grey
from shard.record import UNFINISHED
from tests.conftest import REAL, ROOT
from tests.odd_files import write_png, write_tiff

RAMP = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (120, 1))  # [120, 200]
RAMP[:30, :50] = 90  # a distinct corner, which shows the orientation
DEEP = RAMP.astype(np.uint16) * 8 + 700
COLOUR = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=-1)
LUMA = (COLOUR.astype(float) @ (0.299, 0.587, 0.114)).round().astype(int)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_every_8_bit_mode_gives_the_same_grey(tmp_path: Path, mode: str, ending: str) -> None:
    if ending == "bmp" and mode == "LA":
        pytest.skip("BMP does not support grey with alpha")
    Image.fromarray(RAMP).convert(mode).save(tmp_path / f"image.{ending}")
    grey = load_grey(tmp_path / f"image.{ending}", 500)
    assert grey.shape == (120, 200) and np.abs(grey.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("RGB", {}), ("CMYK", {}), ("L", {"progressive": True}), ("RGB", {"progressive": True}),
     ("L", {"restart_marker_blocks": 3}), ("RGB", {"subsampling": 2})],
)  # fmt: skip
def test_every_kind_of_jpeg_gives_the_same_grey(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "image.jpg", quality=98, **options)
    assert np.abs(load_grey(tmp_path / "image.jpg", 500).astype(int) - RAMP).mean() < 1


def test_colour_becomes_luma(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "image.png")
    assert np.abs(load_grey(tmp_path / "image.png", 500) - LUMA).max() <= 1
    Image.fromarray(COLOUR).save(tmp_path / "image.jpg", quality=98, subsampling=0)
    assert np.abs(load_grey(tmp_path / "image.jpg", 500) - LUMA).mean() < 1


def test_transparent_pixels_become_black(tmp_path: Path) -> None:
    alpha = np.full_like(RAMP, 255)
    alpha[60:] = 0
    expected = np.where(alpha == 255, RAMP, 0).astype(int)
    Image.fromarray(np.dstack([RAMP, RAMP, RAMP, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([RAMP, alpha]), "LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.where(alpha == 255, RAMP // 2, 200).astype(np.uint8), "L").convert("P")
    palette.save(tmp_path / "palette.png", transparency=200)
    for name in ("rgba", "la"):
        assert np.abs(load_grey(tmp_path / f"{name}.png", 500) - expected).max() <= 1
    assert np.abs(load_grey(tmp_path / "palette.png", 500) - expected // 2).max() <= 1


def test_1_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = Image.fromarray(RAMP > 128)
    for ending in ("png", "tif"):
        bits.save(tmp_path / f"image.{ending}")
        assert (load_grey(tmp_path / f"image.{ending}", 500) == np.where(RAMP > 128, 255, 0)).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, ending: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"image.{ending}")
    assert np.abs(load_grey(tmp_path / f"image.{ending}", 500).astype(int) - RAMP).max() <= 2


def test_tiff_variants_are_read(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "big.tif", big_endian=True)
    Image.fromarray(RAMP.astype(np.float32) / 1000 - 0.1).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32) * 70000 - 10**6).save(tmp_path / "int.tif")
    write_tiff(tmp_path / "black.tif", DEEP, photometric=1)
    for name in ("big", "float", "int", "black"):
        assert np.abs(load_grey(tmp_path / f"{name}.tif", 500).astype(int) - RAMP).max() <= 2, name
    write_tiff(tmp_path / "white.tif", DEEP, photometric=0)
    assert np.abs(load_grey(tmp_path / "white.tif", 500).astype(int) - (255 - RAMP)).max() <= 2


def test_16_bit_colour_keeps_its_low_bytes(tmp_path: Path) -> None:
    """All values share one high byte, so without the low bytes they would be constant."""
    deep = np.dstack([RAMP.astype(np.uint16) + 512] * 3)
    write_png(tmp_path / "rgb.png", deep)
    write_png(tmp_path / "rgba.png", np.dstack([deep, np.full_like(RAMP, 65535, np.uint16)]))
    write_png(tmp_path / "interlaced.png", deep, interlaced=True)
    write_tiff(tmp_path / "rgb.tif", deep, photometric=2)
    for name in ("rgb.png", "rgba.png", "interlaced.png", "rgb.tif"):
        assert np.abs(load_grey(tmp_path / name, 500).astype(int) - RAMP).max() <= 2, name
    write_png(tmp_path / "la.png", np.dstack([deep[:, :, 0], np.full_like(RAMP, 65535, np.uint16)]))
    with pytest.raises(UnreadableImage, match="low bytes would be lost"):
        load_grey(tmp_path / "la.png", 500)


def test_interlaced_png_is_read(tmp_path: Path) -> None:
    write_png(tmp_path / "image.png", RAMP, interlaced=True)
    assert (load_grey(tmp_path / "image.png", 500) == RAMP).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, ending: str, orientation: int) -> None:
    """The expected arrays are the definitions of the eight orientations, by row 0 and column 0 of the file."""
    upright = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T, 6: RAMP.T[:, ::-1],
               7: RAMP.T[::-1, ::-1], 8: RAMP.T[::-1]}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / f"image.{ending}", exif=exif)
    grey = load_grey(tmp_path / f"image.{ending}", 500)
    assert grey.shape == upright.shape and np.abs(grey.astype(int) - upright).mean() < 1.5
    if ending == "png":
        Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
        assert np.abs(load_grey(tmp_path / "deep.png", 500).astype(int) - upright).max() <= 2


@pytest.mark.parametrize(("size", "shape"), [(60, (60, 100)), (120, (120, 200)), (4096, (120, 200))])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_shorter_side_is_downscaled_and_never_enlarged(
    tmp_path: Path, ending: str, size: int, shape: tuple[int, int]
) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"image.{ending}")
    assert load_grey(tmp_path / f"image.{ending}", size).shape == shape


def psnr_of_downscaling(path: Path, size: int) -> float:
    """Return the PSNR in dB between load_grey and full decoding with antialiased resizing."""
    full = Image.open(path).convert("L")
    short = min(full.size)
    target = round(full.width * size / short), round(full.height * size / short)
    expected = np.asarray(full.resize(target, Image.Resampling.BICUBIC)).astype(float)
    return float(10 * np.log10(255**2 / max(1e-9, np.square(load_grey(path, size) - expected).mean())))


@pytest.mark.parametrize("size", [40, 41, 53, 64, 80, 100, 107, 159, 160, 161])
def test_downscaling_while_decoding_has_a_psnr_above_40_db(radiographs: Path, size: int) -> None:
    """The images, of about 390 × 320, have sides that are not multiples of 8. A shift of part of a pixel would fail."""
    paths = sorted(radiographs.glob("train/*/*/*.jpg"))[:12]
    assert min(psnr_of_downscaling(path, size) for path in paths) > 40


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: no such folder; the repository has no real radiographs")
@pytest.mark.parametrize("size", [40, 53, 64, 80, 100, 128, 160])
def test_downscaling_real_radiographs_has_a_psnr_above_40_db(size: int) -> None:
    paths = sorted((REAL / "cxr390").glob("*.jpg"))[::7]
    assert min(psnr_of_downscaling(path, size) for path in paths) > 40


def write_decompression_bomb(path: Path) -> None:
    write_png(path, RAMP, claim=(60_000, 60_000))


def write_two_frames(path: Path) -> None:
    other = Image.fromarray(255 - RAMP)
    Image.fromarray(RAMP).save(path, "TIFF", save_all=True, append_images=[other])


def write_nan(path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[60, 100] = np.nan
    Image.fromarray(values).save(path, "TIFF")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("This is not an image, whatever its name."), "not an image in a known format"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0truncated"), "broken image: Truncated File Read"),
        (lambda path: path.write_bytes(encode_jpeg(RAMP, 90)[:-400]), "broken image: Premature end of JPEG file"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"), "not an image"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links form a loop"),
        (lambda path: None, "no such file"),
        (lambda path: Image.new("L", (200, 120), 77).save(path, "PNG"), "near-constant image.* 77 to 77"),
        (lambda path: Image.fromarray(DEEP // 2000 + 500).save(path, "PNG"), "near-constant image"),
        (lambda path: Image.fromarray(RAMP[:20, :20]).save(path, "PNG"), "20×20 pixels: too small"),
        (lambda path: Image.fromarray(RAMP[:40]).save(path, "PNG"), "200×40 pixels: too small or too narrow"),
        (write_decompression_bomb, "60000×60000 pixels|decompression bomb"),
        (write_two_frames, "contains 2 images, expected one"),
        (write_nan, "not finite"),
        (lambda path: Image.new("LAB", (200, 120)).save(path, "TIFF"), "colour mode LAB"),
    ],
)  # fmt: skip
def test_unusable_file_is_refused_with_the_reason(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    write(tmp_path / "image.jpg")
    with pytest.raises(UnreadableImage, match=reason) as first:
        load_grey(tmp_path / "image.jpg", 64)
    with pytest.raises(UnreadableImage, match=re.escape(str(first.value))):  # the same reason each time
        load_grey(tmp_path / "image.jpg", 64)


@pytest.mark.parametrize(("width", "refused"), [(7, True), (8, False)])
def test_one_percent_of_black_and_of_white_are_no_contrast(tmp_path: Path, width: int, refused: bool) -> None:
    """Their variance is the largest that 98 % within a few grey levels allow."""
    grey = np.full(10_000, 124, np.uint8)
    grey[:5000] = 124 + width
    grey[:99], grey[-99:] = 0, 255
    Image.fromarray(grey.reshape(100, 100)).save(tmp_path / "image.png")
    if refused:
        with pytest.raises(UnreadableImage, match=f"near-constant image.* 124 to {124 + width}"):
            load_grey(tmp_path / "image.png", 100)
    else:
        assert load_grey(tmp_path / "image.png", 100).shape == (100, 100)


def test_truncated_png_and_corrupt_jpeg_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match="broken image"):
        load_grey(tmp_path / "image.png", 64)
    rng = np.random.default_rng(0)
    noisy = encode_jpeg(rng.integers(0, 256, (200, 200), dtype=np.uint8), 90)
    (tmp_path / "image.jpg").write_bytes(noisy[:5000] + noisy[5400:])  # Pillow reads this without a warning
    with pytest.raises(UnreadableImage, match="broken image: "):
        load_grey(tmp_path / "image.jpg", 64)


def test_file_without_read_permission_is_refused() -> None:
    """Root may read any file, so the test switches to the user nobody."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "image.png"
        Image.fromarray(RAMP).save(file)
        file.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(UnreadableImage, match="permission denied"):
                load_grey(file, 64)
        finally:
            if is_root:
                os.seteuid(0)


def test_errors_of_the_machine_are_not_attributed_to_the_image(tmp_path: Path) -> None:
    """Otherwise a lack of file handles would reject a whole archive, file by file."""
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    load_grey(tmp_path / "image.png", 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            load_grey(tmp_path / "image.png", 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_kernel_that_numba_cannot_cache_is_not_attributed_to_the_image(tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: it has room for the shard, but not for the kernels."""
    Image.fromarray(RAMP).save(tmp_path / "image.png")
    (tmp_path / UNFINISHED).mkdir()
    code = ("import pathlib, resource, sys\nfrom shard.assignment import Row, ShardRows\n"
            "from shard.write_shard import Job, write_shard\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))\nfolder = pathlib.Path(sys.argv[1])\n"
            "rows = ShardRows('train-0', 'train', [Row('a', 'image.png', 'p', '', '', None, ())])\n"
            "write_shard(Job(rows, (), folder, folder, 64, 'jpeg', 90))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")})  # fmt: skip
    assert done.returncode == 1 and "OSError: [Errno 27] File too large" in done.stderr


@pytest.mark.parametrize(("name", "limit_mb"), [("grey.png", 400), ("deep.png", 700), ("rgb.jpg", 300)])
def test_memory_is_bounded_for_10000_pixels_squared(tmp_path: Path, name: str, limit_mb: int) -> None:
    path = tmp_path / name
    huge = np.tile(np.linspace(0, 255, 10_000, dtype=np.uint8), (10_000, 1))
    if name == "rgb.jpg":
        path.write_bytes(simplejpeg.encode_jpeg(np.dstack([huge] * 3), 80))
    else:
        Image.fromarray(huge if name == "grey.png" else huge.astype(np.uint16) * 200).save(path, compress_level=1)
    code = ("import resource, sys, pathlib; from shard.image import load_grey; "
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
            "print(load_grey(pathlib.Path(sys.argv[1]), 256).shape); "
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    shape, used = done.stdout.splitlines()
    assert shape == "(256, 256)" and int(used) < limit_mb


def test_encode_jpeg_writes_grey_and_checks_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_jpeg(RAMP, 95)
    decoded = Image.open(io.BytesIO(content))
    assert decoded.mode == "L" and np.abs(np.asarray(decoded).astype(int) - RAMP).mean() < 1
    monkeypatch.setattr(simplejpeg, "encode_jpeg", lambda *_, **__: content[:-400])
    with pytest.raises(UnreadableImage, match="its JPEG can't be decoded"):
        encode_jpeg(RAMP, 95)
    monkeypatch.setattr(simplejpeg, "encode_jpeg", lambda *_, **__: content)
    with pytest.raises(UnreadableImage, match=r"decodes to \(120, 200\), not \(20, 20\)"):
        encode_jpeg(RAMP[:20, :20], 95)


def test_center_crop_pads_with_black() -> None:
    assert (center_crop(RAMP, 100) == RAMP[10:110, 50:150]).all()
    padded: Grey = center_crop(np.full((10, 30), 9, np.uint8), 20)
    assert padded.shape == (20, 20) and (padded[5:15] == 9).all() and padded.sum() == 9 * 200


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow was built without JPEG 2000")
def test_16_bit_jpeg_2000_is_read(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "image.jp2")
    assert np.abs(load_grey(tmp_path / "image.jp2", 500).astype(int) - RAMP).max() <= 2
