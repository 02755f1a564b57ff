"""PadChest (Bustos et al., 2020, arXiv:1901.07441)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from shard.errors import InputError
from shard.formats.image_files import find_images, image_name
from shard.formats.rows import Rows, hashed_splits, text_column
from shard.note import Note, counted
from shard.tabular.columns import SEX, note_missing
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns
from shard.tabular.ids import normalise_id

_REQUIRED = ("ImageID", "PatientID", "Labels")
_OPTIONAL = {
    "ImageDir": (), "Projection": (), "ViewPosition_DICOM": (), "PatientBirth": (),
    "PatientSex_DICOM": ("PatientSex", "Sex", *SEX), "StudyDate_DICOM": ("StudyDate",),
}  # fmt: skip
_EXPECTED = ("Projection", "PatientSex_DICOM", "PatientBirth", "StudyDate_DICOM")  # a note says if one is missing
# CheXpert's name → PadChest's labels of the same finding: itself and its subtypes in PadChest's tree. A report
# lists only the most specific one.
PADCHEST_UNIONS = {
    "No Finding": ("normal",), "Cardiomegaly": ("cardiomegaly",), "Edema": ("pulmonary edema",),
    "Consolidation": ("consolidation",), "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Atelectasis": ("atelectasis", "total atelectasis", "lobar atelectasis", "segmental atelectasis",
                    "laminar atelectasis", "round atelectasis", "atelectasis basal"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Pleural Effusion": ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion",
                         "hydropneumothorax", "empyema", "hemothorax"),
    "Fracture": ("fracture", "clavicle fracture", "humeral fracture", "vertebral fracture", "rib fracture",
                 "callus rib fracture"),
}  # fmt: skip
# Labels that are not findings. With one of them, a finding that the report does not list is blank, not absent.
_NO_FINDINGS = ("unchanged", "exclude", "suboptimal study")


def is_padchest(csv: Path) -> bool:
    """Whether a table has PadChest's columns."""
    return has_columns(csv, *_REQUIRED)


def read_padchest(src: Path, csv: Path) -> Rows:
    """Read PadChest: its one table, images anywhere under `src`. Splits are by a hash of patients.

    The findings are the labels that occur, in lower case: 1 if the report lists the label, else 0. If the report lists
    "unchanged", "suboptimal study" or "exclude", unlisted findings are blank; without labels, all findings are blank. A
    label that equals, with its subtypes, a finding of CheXpert gets CheXpert's name (PADCHEST_UNIONS); its subtypes
    remain findings too. The age is the year of the study minus the year of birth.
    """
    raw, notes = read_csv(csv, _REQUIRED, _OPTIONAL, ids=("PatientID",), only=True)
    notes += note_missing(csv, _EXPECTED, list(raw), "columns")
    findings, labels = _read_labels(csv, raw)
    unlabelled = raw["Labels"].map({text: _parse(text) == [] for text in raw["Labels"].unique()}).astype(bool)
    if unlabelled.any():
        notes.append(Note(f"{csv.name}: {counted(int(unlabelled.sum()), 'image has', 'images have')} no labels: blank",
                          raw["ImageID"][unlabelled].iloc[0]))  # fmt: skip
    name = raw["ImageID"].map(image_name)
    paths, image_notes = find_images(src, csv, set(name).__contains__)
    folder = text_column(raw, "ImageDir").map(normalise_id)
    expected = (folder + "/" + raw["ImageID"]).str.removeprefix("/")
    projection = text_column(raw, "Projection")
    frame = pd.DataFrame({
        "path": [paths.get(stem, path) for stem, path in zip(name, expected, strict=True)], "key": name,
        "patient": raw["PatientID"], "split": hashed_splits(raw["PatientID"]),
        "view": projection.where(projection != "", text_column(raw, "ViewPosition_DICOM")),
        "sex": text_column(raw, "PatientSex_DICOM"), "age": _ages(raw),
    })  # fmt: skip
    labelled = frame.join(pd.DataFrame(labels, columns=list(findings)))
    return Rows(findings, labelled, (*notes, *image_notes), ((csv, len(raw)),))


def _read_labels(csv: Path, raw: pd.DataFrame) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Return the findings and their labels [images, findings]. Raises InputError if a cell is not a list."""
    codes, texts = pd.factorize(raw["Labels"])
    lists = [_parse(text) for text in texts]
    for text, given in zip(texts, lists, strict=True):
        if given is None:
            image = raw["ImageID"][raw["Labels"] == text].iloc[0]
            raise InputError(f"{csv}: Labels {text!r} of {image} is not a list such as ['pleural effusion', 'nodule']; "
                             "replace it with the original file")  # fmt: skip
    occurring = {label for given in lists for label in given or ()} - set(_NO_FINDINGS)
    unions = {name: kinds for name, kinds in PADCHEST_UNIONS.items() if occurring.intersection(kinds)}
    same = {kinds[0] for kinds in unions.values()}
    known = {**unions, **{label: (label,) for label in sorted(occurring - same)}}
    values = np.zeros((len(texts), len(known)), np.float32)
    for row, given in zip(values, lists, strict=True):
        if not given or set(given).intersection(_NO_FINDINGS):
            row[:] = np.nan
        row[[bool(set(given or ()).intersection(kinds)) for kinds in known.values()]] = 1
    return tuple(known), values[codes]


def _parse(text: str) -> list[str] | None:
    """Parse a cell with a Python list into labels in lower case, without blanks and nan. None if it is not a list."""
    inner = re.fullmatch(r"\[(.*)\]", text.strip(), re.S)
    if inner is None:
        return [] if text.strip().lower() in ("", "nan", "none") else None
    labels = (" ".join(label.strip().strip("'\"").lower().split()) for label in inner[1].split(","))
    return [label for label in labels if label not in ("", "nan", "none")]


def _ages(raw: pd.DataFrame) -> list[str]:
    """The years from birth to study. If the dates can't be read, their text, which is counted as not understood."""
    dates = [text_column(raw, name).str.strip() for name in ("StudyDate_DICOM", "PatientBirth")]
    day = r"^(\d{4})(?:(?:\d{4}|([-/.])\d\d?\2\d\d?)(?:[ T].*)?)?(?:\.0*)?$"
    study, birth = (pd.to_numeric(date.str.extract(day)[0]) for date in dates)
    age = study - birth
    texts = [f"born {born}, studied {studied}" if born and studied else ""
             for studied, born in zip(*dates, strict=True)]  # fmt: skip
    return [text if pd.isna(value) or value < 0 else str(int(value)) for value, text in zip(age, texts, strict=True)]
