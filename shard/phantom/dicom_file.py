"""Write a synthetic radiograph as a DICOM file, for trying a hospital's folder without one.

Requires pip install '.[dicom]'.
"""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

from PIL import Image

_DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage – For Presentation, PS3.6


class Tags(NamedTuple):
    """What a DICOM file says of its image. sex: F or M. age: in years. view: AP, PA or LL."""

    patient: str
    study: int
    view_number: int
    sex: str
    age: int
    view: str


def encode_dicom(image: Image.Image, tags: Tags) -> bytes:
    """Encode an 8-bit grey image as DICOM: uncompressed, MONOCHROME2, explicit VR little endian (PS3.10).

    The same image and tags give the same bytes: UIDs are hashes of the tags.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data = Dataset()
    data.SOPClassUID = _DIGITAL_X_RAY
    data.SOPInstanceUID = _make_uid(*tags)
    data.StudyInstanceUID = _make_uid("study", tags.patient, tags.study)
    data.SeriesInstanceUID = _make_uid("series", tags.patient, tags.study, tags.view_number)
    data.StudyDate = f"2019{tags.study:02d}15"
    data.Modality = "DX"
    data.BodyPartExamined = "CHEST"
    data.PatientID, data.PatientName = tags.patient, f"SYNTHETIC^{tags.patient}"
    data.PatientSex, data.PatientAge = tags.sex, f"{tags.age:03d}Y"
    data.ViewPosition = tags.view
    data.Rows, data.Columns = image.height, image.width
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    pixels = image.tobytes()
    data.PixelData = pixels + bytes(len(pixels) % 2)  # of even length
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _make_uid(*parts: object) -> str:
    """Make a UID under the root for UUIDs, 2.25 (PS3.5, B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], 'big')}"
