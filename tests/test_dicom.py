"""DICOM files are displayed by the formulas of the standard (PS3.3 C.11.1, C.11.2), written here by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard.errors import InputError, UnreadableImage
from shard.image import load_grey
from shard.manifest import read_manifest
from shard.write import build
from tests.odd_files import write_dicom

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")

STORED = np.tile(np.linspace(100, 4000, 200).astype(np.uint16), (120, 1))  # [120, 200], 12 bits
BITS = {"BitsStored": 12}


def load(folder: Path, values: np.ndarray = STORED, **tags: Any) -> np.ndarray:
    write_dicom(folder / "image.dcm", values, **tags)
    return load_grey(folder / "image.dcm", 500).astype(int)


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Map values to 0 to 255 by PS3.3 C.11.2.1.2.1."""
    return np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def test_window_sets_black_and_white(tmp_path: Path) -> None:
    grey = load(tmp_path, **BITS, WindowCenter=2000, WindowWidth=1000)
    assert np.abs(grey - linear_window(STORED.astype(float), 2000, 1000)).max() <= 1
    assert grey.min() == 0 and grey.max() == 255 and (grey == 0).mean() > 0.2


def test_first_of_several_windows_is_applied(tmp_path: Path) -> None:
    grey = load(tmp_path, **BITS, WindowCenter=[1000, 3000], WindowWidth=[800, 100])
    assert np.abs(grey - linear_window(STORED.astype(float), 1000, 800)).max() <= 1


def test_rescale_is_applied_before_the_window(tmp_path: Path) -> None:
    grey = load(tmp_path, **BITS, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=2000)
    assert np.abs(grey - linear_window(STORED * 2.0 - 1000, 3000, 2000)).max() <= 1


def test_signed_values_are_windowed(tmp_path: Path) -> None:
    values = STORED.astype(np.int16) - 2000
    grey = load(tmp_path, values, WindowCenter=0, WindowWidth=1000)
    assert np.abs(grey - linear_window(values.astype(float), 0, 1000)).max() <= 1


@pytest.mark.parametrize(("function", "width"), [("LINEAR_EXACT", 1000), ("SIGMOID", 1000), ("SIGMOID", 0.5)])
def test_linear_exact_and_sigmoid_windows(tmp_path: Path, function: str, width: float) -> None:
    grey = load(tmp_path, **BITS, WindowCenter=2000, WindowWidth=width, VOILUTFunction=function)
    distance = np.clip((STORED - 2000.0) / width, -100, 100)
    expected = np.clip(distance + 0.5, 0, 1) if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * distance))
    assert np.abs(grey - expected * 255).max() <= 1


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path) -> None:
    grey = load(tmp_path, **BITS, WindowCenter=2000, WindowWidth=1000, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(grey - (255 - linear_window(STORED.astype(float), 2000, 1000))).max() <= 1


def test_voi_lut_takes_precedence_over_a_window(tmp_path: Path) -> None:
    lut = pydicom.Dataset()
    table = (np.linspace(0, 1, 4096) ** 2 * 1023).astype(np.uint16)
    lut.LUTDescriptor = [4096, 0, 10]
    lut.add_new("LUTData", "US", table.tolist())
    grey = load(tmp_path, **BITS, VOILUTSequence=[lut], WindowCenter=100, WindowWidth=10)
    assert np.abs(grey - table[STORED] / 1023 * 255).max() <= 1


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": 5, "WindowWidth": 0},
                                  {"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"}])
