"""Variants of DICOM files in archives: each is displayed like in a viewer, or refused with the reason."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from shard.errors import UnreadableImage
from shard.image import load_grey
from shard.machine import version_of
from shard.manifest import read_manifest
from shard.merge import merge
from shard.write import build
from tests.jpegs_12_bit import JPEGS_12_BIT, RINGS
from tests.odd_files import write_dicom

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")

RAMP = np.tile(np.linspace(0, 4095, 80).round().astype(np.uint16), (64, 1))  # [64, 80], 12 bits
GREYS = RAMP / 4095 * 255
WINDOW = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
BORDER = np.indices(RAMP.shape)[0] < 16


def load(folder: Path, values: np.ndarray = RAMP, **tags: Any) -> np.ndarray:
    """Write a file with these pixels and tags, and load its grey values."""
    high_bit = {name: tags.pop(name) for name in ("HighBit",) if name in tags}  # write_dicom would overwrite it
    write_dicom(folder / "image.dcm", values, **tags)
    if high_bit:
        set_tags(folder / "image.dcm", **high_bit)
    return load_grey(folder / "image.dcm", 500).astype(int)


def set_tags(path: Path, **tags: Any) -> None:
    """Change tags of a file, or remove those that are None."""
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


def make_lut(count: int, first_mapped: int, bits: int, entries: Any) -> Any:
    """Make an item of a LUT sequence. entries: numbers or bytes."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [count % 65536, first_mapped, bits])
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return item


def test_blank_tags_count_as_absent(tmp_path: Path) -> None:
    empty = make_lut(0, 0, 0, None)
    empty.LUTDescriptor = None
    blank = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "VOILUTFunction", "PixelSpacing", "PresentationLUTShape",
                           "PixelAspectRatio", "PixelPaddingValue", "NumberOfFrames"), "")  # fmt: skip
    for tags in (blank, {"VOILUTSequence": [empty]}, {"ModalityLUTSequence": [pydicom.Dataset(), empty]}):
        assert np.abs(load(tmp_path, **WINDOW, **tags) - GREYS).max() <= 1
    second = {"BitsStored": 12, "WindowCenter": ["", "1000"], "WindowWidth": ["", "801"]}
    assert np.abs(load(tmp_path, **second) - np.clip((RAMP - 999.5) / 800 + 0.5, 0, 1) * 255).max() <= 1


def test_lut_of_65536_entries_declares_0(tmp_path: Path) -> None:
    entries = np.linspace(0, 255, 65536).round().astype(np.uint8)
    values = (RAMP * 16.0).astype(np.uint16)
    packed = make_lut(65536, 0, 8, entries.tobytes())
    assert np.abs(load(tmp_path, values, VOILUTSequence=[packed]) - entries[values]).max() <= 1
    unpacked = make_lut(65536, 0, 16, (entries.astype("<u2") * 257).tobytes())
    assert np.abs(load(tmp_path, values, VOILUTSequence=[unpacked]) - entries[values]).max() <= 1


