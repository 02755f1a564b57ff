"""Seeded DICOM files with all kinds of bits, LUTs, windows and padding, against a float64 reference and dcmtk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from shard.image import load_grey

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")

FILES = 200
SHAPE = 64, 80


class Sample(NamedTuple):
    """A data set, its expected grey values ([H, W] float) and padding mask, and whether dcmtk renders it alike."""

    data: Any
    expected: np.ndarray
    padding: np.ndarray
    matches_dcmtk: bool


def sample_file(seed: int) -> Sample:
    """Sample the tags and pixels of a data set."""
    rng = np.random.default_rng(seed)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" + rng.choice(["", ".1", ".2"])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{seed + 1}"
    data.Rows, data.Columns, data.SamplesPerPixel = *SHAPE, 1
    stored, padding = sample_pixels(rng, data)
    values = sample_modality(rng, data, stored)
    expected, matches_dcmtk = sample_voi(rng, data, values, stored, padding)
    data.PhotometricInterpretation = rng.choice(["MONOCHROME1", "MONOCHROME2"])
    data.PresentationLUTShape = rng.choice(["", "IDENTITY", "INVERSE"])
    if data.PhotometricInterpretation == "MONOCHROME1" or data.PresentationLUTShape == "INVERSE":
        expected = 255 - expected
    # dcmtk prefers PresentationLUTShape if the tags contradict each other. It rescales to integers, and swaps the bytes
    # of big-endian 32-bit words differently.
    matches_dcmtk &= (data.PhotometricInterpretation, data.PresentationLUTShape) != ("MONOCHROME1", "IDENTITY")
    matches_dcmtk &= bool((values == values.round()).all()) or (len(data.VOILUTSequence) == 0 and np.ptp(values) > 1000)
    matches_dcmtk &= data.BitsAllocated < 32 or data.file_meta.TransferSyntaxUID.is_little_endian
    expected[padding] = 0
    return Sample(data, expected, padding, matches_dcmtk)


def sample_pixels(rng: np.random.Generator, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Set pixels: a noisy ramp, random unused bits around it, and padding at the top.

    Return [H, W] stored values and the padding mask.
    """
    data.BitsAllocated = int(rng.choice([8, 16, 16, 16, 32]))
    data.BitsStored = int(rng.integers({8: 5, 16: 9, 32: 17}[data.BitsAllocated], min(data.BitsAllocated, 20) + 1))
    data.PixelRepresentation = int(rng.integers(2))
    shift = int(rng.integers(data.BitsAllocated - data.BitsStored + 1)) * int(rng.integers(2))
    data.HighBit = data.BitsStored - 1 + shift
    levels = 1 << data.BitsStored
    ramp = np.linspace(0, levels - 1, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    stored = np.clip(ramp + rng.normal(0, levels / 50, SHAPE), 0, levels - 1).astype(int)
    stored -= data.PixelRepresentation * levels // 2
    padding = np.zeros(SHAPE, bool)
    padding_kind = rng.choice(["none", "value", "range", "blank"])
    if padding_kind in ("value", "range") and data.BitsStored <= 16:
        padding[: SHAPE[0] // 4] = True
        lowest, extent = stored.min(), 0 if padding_kind == "value" else levels // 20
        ends = [lowest, lowest + extent]
        stored[padding] = rng.integers(ends[0], ends[1] + 1, padding.sum())
        padding = (stored >= ends[0]) & (stored <= ends[1])
        vr = "SS" if data.PixelRepresentation else "US"
        swapped = ends[:: int(rng.choice([-1, 1]))]
        data.add_new("PixelPaddingValue", vr, int(swapped[0]))
        if padding_kind == "range":
            data.add_new("PixelPaddingRangeLimit", vr, int(swapped[1]))
    elif padding_kind == "blank":
        data.add_new("PixelPaddingValue", "US", None)
    words = (stored & (levels - 1)) << shift
    if rng.integers(2):  # such as an overlay in the unused bits
        words |= (np.arange(SHAPE[1]) % 16 < 4).astype(int) << (data.BitsAllocated - 1) & ~((levels - 1) << shift)
        words |= rng.integers(0, 1 << shift, SHAPE)
    elif data.PixelRepresentation and not shift:
        words = stored & ((1 << data.BitsAllocated) - 1)
    order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
    raw = words.astype(f"{order}u{data.BitsAllocated // 8}").tobytes()
    data.add_new("PixelData", "OW", raw if data.BitsAllocated > 8 or order == "<" else swap_bytes(raw))
    return stored, padding


def swap_bytes(content: bytes) -> bytes:
    """Swap the bytes of each 16-bit word."""
    return np.frombuffer(content, "<u2").astype(">u2").tobytes()


def sample_lut(rng: np.random.Generator, data: Any, low: int, high: int, curve: float) -> tuple[Any, Any]:
    """Sample an item of a LUT sequence for values of low to high.

    Return the item, and a tuple: the LUT as a function, its bits, and whether it declares those bits.
    """
    bits = int(rng.integers(8, 17))
    first = int(np.clip(low + (high - low) * rng.choice([0, 0, 0.1]), -32768, 65535))
    count = int(min(65536, (high - first + 1) * rng.choice([1, 1, 0.8])))
    entries = np.round(np.linspace(0, 1, count) ** curve * ((1 << bits) - 1)).astype(int)
    entries[-1] = (1 << bits) - 1
    declared = int(rng.integers(bits, 17))
    item = pydicom.Dataset()
    kind = "SS" if first < 0 and rng.integers(2) else "US"
    item.add_new("LUTDescriptor", kind, [count % 65536, first if kind == "SS" else first % 65536, declared])
    little = data.file_meta.TransferSyntaxUID.is_little_endian
    if declared == 8 and rng.integers(2):
        packed = entries.astype(np.uint8).tobytes() + b"\0" * (count % 2)
        item.add_new("LUTData", "OW", packed if little else swap_bytes(packed))
    elif count < 32000 and rng.integers(2):
        item.add_new("LUTData", "US", entries.tolist())
    else:
        item.add_new("LUTData", "OW", entries.astype("<u2" if little else ">u2").tobytes())
    table = entries.tolist()
    # dcmtk trusts the declared bits. It also counts packed entries differently if there are few.
    return item, (lambda value: table[min(max(int(np.floor(value - first)), 0), count - 1)], bits, declared == bits)


def sample_modality(rng: np.random.Generator, data: Any, stored: np.ndarray) -> np.ndarray:
    """Sample a Modality LUT or rescale. Return [H, W] float values after it."""
    kind = rng.choice(["none", "blank", "rescale", "table"])
    if kind == "blank":
        data.RescaleSlope, data.RescaleIntercept = "", ""
        data.ModalityLUTSequence = [pydicom.Dataset()]
    elif kind == "rescale":
        data.RescaleSlope = rng.choice(["1", "0.5", "2", "-1", "0.017"])
        data.RescaleIntercept = rng.choice(["0", "-1024", "100.5"])
        return stored * float(data.RescaleSlope) + float(data.RescaleIntercept)
    elif kind == "table" and data.BitsStored <= 15:
        item, (look_up, _, _) = sample_lut(rng, data, int(stored.min()), int(stored.max()), 1.3)
        data.ModalityLUTSequence = [item]
        return np.array([[float(look_up(value)) for value in row] for row in stored])
    return stored.astype(float)


def sample_voi(
    rng: np.random.Generator, data: Any, values: np.ndarray, stored: np.ndarray, padding: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Sample a VOI LUT or window. Return [H, W] values of 0 to 255 after it, and whether dcmtk renders them alike."""
    low, high = float(values.min()), float(values.max())
    kind = rng.choice(["none", "LINEAR", "LINEAR", "SIGMOID", "LINEAR_EXACT", "table", "table"])
    data.VOILUTSequence = [pydicom.Dataset()] if rng.integers(2) else []
    if kind == "table" and high - low < 60000 and low >= -32768 and high < 65536:
        item, (look_up, bits, as_declared) = sample_lut(rng, data, int(np.floor(low)), int(np.ceil(high)), 0.7)
        data.VOILUTSequence.append(item)
        data.WindowCenter, data.WindowWidth = "1", "2"
        table = np.array([[float(look_up(value)) for value in row] for row in values])
        return table / ((1 << bits) - 1) * 255, as_declared
    if kind in ("none", "table"):
        data.WindowCenter, data.WindowWidth = "", ""
        if data.BitsAllocated == 8 and not data.PixelRepresentation and (values == stored).all():
            return stored / ((1 << data.BitsStored) - 1) * 255, False
        black, white = np.percentile(values[~padding], (0.1, 99.9))
        return np.clip((values - black) / (white - black), 0, 1) * 255, False
    centre, width = round((low + high) / 2 + (high - low) / 10, 1), max(2.0, round((high - low) * 0.7, 1))
    data.WindowCenter, data.WindowWidth = [str(centre), "5"], [str(width), "7"]
    data.VOILUTFunction = kind if kind != "LINEAR" or rng.integers(2) else ""
    if kind == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (values - centre) / width)), True
    if kind == "LINEAR_EXACT":  # dcmtk 3.6 treats it as LINEAR
        return np.clip((values - centre) / width + 0.5, 0, 1) * 255, False
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255, True


def write(sample: Sample, path: Path, seed: int) -> None:
    """Write a file, every third without preamble and file meta header."""
    syntax = sample.data.file_meta.TransferSyntaxUID
    if seed % 3:
        sample.data.save_as(path, enforce_file_format=True)
    else:
        without_header = pydicom.Dataset(sample.data)
        without_header.file_meta = pydicom.dataset.FileMetaDataset()
        pydicom.dcmwrite(path, without_header, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)


@pytest.mark.parametrize("seed", range(FILES))
def test_grey_values_match_the_reference(tmp_path: Path, seed: int) -> None:
    sample = sample_file(seed)
    write(sample, tmp_path / "image.dcm", seed)
    grey = load_grey(tmp_path / "image.dcm", 500)
    assert np.abs(grey - sample.expected).max() < 0.5 + 1e-3


def test_grey_values_match_dcmtk(tmp_path: Path) -> None:
    """All pixels are within one level of dcm2pnm's, except padding, which dcm2pnm renders."""
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm is not installed: apt install dcmtk")
    compared = 0
    for seed in range(FILES):
        sample = sample_file(seed)
        if not sample.matches_dcmtk:
            continue
        write(sample, tmp_path / "image.dcm", seed)
        grey = load_grey(tmp_path / "image.dcm", 500).astype(int)
        option = "+Wl" if any(len(item) for item in sample.data.VOILUTSequence) else "+Wi"
        number = str(1 + [len(item) > 0 for item in sample.data.VOILUTSequence].index(True)) if option == "+Wl" else "1"
        done = subprocess.run(["dcm2pnm", "-O", option, number, "+op", tmp_path / "image.dcm", tmp_path / "image.pgm"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, (seed, done.stderr)
        dcmtk_grey = np.asarray(Image.open(tmp_path / "image.pgm")).astype(int)
        difference = np.abs(dcmtk_grey - grey)[~sample.padding]
        assert difference.max() <= 1, (seed, sample.data)
        compared += 1
    assert compared > FILES / 4
