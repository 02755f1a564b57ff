"""The bytes of a DICOM file → its data set, however they are written; files without one picture are refused."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
from typing import Any

# Explicit encodings name the kind of each value by two of these letters.
_KINDS = re.compile(b"A[EST]|CS|D[AST]|F[DL]|IS|L[OT]|O[BDFLVW]|PN|S[HLQSTV]|TM|U[CILNRSTV]")
# What is in the names of classes that hold no picture → what to call them. The standard's names are PS3.4 B.5's.
_NO_PICTURES = {
    "Media Storage Directory": "a DICOMDIR, the list of a disc's files", "Encapsulated": "an encapsulated document",
    " SR ": "a structured report", "Key Object Selection": "a list of key images",
    "Presentation State": "a presentation state, which says how to show another file's image",
    "Waveform": "a waveform", "Segmentation": "a segmentation", "Parametric Map": "a map of values",
    "RT ": "a radiotherapy object",
}  # fmt: skip


class UnsupportedDicom(Exception):
    """A DICOM file that holds no single grey image; its text is the reason."""


def is_dicom(content: bytes) -> bool:
    """Whether the bytes, or the first few hundred of them, are a DICOM file's, with or without a preamble."""
    return content[128:132] == b"DICM" or _bare_encoding(content) is not None


def is_installed() -> bool:
    """Whether DICOM files can be read here."""
    return importlib.util.find_spec("pydicom") is not None


def parse(content: bytes) -> Any:
    """The pydicom data set of a file; its pixels are not decoded yet.

    Its file_meta has a TransferSyntaxUID, a guessed one where the file has none. Raises UnsupportedDicom where the file
    holds no picture, or more than one.
    """
    if not is_installed():
        raise UnsupportedDicom("DICOM: to read it, pip install '.[dicom]'")
    data = _read(content)
    if not data.file_meta.get("TransferSyntaxUID"):
        _guess_syntax(data)
    _refuse_other_kinds(data)
    frames = int(data.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnsupportedDicom(f"DICOM of {frames} frames, not one: a video or a stack of slices")
    return data


def _read(content: bytes) -> Any:
    import pydicom

    encoding = None if content[128:132] == b"DICM" else _bare_encoding(content)
    if encoding is None or content[:2] == b"\2\0":  # a header, which pydicom reads without a preamble too
        return pydicom.dcmread(io.BytesIO(content), force=True)
    implicit, little = encoding
    data = pydicom.filereader.read_dataset(io.BytesIO(content), implicit, little)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.set_original_encoding(implicit, little)
    return data


def _bare_encoding(content: bytes) -> tuple[bool, bool] | None:
    """Whether a file without preamble is implicit and little endian; None where it does not begin as DICOM.

    Its first element is of group 2, the header, or of group 8, the first after it.
    """
    if len(content) < 24:
        return None
    for little in (True, False):
        order = "<" if little else ">"
        group, element, length = struct.unpack(order + "HHI", content[:8])
        if group not in (2, 8) or element > 0x2FFF:
            continue
        if _KINDS.fullmatch(content[4:6]):
            return False, little
        if group == 8 and length % 2 == 0 and length + 12 <= len(content):
            following = struct.unpack_from(order + "HH", content, 8 + length)
            if (8, element) < following < (0x30, 0):
                return True, little
    return None


def _guess_syntax(data: Any) -> None:
    """Name the transfer syntax that a data set without one was read by. Raises UnsupportedDicom if compressed."""
    from pydicom import uid

    implicit, little = data.original_encoding
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise UnsupportedDicom("DICOM without TransferSyntaxUID, which would name how its pixels are compressed")
    plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian


def _refuse_other_kinds(data: Any) -> None:
    kind = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    name = str(getattr(kind, "name", kind or "no SOPClassUID"))
    words = next((words for part, words in _NO_PICTURES.items() if part in f" {name}"), None)
    if "RT Image" in name:  # a portal image, and a picture
        words = None
    if words:
        raise UnsupportedDicom(f"DICOM without an image: {words} ({name})")
    if not any(pixels in data for pixels in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        lost = not kind or " Image " in f" {name}"
        raise UnsupportedDicom(f"{'broken image: DICOM without pixels' if lost else 'DICOM without an image'} ({name})")
    missing = [tag for tag in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel") if not data.get(tag)]
    if missing:
        raise UnsupportedDicom(f"broken image: DICOM without {' and '.join(missing)}")