def test_white_of_a_lut_follows_its_entries_not_the_declared_bits(tmp_path: Path) -> None:
    for declared in (8, 12, 16):
        lut = make_lut(4096, 0, declared, list(range(4096)))
        assert np.abs(load(tmp_path, BitsStored=12, VOILUTSequence=[lut]) - GREYS).max() <= 1
    dark = make_lut(4096, 0, 12, [entry * 3 // 4 for entry in range(4096)])  # still needs 12 bits
    assert np.abs(load(tmp_path, BitsStored=12, VOILUTSequence=[dark]) - GREYS * 0.75).max() <= 1


def test_sign_of_the_first_mapped_value_is_inferred_from_the_pixels(tmp_path: Path) -> None:
    signed = RAMP.astype(np.int16) - 2048
    lut = make_lut(4096, 65536 - 2048, 12, list(range(4096)))
    assert np.abs(load(tmp_path, signed, BitsStored=12, VOILUTSequence=[lut]) - GREYS).max() <= 1
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -2048, "VOILUTSequence": [lut]}
    assert np.abs(load(tmp_path, BitsStored=12, **rescaled) - GREYS).max() <= 1
    high = RAMP + np.uint16(50000)
    lut = make_lut(4096, 50000, 12, list(range(4096)))
    assert np.abs(load(tmp_path, high, VOILUTSequence=[lut]) - GREYS).max() <= 1


@pytest.mark.parametrize(("tags", "message"), [
    ({"VOILUTSequence": [make_lut(4096, 0, 12, list(range(2000)))]}, "VOILUTSequence contains 2000 of 4096 entries"),
    ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope 0 and RescaleIntercept 5"),
    ({"VOILUTFunction": "GAMMA", **WINDOW}, "VOILUTFunction GAMMA is not supported"),
    ({"HighBit": 7}, "HighBit 7 for 12 BitsStored of 16"), ({"HighBit": 16}, "HighBit 16 for 12 BitsStored of 16"),
    ({"BitsStored": 10}, "pixels need more bits than its BitsStored, 10"),
    ({"PhotometricInterpretation": ""}, "photometric interpretation blank is not supported"),
])  # fmt: skip
def test_contradictory_tags_are_refused_by_name(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        load(tmp_path, **{"BitsStored": 12, **tags})


@pytest.mark.parametrize("high", [12, 13, 15])
def test_pixels_end_at_the_high_bit(tmp_path: Path, high: int) -> None:
    shift = high - 11
    below = np.random.default_rng(0).integers(0, 1 << shift, RAMP.shape).astype(np.uint16)
    assert np.abs(load(tmp_path, RAMP << shift | below, **WINDOW, HighBit=high) - GREYS).max() <= 1
    signed = (((RAMP.astype(int) - 2048) << shift) & 0xFFFF).astype(np.uint16).view(np.int16)
    centred = {"BitsStored": 12, "WindowCenter": 0, "WindowWidth": 4096}
    assert np.abs(load(tmp_path, signed, **centred, HighBit=high) - GREYS).max() <= 1
    assert np.abs(load(tmp_path, RAMP, **WINDOW, HighBit=high) - GREYS).max() <= 1  # wrong: no bit above 11 is set


def test_overlay_bits_above_the_pixel_are_ignored(tmp_path: Path) -> None:
    overlay = np.where(np.indices(RAMP.shape)[1] % 16 < 4, 0x8000, 0).astype(np.uint16)
    assert np.abs(load(tmp_path, RAMP | overlay, **WINDOW) - GREYS).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("padding", "dtype", "tags"), [
    (65535, np.uint16, {"PixelPaddingValue": 65535}),
    (65535, np.uint16, {"BitsStored": 12, "PixelPaddingValue": 65535}),
    (0, np.uint16, {"BitsStored": 12, "PixelPaddingValue": 0}), (-32768, np.int16, {"PixelPaddingValue": -32768}),
    (-2000, np.int16, {"BitsStored": 13, "PixelPaddingValue": -2000}),
    (60000, np.uint16, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 4096}),
    (-300, np.int16, {"PixelPaddingValue": -1000, "PixelPaddingRangeLimit": -1}),
])  # fmt: skip
def test_padding_is_black_and_excluded_from_the_percentiles(
    tmp_path: Path, photometric: str, padding: int, dtype: type, tags: dict[str, Any]
) -> None:
    values = np.where(BORDER, padding, np.maximum(RAMP, 1)).astype(dtype)
    tags = {**tags, "PhotometricInterpretation": photometric}
    for window in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        low, high = (0, 4095) if window else np.percentile(np.maximum(RAMP, 1)[~BORDER], (0.1, 99.9))
        expected = np.clip((RAMP - low) / (high - low), 0, 1) * 255
        expected = 255 - expected if photometric == "MONOCHROME1" else expected
        grey = load(tmp_path, values, **tags, **window)
        assert (grey[BORDER] == 0).all() and np.abs(grey - expected)[~BORDER].max() <= 1


