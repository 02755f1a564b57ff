"""DICOM → its grey values and the window they are meant to be seen through. Wants pip install '.[dicom]'."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from shard.dicom.file import UnsupportedDicom, is_dicom, is_installed, parse
from shard.dicom.lut import apply_table, read_table
from shard.dicom.pixels import Mask, decode, stored_values

__all__ = ["ENDINGS", "LUMA", "READERS", "Deep", "UnsupportedDicom", "any_dicom", "is_dicom", "is_dicom_file",
           "is_installed", "parse", "pixel_ratio", "read"]  # fmt: skip

ENDINGS = (".dcm", ".dicom")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601
READERS = ("pydicom", "pylibjpeg-openjpeg", "python-gdcm")  # packages that decide what a pixel is
HEAD = 4096  # bytes of a file that show whether it is DICOM
SQUARE = 1e-3  # by how much the sides of a pixel may differ and count as equal

Window = tuple[float, float]


class Deep(NamedTuple):
    """[H, W] values after rescale and VOI, those shown black and white (None: not said), whether low is bright.

    padding: where the pixels are no part of the image; None where there are none.
    """

    values: npt.NDArray[Any]
    bounds: Window | None
    inverted: bool
    padding: Mask | None = None


def any_dicom(paths: pd.Series) -> bool:
    """Whether any of the paths ends as DICOM files do."""
    return bool(paths.str.lower().str.endswith(ENDINGS).any())


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever it is called; False where it can't be read."""
    try:
        if not path.is_file():  # a named pipe would be waited for
            return False
        with path.open("rb") as file:
            return is_dicom(file.read(HEAD))
    except (OSError, ValueError):
        return False


def read(data: Any) -> Deep:
    """Apply the modality's table or rescale, then the VOI table or first window; PS3.3 C.11.1 and C.11.2.

    Low values are bright where the photometric interpretation is MONOCHROME1 or PresentationLUTShape is INVERSE; both
    together, as the standard wants them, mean it once. Colour becomes luma. A blank tag is an absent one.
    Raises UnsupportedDicom for photometric interpretations other than grey and colour, and for what can't be decoded.
    """
    photometric = str(data.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        indices, padding = stored_values(data)
        return _to_luma(apply_color_lut(indices, data))._replace(padding=padding)
    if int(data.SamplesPerPixel) > 1:
        return _to_luma(decode(data))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedDicom(f"DICOM with photometric interpretation {photometric or 'blank'} is not supported")
    values, padding = stored_values(data)
    rescaled = _apply_modality(values, data)
    shown, bounds = _apply_voi(rescaled, data)
    eight = values.dtype == np.uint8 and int(data.BitsStored) <= 8
    if bounds is None and eight and (rescaled == values).all():  # already what a screen shows
        bounds = 0.0, 2.0 ** int(data.BitsStored) - 1
    inverted = photometric == "MONOCHROME1" or _word(data, "PresentationLUTShape") == "INVERSE"
    return Deep(shown, bounds, inverted, padding)


def pixel_ratio(data: Any) -> float:
    """The height of a pixel by its width: 1 where it is square or the file does not say.

    PixelSpacing counts before ImagerPixelSpacing and NominalScannedPixelSpacing, those before PixelAspectRatio, as in
    dcmtk.
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        sides = _numbers(data, name)
        if len(sides) == 2 and all(side is not None and 0 < side < math.inf for side in sides):
            assert sides[0] is not None and sides[1] is not None
            ratio = sides[0] / sides[1]
            return 1.0 if abs(ratio - 1) < SQUARE else ratio
    return 1.0


def _to_luma(colours: npt.NDArray[Any]) -> Deep:
    luma = colours[:, :, :3].astype(np.float32) @ LUMA
    return Deep(luma, (0.0, 255.0) if colours.dtype == np.uint8 else None, inverted=False)


def _apply_modality(values: npt.NDArray[Any], data: Any) -> npt.NDArray[Any]:
    table = read_table(data, "ModalityLUTSequence")
    if table:
        return apply_table(table, values)
    slope, intercept = (_first(data, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        return values
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise UnsupportedDicom(f"DICOM with RescaleSlope {slope:g} and RescaleIntercept {intercept:g}")
    return values.astype(np.float64) * slope + intercept


def _apply_voi(values: npt.NDArray[Any], data: Any) -> tuple[npt.NDArray[Any], Window | None]:
    """The values, and which of them are black and white: by the table, else the first window; None without both."""
    table = read_table(data, "VOILUTSequence")
    if table:
        return apply_table(table, values), (0.0, float(table.white))
    windows = zip(_numbers(data, "WindowCenter"), _numbers(data, "WindowWidth"), strict=False)
    centre, width = next((window for window in windows if None not in window), (None, None))
    if centre is None or width is None or not math.isfinite(centre + width):
        return values, None
    function = _word(data, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UnsupportedDicom(f"DICOM with VOILUTFunction {function} is not supported")
    if function == "LINEAR":  # runs from the centre of the darkest to that of the brightest value
        centre, width = centre - 0.5, width - 1
    if width < 0 or (width == 0 and function != "LINEAR"):
        return values, None  # the standard forbids such a window
    if width == 0:
        return values > centre, (0.0, 1.0)
    if function == "SIGMOID":
        steep = np.clip((values.astype(np.float64) - centre) * (-4 / width), -700, 700)
        return 1 / (1 + np.exp(steep)), (0.0, 1.0)
    return values, (centre - width / 2, centre + width / 2)


def _word(data: Any, name: str) -> str:
    """A defined term, in the capitals that the standard wants; "" where the tag is absent or blank."""
    return str(data.get(name) or "").strip().upper()


def _numbers(data: Any, name: str) -> list[float | None]:
    """The values of a tag of numbers, blank ones as None; [] where it is absent or blank."""
    value = data.get(name)
    if value is None or value == "":
        return []
    several = hasattr(value, "__len__") and not isinstance(value, str)
    return [None if number in (None, "") else float(number) for number in (value if several else [value])]


def _first(data: Any, name: str) -> float | None:
    return next(iter(_numbers(data, name)), None)
