"""What a DICOM file's tags say of patient and picture, its pixels unread. Wants pip install '.[dicom]'."""

from __future__ import annotations

import re
import warnings
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

_TAGS = (
    "Modality", "PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyInstanceUID",
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "ViewPosition", "ViewCodeSequence", "BodyPartExamined",
    "Rows", "Columns",
)  # fmt: skip
_DICOMDIR = "1.2.840.10008.1.3.10"  # Media Storage Directory, PS3.10
# What software that takes names out writes in their place: nobody's number.
_NOBODY = re.compile(r"(?i)anon(ymous|ymized|ymised|ymous patient|ymized patient)?|unknown|none|null|n/?a|nan|no ?id|"
                     r"removed|deleted|redacted|de-?identified|patient ?id|[0 ._*x?-]*")  # fmt: skip


class Tags(NamedTuple):
    """Text as the file has it, blank where it says nothing; date: YYYY-MM-DD; is_image: whether it has rows and
    columns; kind: what it is where it is no image."""

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
    """The tags of a file; None where they can't be read as DICOM's."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break the standard
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            kind = str(getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
            if kind == _DICOMDIR:
                return Tags(kind="DICOMDIR")
            return _describe(data) if len(data) else None
        except Exception:  # broken bytes raise anything; the caller counts the file, and decoding says why
            return None


def _describe(data: Any) -> Tags:
    patient = _text(data, "PatientID")
    study_date = next(filter(None, map(_day, (_text(data, name) for name in
                      ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate")))), None)  # fmt: skip
    return Tags(
        patient="" if _NOBODY.fullmatch(patient) else patient, study=_text(data, "StudyInstanceUID"),
        view=_text(data, "ViewPosition") or _view_code(data), sex=_text(data, "PatientSex"),
        age=_text(data, "PatientAge") or _years_between(_day(_text(data, "PatientBirthDate")), study_date),
        date=study_date.isoformat() if study_date else "", modality=_text(data, "Modality").upper(),
        body_part=_text(data, "BodyPartExamined").upper(),
        is_image=bool(_text(data, "Rows") and _text(data, "Columns")), kind=_text(data, "Modality") or "no modality",
    )  # fmt: skip


def _text(data: Any, name: str) -> str:
    """One value as text. One that breaks its own rules is as if it were not there."""
    try:
        value = data.get(name)
        text = "" if value is None else str(value)
        text.encode()
    except Exception:  # pydicom decodes a value when it is asked for
        return ""
    return " ".join(text.replace("\0", " ").split())


def _view_code(data: Any) -> str:
    try:
        return str(data.ViewCodeSequence[0].CodeMeaning)  # "postero-anterior", of PS3.16, CID 4010
    except Exception:  # absent, empty, or broken
        return ""


def _day(text: str) -> date | None:
    """DA of PS3.5, or with the dots that ACR-NEMA had."""
    found = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", text)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:  # month 0 and the like
        return None


def _years_between(birth: date | None, day: date | None) -> str:
    """Whole years, as age is counted; blank where a date is missing or they are in the wrong order."""
    if birth is None or day is None or day < birth:
        return ""
    return str(day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day)))