def test_padding_value_beyond_8_bits_matches_no_8_bit_pixel(tmp_path: Path) -> None:
    values = (RAMP // 16).astype(np.uint8)
    assert (load(tmp_path, values, PixelPaddingValue=65535) == values).all()
    assert (load(tmp_path, values, PixelPaddingValue=255) == np.where(values == 255, 0, values)).all()


@pytest.mark.parametrize(("photometric", "shape", "inverted"), [
    ("MONOCHROME2", "INVERSE", True), ("MONOCHROME1", "INVERSE", True), ("MONOCHROME1", "IDENTITY", True),
    ("MONOCHROME2", "IDENTITY", False), ("MONOCHROME1", "", True), ("MONOCHROME2", "", False)])  # fmt: skip
def test_either_tag_inverts_the_image(tmp_path: Path, photometric: str, shape: str, inverted: bool) -> None:
    grey = load(tmp_path, **WINDOW, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.abs(grey - (255 - GREYS if inverted else GREYS)).max() <= 1


def write_without_header(path: Path, implicit: bool, little: bool) -> None:
    """Write a windowed file without preamble and file meta header."""
    write_dicom(path, RAMP, **WINDOW)
    data = pydicom.Dataset(pydicom.dcmread(path))
    if not little:
        data.PixelData = RAMP.astype(">u2").tobytes()
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    pydicom.filewriter.write_dataset(buffer, data)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("little", [True, False])
def test_file_without_preamble_and_header_is_read(tmp_path: Path, implicit: bool, little: bool) -> None:
    write_without_header(tmp_path / "image", implicit, little)
    assert np.abs(load_grey(tmp_path / "image", 500) - GREYS).max() <= 1


def test_file_without_preamble_or_transfer_syntax_is_read_unless_compressed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "image.dcm", RAMP, **WINDOW)
    content = (tmp_path / "image.dcm").read_bytes()
    (tmp_path / "image").write_bytes(content[132:])
    assert np.abs(load_grey(tmp_path / "image", 500) - GREYS).max() <= 1
    header = 132 + 12 + struct.unpack_from("<I", content, 140)[0]
    (tmp_path / "image").write_bytes(content[:132] + content[header:])
    assert np.abs(load_grey(tmp_path / "image", 500) - GREYS).max() <= 1
    data = pydicom.dcmread(tmp_path / "image.dcm")
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "image.dcm")
    content = (tmp_path / "image.dcm").read_bytes()
    header = 132 + 12 + struct.unpack_from("<I", content, 140)[0]
    (tmp_path / "image").write_bytes(content[header:])
    with pytest.raises(UnreadableImage, match="without TransferSyntaxUID: the compression of its pixels is unknown"):
        load_grey(tmp_path / "image", 500)


@pytest.mark.parametrize("content", [b"\x08\0" * 200, b"\x08\0\x05\0" + b"\xff" * 200, b"\0\x08\0\x05ABCDEFGH" * 20,
                                     b"\x08\0\x05\0\4\0\0\0ABCD" + b"\xff" * 99])  # fmt: skip
def test_file_that_only_begins_like_a_data_set_is_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        load_grey(tmp_path / "image", 500)


@pytest.mark.parametrize(("tags", "height"), [
    ({"PixelAspectRatio": [2, 1]}, 128), ({"ImagerPixelSpacing": [0.3, 0.15]}, 128),
    ({"PixelSpacing": [0.3, 0.15]}, 128),
    ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, 64), ({"PixelSpacing": [0, 0]}, 64),
    ({"PixelSpacing": ["", ""], "ImagerPixelSpacing": [0.2, 0.1]}, 128), ({"PixelSpacing": [0.14, 0.140001]}, 64),
])  # fmt: skip
def test_image_is_resampled_to_square_pixels(tmp_path: Path, tags: dict[str, Any], height: int) -> None:
    grey = load(tmp_path, **WINDOW, **tags)
    assert grey.shape == (height, 80) and np.abs(grey - GREYS[:1]).max() <= 1


def test_pixels_square_within_a_thousandth_are_not_resampled(tmp_path: Path) -> None:
    for width, height in ((0.13987, 640), (0.1397, 641)):
        write_dicom(tmp_path / "image.dcm", np.tile(RAMP, (10, 8)), **WINDOW, PixelSpacing=[0.14, width])
        assert load_grey(tmp_path / "image.dcm", 1000).shape == (height, 640)


def test_window_of_width_1_is_a_threshold(tmp_path: Path) -> None:
    centre = RAMP[0, 40] * 0.5 + 0.25
    tags = {"RescaleSlope": 0.5, "RescaleIntercept": 0, "WindowCenter": centre, "WindowWidth": 1}
    above = centre - 1 / 2 < RAMP / 2
    assert (load(tmp_path, BitsStored=12, **tags) == np.where(above, 255, 0)).all()


def test_wide_pixels_are_resampled_and_downscaled_together(tmp_path: Path) -> None:
    write_dicom(tmp_path / "image.dcm", RAMP.repeat(4, 0)[:, ::2], **WINDOW, PixelAspectRatio=[1, 2])
    assert load_grey(tmp_path / "image.dcm", 500).shape == (256, 80)
    assert load_grey(tmp_path / "image.dcm", 40).shape == (128, 40)
    set_tags(tmp_path / "image.dcm", PixelAspectRatio=[1, 9])
    assert load_grey(tmp_path / "image.dcm", 500).shape == (256, 360)
    set_tags(tmp_path / "image.dcm", PixelAspectRatio=[1, 90])
    with pytest.raises(UnreadableImage, match="3600×256 pixels: too small or too narrow"):
        load_grey(tmp_path / "image.dcm", 500)