def test_percentiles_replace_a_missing_or_invalid_window(tmp_path: Path, tags: dict[str, Any]) -> None:
    grey = load(tmp_path, **BITS, **tags)
    low, high = np.percentile(STORED, (0.1, 99.9))
    assert np.abs(grey - np.clip((STORED - low) / (high - low) * 255, 0, 255)).max() <= 1
    inverted = load(tmp_path, **BITS, **tags, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(inverted - (255 - grey)).max() <= 1


def test_8_bit_values_without_a_window_are_unchanged(tmp_path: Path) -> None:
    values = (STORED // 32).astype(np.uint8)  # 3 to 125
    assert (load(tmp_path, values) == values).all()
    rescaled = load(tmp_path, values, RescaleSlope=10, RescaleIntercept=0)
    assert rescaled.min() == 0 and rescaled.max() == 255


def test_colour_becomes_luma(tmp_path: Path) -> None:
    values = np.dstack([STORED // 32, STORED // 16, STORED // 64]).astype(np.uint8)
    assert np.abs(load(tmp_path, values) - values @ (0.299, 0.587, 0.114)).max() <= 1


@pytest.mark.parametrize("syntax", ["JPEGBaseline8Bit", "JPEG2000Lossless", "RLELossless"])
def test_compressed_pixels_equal_uncompressed_ones(tmp_path: Path, syntax: str) -> None:
    from PIL import Image

    values = (STORED // 16).astype(np.uint8) if syntax == "JPEGBaseline8Bit" else STORED
    write_dicom(tmp_path / "image.dcm", values, WindowCenter=128 if values.dtype == np.uint8 else 2000,
                WindowWidth=200 if values.dtype == np.uint8 else 3000,
                **({} if values.dtype == np.uint8 else BITS))  # fmt: skip
    plain = load_grey(tmp_path / "image.dcm", 500).astype(int)
    data = pydicom.dcmread(tmp_path / "image.dcm")
    if syntax == "JPEGBaseline8Bit":
        Image.fromarray(values).save(tmp_path / "frame.jpg", quality=98)
        data.PixelData = pydicom.encaps.encapsulate([(tmp_path / "frame.jpg").read_bytes()])
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        data["PixelData"].VR = "OB"
    else:
        try:
            data.compress(getattr(pydicom.uid, syntax))
        except RuntimeError as error:
            pytest.skip(f"no encoder for {syntax} is installed: {error}")
    data.save_as(tmp_path / "image.dcm")
    grey = load_grey(tmp_path / "image.dcm", 500).astype(int)
    assert np.abs(grey - plain).mean() < (1 if syntax == "JPEGBaseline8Bit" else 1e-9)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14", "JPEGLSLossless"])
def test_lossless_compressions_of_x_ray_machines_equal_uncompressed_pixels(tmp_path: Path, syntax: str) -> None:
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm, which writes and reads these, is not installed")
    plain = load(tmp_path, **BITS, WindowCenter=2000, WindowWidth=3000)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "image.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    packed = pydicom.dcmread(tmp_path / "packed.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    assert (load_grey(tmp_path / "packed.dcm", 500) == plain).all()


def test_files_other_than_one_grey_image_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "image.dcm", np.vstack([STORED, STORED]), NumberOfFrames=2, Rows=120)
    with pytest.raises(UnreadableImage, match="2 frames, expected one"):
        load_grey(tmp_path / "image.dcm", 64)
    write_dicom(tmp_path / "image.dcm", STORED, Rows=20000, Columns=20000)
    with pytest.raises(UnreadableImage, match="20000×20000 pixels: over 134 megapixels"):
        load_grey(tmp_path / "image.dcm", 64)
    write_dicom(tmp_path / "image.dcm", STORED, PhotometricInterpretation="HSV")
    with pytest.raises(UnreadableImage, match="HSV"):
        load_grey(tmp_path / "image.dcm", 64)
    write_dicom(tmp_path / "image.dcm", STORED)
    content = (tmp_path / "image.dcm").read_bytes()
    for length in (140, 400, len(content) // 2):
        (tmp_path / "image.dcm").write_bytes(content[:length])
        with pytest.raises(UnreadableImage, match="broken image"):
            load_grey(tmp_path / "image.dcm", 64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two DICOM files and their table."""
    for name in ("1.2.840.1.dcm", "1.2.840.2.dcm"):
        write_dicom(tmp_path / name, STORED, **BITS)
    (tmp_path / "table.csv").write_text("path,patient,split,Mass\n1.2.840.1.dcm,p,train,1\n1.2.840.2.dcm,q,valid,0\n")
    return tmp_path


def test_build_writes_nothing_of_dicom_headers(source: Path) -> None:
    build(source, source / "out", table=source / "table.csv", size=96, workers=1)
    manifest = read_manifest(source / "out")
    assert manifest.images("train") == manifest.images("valid") == 1 and manifest.software["pydicom"] != "not installed"
    written = b"".join(file.read_bytes() for file in (source / "out").iterdir())
    assert b"1_2_840_1" in written and b"Doe" not in written and b"MRN-4711" not in written


def test_missing_pydicom_is_reported_with_the_cure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"contains DICOM files; to read them: pip install '\.\[dicom\]'"):
        build(source, source / "out", table=source / "table.csv", workers=1)
    (source / "1.2.840.1.dcm").rename(source / "hidden.jpg")
    with pytest.raises(UnreadableImage, match="DICOM: to read it, pip install"):
        load_grey(source / "hidden.jpg", 64)
