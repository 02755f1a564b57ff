"""Seeded DICOM files of every kind of bits, tables, windows and padding, against a slow twin in float64 and dcmtk."""

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


class Made(NamedTuple):
    """A data set, the greys that it should give ([H, W] float), its padding, and whether dcmtk shows it so too."""

    data: Any
    wanted: np.ndarray
    padding: np.ndarray
    shown_by_dcmtk: bool


def make(seed: int) -> Made:
    """A data set with tags and pixels drawn by the seed."""
    random = np.random.default_rng(seed)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" + random.choice(["", ".1", ".2"])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{seed + 1}"
    data.Rows, data.Columns, data.SamplesPerPixel = *SHAPE, 1
    stored, padding = draw_pixels(random, data)
    values = draw_modality(random, data, stored)
    greys, shown = draw_voi(random, data, values, stored, padding)
    data.PhotometricInterpretation = random.choice(["MONOCHROME1", "MONOCHROME2"])
    data.PresentationLUTShape = random.choice(["", "IDENTITY", "INVERSE"])
    if data.PhotometricInterpretation == "MONOCHROME1" or data.PresentationLUTShape == "INVERSE":
        greys = 255 - greys
    # dcmtk takes the shape's word where the two tags disagree, rescales to whole numbers, and has another order of the
    # words of 32 bits in big endian.
    shown &= (data.PhotometricInterpretation, data.PresentationLUTShape) != ("MONOCHROME1", "IDENTITY")
    shown &= bool((values == values.round()).all()) or (len(data.VOILUTSequence) == 0 and np.ptp(values) > 1000)
    shown &= data.BitsAllocated < 32 or data.file_meta.TransferSyntaxUID.is_little_endian
    greys[padding] = 0
    return Made(data, greys, padding, shown)