@pytest.mark.parametrize(("kind", "message"), [
    ("1.2.840.10008.5.1.4.1.1.88.11", "without an image: a structured report .Basic Text SR Storage"),
    ("1.2.840.10008.5.1.4.1.1.11.1", "without an image: a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.104.1", "without an image: an encapsulated document .Encapsulated PDF"),
    ("1.2.840.10008.1.3.10", "without an image: a DICOMDIR"), ("1.2.840.10008.5.1.4.1.1.88.59", "a list of key images"),
    ("1.2.840.10008.5.1.4.1.1.481.3", "without an image: a radiotherapy object .RT Structure Set"),
    ("1.2.840.10008.5.1.4.1.1.66", "DICOM without an image .Raw Data Storage"),
    ("1.2.3.4", "without an image .1.2.3.4"),
    ("1.2.840.10008.5.1.4.1.1.1.1", "broken image: DICOM without pixels .Digital X-Ray Image"),
])  # fmt: skip
def test_files_without_an_image_are_refused_by_kind(tmp_path: Path, kind: str, message: str) -> None:
    write_dicom(tmp_path / "image.dcm", RAMP, SOPClassUID=kind)
    set_tags(tmp_path / "image.dcm", PixelData=None, Rows=None, Columns=None)
    with pytest.raises(UnreadableImage, match=message):
        load_grey(tmp_path / "image.dcm", 500)


