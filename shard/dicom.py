"""DICOM → its grey values and the window they are meant to be seen through. Wants pip install '.[dicom]'."""

from __future__ import annotations

import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

ENDINGS = (".dcm", ".dicom")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601
READERS = ("pydicom", "pylibjpeg-openjpeg", "python-gdcm")  # packages that decide what a pixel is


class UnsupportedDicom(Exception):
    """A DICOM file that holds no single grey image; its text is the reason."""


class Deep(NamedTuple):
    """[H, W] values after rescale and VOI, those shown black and white (None: not said), whether low is bright."""

    values: npt.NDArray[Any]
    bounds: tuple[float, float] | None
    inverted: bool


def is_dicom(content: bytes) -> bool:
    """Whether the bytes are a DICOM file's."""
    return content[128:132] == b"DICM"


def any_dicom(paths: pd.Series) -> bool:
    """Whether any of the paths ends as DICOM files do."""
    return bool(paths.str.lower().str.endswith(ENDINGS).any())


def is_installed() -> bool:
    """Whether DICOM files can be read here."""
    return importlib.util.find_spec("pydicom") is not None


def parse(content: bytes) -> Any:
    """The pydicom data set of a file; its pixels are not decoded yet."""
    if not is_installed():
        raise UnsupportedDicom("DICOM: to read it, pip install '.[dicom]'")
    import pydicom

    data = pydicom.dcmread(io.BytesIO(content))
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise UnsupportedDicom(f"DICOM of {data.NumberOfFrames} frames, not one")
    return data


def read(data: Any) -> Deep:
    """Apply the modality's rescale (or table), then the VOI table or first window; PS3.3 C.11.1 and C.11.2.

    MONOCHROME1, where low values are bright, is reported as inverted. Colour becomes luma.
    Raises UnsupportedDicom for photometric interpretations other than grey and colour.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    photometric = str(data.PhotometricInterpretation)
    values = pixel_array(data)  # YBR comes as RGB
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    if values.ndim == 3:
        luma = values[:, :, :3].astype(np.float32) @ LUMA
        return Deep(luma, (0.0, 255.0) if values.dtype == np.uint8 else None, inverted=False)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedDicom(f"DICOM with photometric interpretation {photometric} is not supported")
    eight = int(data.BitsStored) <= 8 and values.dtype == np.uint8
    rescaled = apply_modality_lut(values, data)
    shown, bounds = _apply_voi(rescaled, data)
    if bounds is None and eight and (rescaled == values).all():  # already what a screen shows
        bounds = 0.0, 2.0 ** int(data.BitsStored) - 1
    return Deep(shown, bounds, inverted=photometric == "MONOCHROME1")


def _apply_voi(values: npt.NDArray[Any], data: Any) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
    from pydicom.pixels import apply_voi, apply_windowing

    if data.get("VOILUTSequence"):
        lut_bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, data), (0.0, 2.0**lut_bits - 1)
    centre, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    narrowest = 1.0 if data.get("VOILUTFunction") in (None, "", "LINEAR") else np.finfo(np.float32).tiny
    if centre is None or width is None or width < narrowest:
        return values, None  # no window, or one that the standard forbids
    # What the window makes of values far outside it is what it shows as black and as white.
    ends = apply_windowing(np.array([centre - 100 * (width + 1), centre + 100 * (width + 1)]), data)
    return apply_windowing(values, data), (float(ends[0]), float(ends[1]))


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)