def draw_pixels(random: np.random.Generator, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write pixels: a ramp with noise, bits that mean nothing around it, and padding at the top. Return [H, W] int."""
    data.BitsAllocated = int(random.choice([8, 16, 16, 16, 32]))
    data.BitsStored = int(random.integers({8: 5, 16: 9, 32: 17}[data.BitsAllocated], min(data.BitsAllocated, 20) + 1))
    data.PixelRepresentation = int(random.integers(2))
    shift = int(random.integers(data.BitsAllocated - data.BitsStored + 1)) * int(random.integers(2))
    data.HighBit = data.BitsStored - 1 + shift
    levels = 1 << data.BitsStored
    ramp = np.linspace(0, levels - 1, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    stored = np.clip(ramp + random.normal(0, levels / 50, SHAPE), 0, levels - 1).astype(int)
    stored -= data.PixelRepresentation * levels // 2
    padding = np.zeros(SHAPE, bool)
    kind = random.choice(["none", "value", "range", "blank"])
    if kind in ("value", "range") and data.BitsStored <= 16:
        padding[: SHAPE[0] // 4] = True
        lowest, extent = stored.min(), 0 if kind == "value" else levels // 20
        ends = [lowest, lowest + extent]
        stored[padding] = random.integers(ends[0], ends[1] + 1, padding.sum())
        padding = (stored >= ends[0]) & (stored <= ends[1])
        vr = "SS" if data.PixelRepresentation else "US"
        swapped = ends[:: int(random.choice([-1, 1]))]
        data.add_new("PixelPaddingValue", vr, int(swapped[0]))
        if kind == "range":
            data.add_new("PixelPaddingRangeLimit", vr, int(swapped[1]))
    elif kind == "blank":
        data.add_new("PixelPaddingValue", "US", None)
    words = (stored & (levels - 1)) << shift
    if random.integers(2):  # an old overlay, say, in the bits that are not used
        words |= (np.arange(SHAPE[1]) % 16 < 4).astype(int) << (data.BitsAllocated - 1) & ~((levels - 1) << shift)
        words |= random.integers(0, 1 << shift, SHAPE)
    elif data.PixelRepresentation and not shift:
        words = stored & ((1 << data.BitsAllocated) - 1)
    order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
    raw = words.astype(f"{order}u{data.BitsAllocated // 8}").tobytes()
    data.add_new("PixelData", "OW", raw if data.BitsAllocated > 8 or order == "<" else swap(raw))
    return stored, padding


def swap(content: bytes) -> bytes:
    """Bytes in words of the other order."""
    return np.frombuffer(content, "<u2").astype(">u2").tobytes()


def draw_table(random: np.random.Generator, data: Any, low: int, high: int, curve: float) -> tuple[Any, Any]:
    """An item of a LUT sequence, for values of low to high, and the same table as a function of a value."""
    bits = int(random.integers(8, 17))
    first = int(np.clip(low + (high - low) * random.choice([0, 0, 0.1]), -32768, 65535))
    count = int(min(65536, (high - first + 1) * random.choice([1, 1, 0.8])))
    entries = np.round(np.linspace(0, 1, count) ** curve * ((1 << bits) - 1)).astype(int)
    entries[-1] = (1 << bits) - 1
    declared = int(random.integers(bits, 17))
    item = pydicom.Dataset()
    kind = "SS" if first < 0 and random.integers(2) else "US"
    item.add_new("LUTDescriptor", kind, [count % 65536, first if kind == "SS" else first % 65536, declared])
    little = data.file_meta.TransferSyntaxUID.is_little_endian
    if declared == 8 and random.integers(2):
        packed = entries.astype(np.uint8).tobytes() + b"\0" * (count % 2)
        item.add_new("LUTData", "OW", packed if little else swap(packed))
    elif count < 32000 and random.integers(2):
        item.add_new("LUTData", "US", entries.tolist())
    else:
        item.add_new("LUTData", "OW", entries.astype("<u2" if little else ">u2").tobytes())
    table = entries.tolist()
    # dcmtk takes the declared bits at their word; with few entries it counts those that are packed otherwise.
    return item, (lambda value: table[min(max(int(np.floor(value - first)), 0), count - 1)], bits, declared == bits)


def draw_modality(random: np.random.Generator, data: Any, stored: np.ndarray) -> np.ndarray:
    """[H, W] float values after the Modality LUT or rescale, whose tags are drawn."""
    kind = random.choice(["none", "blank", "rescale", "table"])
    if kind == "blank":
        data.RescaleSlope, data.RescaleIntercept = "", ""
        data.ModalityLUTSequence = [pydicom.Dataset()]
    elif kind == "rescale":
        data.RescaleSlope = random.choice(["1", "0.5", "2", "-1", "0.017"])
        data.RescaleIntercept = random.choice(["0", "-1024", "100.5"])
        return stored * float(data.RescaleSlope) + float(data.RescaleIntercept)
    elif kind == "table" and data.BitsStored <= 15:
        item, (look_up, _, _) = draw_table(random, data, int(stored.min()), int(stored.max()), 1.3)
        data.ModalityLUTSequence = [item]
        return np.array([[float(look_up(value)) for value in row] for row in stored])
    return stored.astype(float)


def draw_voi(
    random: np.random.Generator, data: Any, values: np.ndarray, stored: np.ndarray, padding: np.ndarray
) -> tuple[np.ndarray, bool]:
    """[H, W] greys of 0 to 255 after the VOI, whose tags are drawn, and whether dcmtk makes the same of them."""
    low, high = float(values.min()), float(values.max())
    kind = random.choice(["none", "LINEAR", "LINEAR", "SIGMOID", "LINEAR_EXACT", "table", "table"])
    data.VOILUTSequence = [pydicom.Dataset()] if random.integers(2) else []
    if kind == "table" and high - low < 60000 and low >= -32768 and high < 65536:
        item, (look_up, bits, as_declared) = draw_table(random, data, int(np.floor(low)), int(np.ceil(high)), 0.7)
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
    data.VOILUTFunction = kind if kind != "LINEAR" or random.integers(2) else ""
    if kind == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (values - centre) / width)), True
    if kind == "LINEAR_EXACT":  # dcmtk 3.6 does not know it, and shows LINEAR
        return np.clip((values - centre) / width + 0.5, 0, 1) * 255, False
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255, True


def write(made: Made, path: Path, seed: int) -> None:
    """Every third file without its header, as a bare data set."""
    syntax = made.data.file_meta.TransferSyntaxUID
    if seed % 3:
        made.data.save_as(path, enforce_file_format=True)
    else:
        bare = pydicom.Dataset(made.data)
        bare.file_meta = pydicom.dataset.FileMetaDataset()
        pydicom.dcmwrite(path, bare, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)


@pytest.mark.parametrize("seed", range(FILES))
def test_greys_are_those_of_the_slow_twin(tmp_path: Path, seed: int) -> None:
    made = make(seed)
    write(made, tmp_path / "image.dcm", seed)
    grey = load_grey(tmp_path / "image.dcm", 500)
    assert np.abs(grey - made.wanted).max() < 0.5 + 1e-3


def test_greys_are_those_of_dcmtk(tmp_path: Path) -> None:
    """What dcm2pnm shows as black and white outside padding, which it draws, lies within a level of ours."""
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm is not installed: apt install dcmtk")
    compared = 0
    for seed in range(FILES):
        made = make(seed)
        if not made.shown_by_dcmtk:
            continue
        write(made, tmp_path / "image.dcm", seed)
        grey = load_grey(tmp_path / "image.dcm", 500).astype(int)
        chosen = "+Wl" if any(len(item) for item in made.data.VOILUTSequence) else "+Wi"
        number = str(1 + [len(item) > 0 for item in made.data.VOILUTSequence].index(True)) if chosen == "+Wl" else "1"
        done = subprocess.run(["dcm2pnm", "-O", chosen, number, "+op", tmp_path / "image.dcm", tmp_path / "image.pgm"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, (seed, done.stderr)
        theirs = np.asarray(Image.open(tmp_path / "image.pgm")).astype(int)
        differing = np.abs(theirs - grey)[~made.padding]
        assert differing.max() <= 1, (seed, made.data)
        compared += 1
    assert compared > FILES / 4
