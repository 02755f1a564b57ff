"""Read a DICOM file's tags about patient and image, without its pixels. Requires pip install '.[dicom]'."""

from __future__ import annotations

import functools
import re
import warnings
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

_KEYWORDS = (
    "Modality", "PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyInstanceUID",
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "ViewPosition", "ViewCodeSequence", "BodyPartExamined",
    "Rows", "Columns",
)  # fmt: skip
_DICOMDIR = "1.2.840.10008.1.3.10"  # Media Storage Directory, PS3.10
# Placeholders that de-identification software writes as PatientID: they identify no patient.
_PLACEHOLDER_ID = re.compile(
    r"(?i)anon(ymous|ymized|ymised|ymous patient|ymized patient)?|unknown|none|null|n/?a|nan|no ?id|"
    r"removed|deleted|redacted|de-?identified|patient ?id|[0 ._*x?-]*"
)


class Tags(NamedTuple):
    """The text of each tag, "" if it is absent.

    date: YYYY-MM-DD. is_image: whether Rows and Columns are set. kind: the modality, or DICOMDIR.
    """

    patient: str = ""
    study: str = ""
    view: str = ""
    sex: str = ""
    age: str = ""
    date: str = ""
    modality: str = ""
    body_part: str = ""
    is_image: bool = False
    kind: str = ""


def read_tags(path: Path) -> Tags | None:
    """Read the tags of a file; None if it can't be parsed as DICOM."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about values that violate the standard
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_KEYWORDS))
            sop_class = str(getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
            if sop_class == _DICOMDIR:
                return Tags(kind="DICOMDIR")
            return _to_tags(data) if len(data) else None
        except Exception:  # corrupt bytes raise anything; decoding reports the reason
            return None


def _to_tags(data: Any) -> Tags:
    text = functools.partial(_get_text, data)
    patient, modality = text("PatientID"), text("Modality")
    dates = (_parse_date(text(name)) for name in ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate"))
    study_date = next(filter(None, dates), None)
    return Tags(
        patient="" if _PLACEHOLDER_ID.fullmatch(patient) else patient,
        study=text("StudyInstanceUID"),
        view=text("ViewPosition") or _get_view_code(data),
        sex=text("PatientSex"),
        age=text("PatientAge") or _years_between(_parse_date(text("PatientBirthDate")), study_date),
        date=study_date.isoformat() if study_date else "",
        modality=modality.upper(),
        body_part=text("BodyPartExamined").upper(),
        is_image=bool(text("Rows") and text("Columns")),
        kind=modality or "no modality",
    )


def _get_text(data: Any, name: str) -> str:
    """Return a value as text; "" if it is absent or violates its value representation."""
    try:
        value = data.get(name)
        text = "" if value is None else str(value)
        text.encode()
    except Exception:  # pydicom decodes values on access
        return ""
    return " ".join(text.replace("\0", " ").split())


def _get_view_code(data: Any) -> str:
    try:
        return str(data.ViewCodeSequence[0].CodeMeaning)  # such as "postero-anterior"; PS3.16, CID 4010
    except Exception:  # absent, empty, or broken
        return ""


def _parse_date(text: str) -> date | None:
    """Parse a date: DA of PS3.5, or the dotted form of ACR-NEMA. None if it is not one."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", text)
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:  # such as month 0
        return None


def _years_between(birth: date | None, day: date | None) -> str:
    """Return the completed years between two dates as text; "" if one is missing or they are in the wrong order."""
    if birth is None or day is None or day < birth:
        return ""
    return str(day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day)))
