"""Read a DICOM file's grey values and the window to display them with. Requires pip install '.[dicom]'."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from shard.dicom.file import UnsupportedDicom, has_pydicom, is_dicom, read_dataset
from shard.dicom.lut import apply_lut, read_lut
from shard.dicom.pixels import Mask, decode_pixels, read_stored_values

__all__ = ["DECODER_PACKAGES", "LUMA", "SUFFIXES", "DicomImage", "UnsupportedDicom", "any_dicom_suffix", "has_pydicom",
           "is_dicom", "pixel_aspect_ratio", "read_dataset", "read_image"]  # fmt: skip

SUFFIXES = (".dcm", ".dicom")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue: ITU-R BT.601
DECODER_PACKAGES = ("pydicom", "pylibjpeg-openjpeg", "python-gdcm")  # their versions can change a pixel
SQUARE_TOLERANCE = 1e-3  # pixels whose sides differ by a smaller share count as square

Window = tuple[float, float]


class DicomImage(NamedTuple):
    """[H, W] values after the modality and VOI transforms, and how to display them.

    window: the values shown black and white, None if the file defines none. inverted: whether low values are bright.
    padding: [H, W] mask of pixels outside the image, None if there are none.
    """

    values: npt.NDArray[Any]
    window: Window | None
    inverted: bool
    padding: Mask | None = None


def any_dicom_suffix(paths: pd.Series) -> bool:
    """Whether any of the paths has a suffix of DICOM files."""
    return bool(paths.str.lower().str.endswith(SUFFIXES).any())


def read_image(data: Any) -> DicomImage:
    """Decode a data set and apply its Modality LUT or rescale, then its first VOI LUT or window.

    Low values are bright if PhotometricInterpretation is MONOCHROME1 or PresentationLUTShape is INVERSE. The standard
    requires both together, so they invert only once. Colour becomes luma. Blank tags count as absent.
    Raises UnsupportedDicom for other photometric interpretations and for pixels that can't be decoded.
    Source: PS3.3 C.11.1 and C.11.2.
    """
    photometric = str(data.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        indices, padding = read_stored_values(data)
        return _to_luma(apply_color_lut(indices, data))._replace(padding=padding)
    if int(data.SamplesPerPixel) > 1:
        return _to_luma(decode_pixels(data))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedDicom(f"DICOM with photometric interpretation {photometric or 'blank'} is not supported")
    stored, padding = read_stored_values(data)
    rescaled = _apply_modality_lut(stored, data)
    values, window = _apply_voi_lut(rescaled, data)
    is_8_bit = stored.dtype == np.uint8 and int(data.BitsStored) <= 8
    if window is None and is_8_bit and (rescaled == stored).all():  # the values are display values already
        window = 0.0, 2.0 ** int(data.BitsStored) - 1
    inverted = photometric == "MONOCHROME1" or _get_term(data, "PresentationLUTShape") == "INVERSE"
    return DicomImage(values, window, inverted, padding)


def pixel_aspect_ratio(data: Any) -> float:
    """Return the height of a pixel divided by its width: 1 if it is square or unknown.

    PixelSpacing takes precedence over ImagerPixelSpacing, then NominalScannedPixelSpacing, then PixelAspectRatio, as
    in dcmtk.
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        sides = _get_floats(data, name)
        if len(sides) == 2 and all(side is not None and 0 < side < math.inf for side in sides):
            assert sides[0] is not None and sides[1] is not None
            ratio = sides[0] / sides[1]
            return 1.0 if abs(ratio - 1) < SQUARE_TOLERANCE else ratio
    return 1.0


def _to_luma(rgb: npt.NDArray[Any]) -> DicomImage:
    luma = rgb[:, :, :3].astype(np.float32) @ LUMA
    return DicomImage(luma, (0.0, 255.0) if rgb.dtype == np.uint8 else None, inverted=False)


def _apply_modality_lut(values: npt.NDArray[Any], data: Any) -> npt.NDArray[Any]:
    lut = read_lut(data, "ModalityLUTSequence")
    if lut:
        return apply_lut(lut, values)
    slope, intercept = (_get_first_float(data, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        return values
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise UnsupportedDicom(f"DICOM with RescaleSlope {slope:g} and RescaleIntercept {intercept:g}")
    return values.astype(np.float64) * slope + intercept


def _apply_voi_lut(values: npt.NDArray[Any], data: Any) -> tuple[npt.NDArray[Any], Window | None]:
    """Apply the first VOI LUT or window. Return the values and the window, None if it is undefined."""
    lut = read_lut(data, "VOILUTSequence")
    if lut:
        return apply_lut(lut, values), (0.0, float(lut.white))
    windows = zip(_get_floats(data, "WindowCenter"), _get_floats(data, "WindowWidth"), strict=False)
    centre, width = next((window for window in windows if None not in window), (None, None))
    if centre is None or width is None or not math.isfinite(centre + width):
        return values, None
    function = _get_term(data, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UnsupportedDicom(f"DICOM with VOILUTFunction {function} is not supported")
    if function == "LINEAR":  # spans width - 1 values around centre - 0.5, by PS3.3 C.11.2.1.2.1
        centre, width = centre - 0.5, width - 1
    if width < 0 or (width == 0 and function != "LINEAR"):
        return values, None  # the standard forbids such a window
    if width == 0:
        return values > centre, (0.0, 1.0)
    if function == "SIGMOID":
        exponent = np.clip((values.astype(np.float64) - centre) * (-4 / width), -700, 700)
        return 1 / (1 + np.exp(exponent)), (0.0, 1.0)
    return values, (centre - width / 2, centre + width / 2)


def _get_term(data: Any, name: str) -> str:
    """Return a defined term in upper case, as the standard requires; "" if the tag is absent or blank."""
    return str(data.get(name) or "").strip().upper()


def _get_floats(data: Any, name: str) -> list[float | None]:
    """Return the values of a numeric tag, None for each blank one; [] if the tag is absent or blank."""
    value = data.get(name)
    if value is None or value == "":
        return []
    is_sequence = hasattr(value, "__len__") and not isinstance(value, str)
    return [None if number in (None, "") else float(number) for number in (value if is_sequence else [value])]


def _get_first_float(data: Any, name: str) -> float | None:
    return next(iter(_get_floats(data, name)), None)