def test_dose_mask_and_video_are_refused_but_not_a_portal_image(tmp_path: Path) -> None:
    for kind, message in (("481.2", "a radiotherapy object .RT Dose"), ("66.4", "a segmentation")):
        with pytest.raises(UnreadableImage, match=message):
            load(tmp_path, **WINDOW, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}")
    assert np.abs(load(tmp_path, **WINDOW, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.1") - GREYS).max() <= 1
    with pytest.raises(UnreadableImage, match="DICOM with 30 frames, expected one: a video or a stack of slices"):
        load(tmp_path, **WINDOW, NumberOfFrames=30)
    write_dicom(tmp_path / "image.dcm", RAMP)
    set_tags(tmp_path / "image.dcm", Rows=None)
    with pytest.raises(UnreadableImage, match="broken image: DICOM without Rows"):
        load_grey(tmp_path / "image.dcm", 500)


def write_12_bit_jpeg(
    path: Path, jpeg: bytes, syntax: str, shape: tuple[int, ...] = RINGS.shape, **tags: Any
) -> Path:
    """Write a DICOM file that contains a 12-bit JPEG of [H, W] `shape`."""
    write_dicom(path, np.zeros(shape, np.uint16), **{"BitsStored": 12, **tags})
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([jpeg])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    return path


@pytest.mark.parametrize("syntax", JPEGS_12_BIT)
def test_12_bit_jpeg_is_decoded(tmp_path: Path, syntax: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    grey = load_grey(write_12_bit_jpeg(tmp_path / "image.dcm", JPEGS_12_BIT[syntax], syntax, **window), 500)
    assert np.abs(grey - RINGS / 4095 * 255).mean() < 0.5 and np.abs(grey - RINGS / 4095 * 255).max() < 3
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("syntax", JPEGS_12_BIT)
def test_corrupt_12_bit_jpeg_is_refused(tmp_path: Path, syntax: str) -> None:
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    jpeg = JPEGS_12_BIT[syntax]
    start = next(at for at in range(len(jpeg)) if jpeg[at] == 0xFF and jpeg[at + 1] in (0xC1, 0xC2))
    table_at = jpeg.index(b"\xff\xc4")
    for corrupt, message in (
        (jpeg[: len(jpeg) // 2], "broken image: JPEG"),
        (jpeg[:30], "its JPEG does not have 48×40 pixels and 1 channels"),
        (jpeg[: start + 4] + b"\x0a" + jpeg[start + 5 :], "with 10 bits"),
        (jpeg[: start + 5] + b"\0\x50" + jpeg[start + 7 :], "its JPEG does not have 48×40 pixels and 1 channels"),
        (jpeg[:table_at] + b"\x66" + jpeg[table_at + 1 :], "extraneous bytes before marker"),
    ):  # fmt: skip
        with pytest.raises(UnreadableImage, match=message):
            load_grey(write_12_bit_jpeg(tmp_path / "image.dcm", corrupt, syntax), 500)


@pytest.mark.parametrize("syntax", JPEGS_12_BIT)
def test_unknown_jfif_revision_is_accepted(tmp_path: Path, syntax: str) -> None:
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = load_grey(write_12_bit_jpeg(tmp_path / "image.dcm", JPEGS_12_BIT[syntax], syntax, **window), 500)
    assert b"JFIF\0\1" in JPEGS_12_BIT[syntax]
    odd = JPEGS_12_BIT[syntax].replace(b"JFIF\0\1", b"JFIF\0\x75")
    assert (load_grey(write_12_bit_jpeg(tmp_path / "image.dcm", odd, syntax, **window), 500) == plain).all()


def test_jpeg_that_gdcm_warns_about_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    syntax, jpeg = next(iter(JPEGS_12_BIT.items()))
    truncated = jpeg[:-60] + jpeg[-2:]  # without the end of the scan, but with the end marker
    with pytest.raises(UnreadableImage, match=r"broken image: JPEG Extended .*premature end of data segment"):
        load_grey(write_12_bit_jpeg(tmp_path / "image.dcm", truncated, syntax), 500)


def test_signed_pixels_in_a_lossless_jpeg(tmp_path: Path) -> None:
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("dcmcjpeg is not installed: apt install dcmtk")
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    signed = RAMP.astype(np.int16) - 2048
    for stored in (12, 16):
        write_dicom(tmp_path / "plain.dcm", signed, BitsStored=stored, WindowCenter=0, WindowWidth=4096)
        subprocess.run(["dcmcjpeg", "+e1", tmp_path / "plain.dcm", tmp_path / "packed.dcm"], check=True)
        assert np.abs(load_grey(tmp_path / "packed.dcm", 500) - GREYS).max() <= 1


@pytest.mark.parametrize(("syntax", "message"), [
    ("1.2.840.10008.1.2.4.110", "DICOM compressed with JPEG XL Lossless, for which no decoder is available"),
    ("1.2.840.10008.1.2.4.102", "compressed with MPEG-4 AVC/H.264 High"),
    ("1.2.3.4.5", "compressed with 1.2.3.4.5, for"),
    ("1.2.840.10008.1.2.4.52", "compressed with JPEG Extended .Process 3 and 5."),
])  # fmt: skip
def test_compression_without_a_decoder_is_named(tmp_path: Path, syntax: str, message: str) -> None:
    known = "1.2.840.10008.1.2.4.100" if syntax.endswith("110") else syntax  # one that pydicom can write
    path = write_12_bit_jpeg(tmp_path / "image.dcm", b"\xff\xd8" + bytes(100), known)
    path.write_bytes(path.read_bytes().replace(known.encode(), syntax.encode()))
    with pytest.raises(UnreadableImage, match=message):
        load_grey(path, 500)


@pytest.mark.parametrize("process", ["+ee", "+es", "+ep", "+el", "+e1"])
@pytest.mark.parametrize("bits", [8, 12])
def test_files_compressed_by_dcmtk_match_dcmtks_own_rendering(tmp_path: Path, process: str, bits: int) -> None:
    if shutil.which("dcmcjpeg") is None or shutil.which("dcmj2pnm") is None:
        pytest.skip("dcmcjpeg and dcmj2pnm are not installed: apt install dcmtk")
    pytest.importorskip("gdcm", reason="python-gdcm, which decodes these, is not installed")
    noise = np.random.default_rng(0).normal(0, 40, RAMP.shape)
    values = np.clip(RAMP + noise, 0, 4095).astype(np.uint16) >> (12 - bits)
    write_dicom(tmp_path / "plain.dcm", values.astype(np.uint8) if bits == 8 else values, BitsStored=bits,
                WindowCenter=2 ** (bits - 1), WindowWidth=2**bits)  # fmt: skip
    subprocess.run(["dcmcjpeg", process, tmp_path / "plain.dcm", tmp_path / "packed.dcm"], check=True)
    subprocess.run(["dcmj2pnm", "+Wi", "1", "+op", tmp_path / "packed.dcm", tmp_path / "shown.pgm"], check=True)
    expected = np.asarray(Image.open(tmp_path / "shown.pgm")).astype(int)
    assert np.abs(load_grey(tmp_path / "packed.dcm", 500) - expected).max() <= 1


def test_overshoot_of_lossy_compression_does_not_wrap_around(tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm, which writes this, is not installed")
    saturated = np.clip(RAMP + np.random.default_rng(0).normal(0, 300, RAMP.shape), 0, 4095).astype(np.uint16)
    plain = load(tmp_path, saturated, **WINDOW)
    reader, codec, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "image.dcm"))
    assert reader.Read()
    codec.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSNearLossless))
    codec.SetInput(reader.GetImage())
    assert codec.Change()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(codec.GetOutput())
    assert writer.Write()
    assert np.abs(load_grey(tmp_path / "packed.dcm", 500) - plain).max() <= 1


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow was built without JPEG 2000")
def test_overshoot_of_lossy_jpeg_2000_is_clipped(tmp_path: Path) -> None:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg, which decodes this, is not installed")
    saturated = np.clip(RAMP + np.random.default_rng(0).normal(0, 300, RAMP.shape), 0, 4095).astype(np.uint16)
    plain = load(tmp_path, saturated, **WINDOW)
    buffer = io.BytesIO()
    Image.fromarray(saturated).save(buffer, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[4])
    path = write_12_bit_jpeg(tmp_path / "image.dcm", buffer.getvalue(), pydicom.uid.JPEG2000, RAMP.shape, **WINDOW)
    assert pydicom.pixels.pixel_array(path, correct_unused_bits=False).max() > 4095
    difference = np.abs(load_grey(path, 500) - plain)
    assert difference.mean() < 3 and difference.max() < 20


def test_manifest_records_the_dicom_packages_for_files_of_any_suffix(tmp_path: Path) -> None:
    names = ["a.png", "b", "c.png", "d.png"]
    for name in names:
        Image.fromarray((RAMP // 16).astype(np.uint8)).save(tmp_path / name, format="PNG")
    lines = [f"{name},{name},{'valid' if name == 'd.png' else 'train'}" for name in names]
    (tmp_path / "t.csv").write_text("\n".join(["path,patient,split", *lines]) + "\n")
    options: dict[str, Any] = {"table": tmp_path / "t.csv", "size": 64, "shard_size": 1, "workers": 1}
    build(tmp_path, tmp_path / "plain", **options)
    assert "pydicom" not in read_manifest(tmp_path / "plain").software
    write_dicom(tmp_path / "b", RAMP, **WINDOW)
    build(tmp_path, tmp_path / "complete", **options)
    software = read_manifest(tmp_path / "complete").software
    assert {name: software[name] for name in ("pydicom", "python-gdcm")} == {
        name: version_of(name) for name in ("pydicom", "python-gdcm")}  # fmt: skip
    for part in range(2):
        build(tmp_path, tmp_path / "parts", **options, part=part, parts=2)
    merge(tmp_path / "parts")
    assert read_manifest(tmp_path / "parts").software == software


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_defined_terms_are_case_insensitive(tmp_path: Path) -> None:
    assert np.abs(load(tmp_path, PresentationLUTShape="inverse", **WINDOW) - (255 - GREYS)).max() < 2
    assert np.abs(load(tmp_path, VOILUTFunction="linear_exact", **WINDOW) - GREYS).max() < 2


def test_first_of_several_padding_values_is_applied(tmp_path: Path) -> None:
    write_dicom(tmp_path / "image.dcm", np.where(BORDER, 65535, RAMP).astype(np.uint16))
    data = pydicom.dcmread(tmp_path / "image.dcm")
    data.add_new("PixelPaddingValue", "US", [65535, 65534])
    data.save_as(tmp_path / "image.dcm")
    grey = load_grey(tmp_path / "image.dcm", 500).astype(int)
    assert (grey[BORDER] == 0).all() and np.abs(grey - np.where(BORDER, 0, GREYS)).max() < 3


def test_padding_of_a_palette_image_is_black(tmp_path: Path) -> None:
    indices = np.where(BORDER, 255, np.minimum(GREYS, 254)).astype(np.uint8)
    write_dicom(tmp_path / "image.dcm", indices, PixelPaddingValue=255)
    data = pydicom.dcmread(tmp_path / "image.dcm")
    data.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        data.add_new(f"{colour}PaletteColorLookupTableData", "OW", (np.arange(256) * 257).astype("<u2").tobytes())
    data.save_as(tmp_path / "image.dcm")
    grey = load_grey(tmp_path / "image.dcm", 500).astype(int)
    assert (grey[BORDER] == 0).all() and np.abs(grey - GREYS)[~BORDER].max() < 8
