"""Parse the bytes of a DICOM file into a pydicom data set. Files that are not a single image are refused."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
from typing import Any

# Explicit encodings name the value representation (VR) of each element by two of these letters.
_VALUE_REPRESENTATIONS = re.compile(b"A[EST]|CS|D[AST]|F[DL]|IS|L[OT]|O[BDFLVW]|PN|S[HLQSTV]|TM|U[CILNRSTV]")
# Part of the name of an SOP class without an image → its description. PS3.4 B.5 lists the names.
_CLASSES_WITHOUT_IMAGE = {
    "Media Storage Directory": "a DICOMDIR, which lists the files on a disc",
    "Encapsulated": "an encapsulated document", " SR ": "a structured report",
    "Key Object Selection": "a list of key images",
    "Presentation State": "a presentation state, which describes how to display another image",
    "Waveform": "a waveform", "Segmentation": "a segmentation", "Parametric Map": "a parametric map",
    "RT ": "a radiotherapy object",
}  # fmt: skip


class UnsupportedDicom(Exception):
    """A DICOM file that does not contain a single grey image. The text is the reason."""


def is_dicom(content: bytes) -> bool:
    """Whether content is DICOM, with or without a preamble; the first few hundred bytes suffice."""
    return content[128:132] == b"DICM" or _guess_encoding(content) is not None


def has_pydicom() -> bool:
    """Whether pydicom is installed, without which no DICOM file can be read."""
    return importlib.util.find_spec("pydicom") is not None


def read_dataset(content: bytes) -> Any:
    """Parse a file into a pydicom data set, without decoding its pixels.

    If the file does not name its transfer syntax, file_meta.TransferSyntaxUID is the one the file was read with.
    Raises UnsupportedDicom if the file does not contain exactly one image.
    """
    if not has_pydicom():
        raise UnsupportedDicom("DICOM: to read it, pip install '.[dicom]'")
    data = _read(content)
    if not data.file_meta.get("TransferSyntaxUID"):
        _set_transfer_syntax(data)
    _check_has_image(data)
    frames = int(data.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnsupportedDicom(f"DICOM with {frames} frames, expected one: a video or a stack of slices")
    return data


def _read(content: bytes) -> Any:
    import pydicom

    encoding = None if content[128:132] == b"DICM" else _guess_encoding(content)
    if encoding is None or content[:2] == b"\2\0":  # pydicom reads a file meta header without a preamble, too
        return pydicom.dcmread(io.BytesIO(content), force=True)
    implicit, little_endian = encoding
    data = pydicom.filereader.read_dataset(io.BytesIO(content), implicit, little_endian)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.set_original_encoding(implicit, little_endian)
    return data


def _guess_encoding(content: bytes) -> tuple[bool, bool] | None:
    """Return (implicit VR, little endian) of a file without a preamble; None if it does not begin like DICOM.

    Such a file begins with an element of group 2, the file meta header, or of group 8, the first group after it.
    """
    if len(content) < 24:
        return None
    for little_endian in (True, False):
        order = "<" if little_endian else ">"
        group, element, length = struct.unpack(order + "HHI", content[:8])
        if group not in (2, 8) or element > 0x2FFF:
            continue
        if _VALUE_REPRESENTATIONS.fullmatch(content[4:6]):
            return False, little_endian
        if group == 8 and length % 2 == 0 and length + 12 <= len(content):
            next_tag = struct.unpack_from(order + "HH", content, 8 + length)
            if (8, element) < next_tag < (0x30, 0):
                return True, little_endian
    return None


def _set_transfer_syntax(data: Any) -> None:
    """Set TransferSyntaxUID to the encoding that the data set was read with.

    Raises UnsupportedDicom if the pixels are compressed.
    """
    from pydicom import uid

    implicit, little_endian = data.original_encoding
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise UnsupportedDicom("DICOM without TransferSyntaxUID: the compression of its pixels is unknown")
    little_endian_syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = little_endian_syntax if little_endian else uid.ExplicitVRBigEndian


def _check_has_image(data: Any) -> None:
    """Raise UnsupportedDicom if the SOP class is not an image's, or if pixels or their size are missing."""
    sop_class = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    name = str(getattr(sop_class, "name", sop_class or "no SOPClassUID"))
    description = next((text for part, text in _CLASSES_WITHOUT_IMAGE.items() if part in f" {name}"), None)
    if description and "RT Image" not in name:  # an RT Image is a portal image, so a radiograph
        raise UnsupportedDicom(f"DICOM without an image: {description} ({name})")
    if not any(pixels in data for pixels in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        should_have_pixels = not sop_class or " Image " in f" {name}"
        problem = "broken image: DICOM without pixels" if should_have_pixels else "DICOM without an image"
        raise UnsupportedDicom(f"{problem} ({name})")
    missing = [tag for tag in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel") if not data.get(tag)]
    if missing:
        raise UnsupportedDicom(f"broken image: DICOM without {' and '.join(missing)}")
