"""PadChest (Bustos et al., 2020, arXiv:1901.07441)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from shard.errors import InputError
from shard.formats.places import find_files, name_of
from shard.formats.rows import Rows, column, hashed_splits
from shard.note import Note, counted
from shard.tabular.columns import SEX, not_found
from shard.tabular.csv_file import has_columns, read_csv
from shard.tabular.ids import one_form

_WANTED = ("ImageID", "PatientID", "Labels")
_KNOWN = {"ImageDir": (), "Projection": (), "ViewPosition_DICOM": (), "PatientSex_DICOM": ("PatientSex", "Sex", *SEX),
          "PatientBirth": (), "StudyDate_DICOM": ("StudyDate",)}  # fmt: skip
_EXPECTED = ("Projection", "PatientSex_DICOM", "PatientBirth", "StudyDate_DICOM")  # each image has them
# CheXpert's name → labels of PadChest's tree that are this finding: itself and its kinds, of which a report has the
# most particular one alone.
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
# Labels of a report, not of a finding: what it does not list is not known to be absent.
_NO_FINDINGS = ("unchanged", "exclude", "suboptimal study")


def is_padchest(csv: Path) -> bool:
    """Whether a table has PadChest's columns."""
    return has_columns(csv, *_WANTED)


def read_padchest(src: Path, csv: Path) -> Rows:
    """PadChest: its one table, images anywhere under `src`. Splits are by a hash of patients.

    The findings are the labels that occur, in lower case: 1 where the report lists one, 0 where it does not. A report
    that lists "unchanged", "suboptimal study" or "exclude" says nothing of what it does not list: blank; one without
    labels is blank altogether. Where a label, with its kinds in PadChest's tree, is a finding of CheXpert, it bears
    CheXpert's name (PADCHEST_UNIONS); the kinds remain beside it. The age is the year of the study less that of birth.
    """
    raw, notes = read_csv(csv, _WANTED, _KNOWN, ids=("PatientID",), only=True)
    notes += not_found(csv, _EXPECTED, list(raw), "columns")
    findings, labels = _read_labels(csv, raw)
    unlabelled = raw["Labels"].map({text: _parse(text) == [] for text in raw["Labels"].unique()}).astype(bool)
    if unlabelled.any():
        notes.append(Note(f"{csv.name}: {counted(int(unlabelled.sum()), 'image has', 'images have')} no labels: blank",
                          raw["ImageID"][unlabelled].iloc[0]))  # fmt: skip
    name = raw["ImageID"].map(name_of)
    places, told = find_files(src, csv, set(name).__contains__)
    folder = column(raw, "ImageDir").map(one_form)
    expected = (folder + "/" + raw["ImageID"]).str.removeprefix("/")
    projection = column(raw, "Projection")
    frame = pd.DataFrame({
        "path": [places.get(stem, path) for stem, path in zip(name, expected, strict=True)], "key": name,
        "patient": raw["PatientID"], "split": hashed_splits(raw["PatientID"]),
        "view": projection.where(projection != "", column(raw, "ViewPosition_DICOM")),
        "sex": column(raw, "PatientSex_DICOM"), "age": _ages(raw),
    })  # fmt: skip
    return Rows(findings, frame.join(pd.DataFrame(labels, columns=list(findings))), (*notes, *told), ((csv, len(raw)),))


def _read_labels(csv: Path, raw: pd.DataFrame) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """The findings, and [images, findings] what the reports say of them. Raises InputError where a list is none."""
    codes, texts = pd.factorize(raw["Labels"])
    lists = [_parse(text) for text in texts]
    for text, given in zip(texts, lists, strict=True):
        if given is None:
            image = raw["ImageID"][raw["Labels"] == text].iloc[0]
            raise InputError(f"{csv}: Labels {text!r} of {image} is no list such as ['pleural effusion', 'nodule']; "
                             "replace it by the original")  # fmt: skip
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
    """The labels of a Python list in a cell, in lower case, without stray blanks, nan and the like; None: no list."""
    inner = re.fullmatch(r"\[(.*)\]", text.strip(), re.S)
    if inner is None:
        return [] if text.strip().lower() in ("", "nan", "none") else None
    labels = (" ".join(label.strip().strip("'\"").lower().split()) for label in inner[1].split(","))
    return [label for label in labels if label not in ("", "nan", "none")]


def _ages(raw: pd.DataFrame) -> list[str]:
    """The years between study and birth; where the two dates don't say them, the dates, so that they are counted."""
    dates = [column(raw, name).str.strip() for name in ("StudyDate_DICOM", "PatientBirth")]
    day = r"^(\d{4})(?:(?:\d{4}|([-/.])\d\d?\2\d\d?)(?:[ T].*)?)?(?:\.0*)?$"
    study, birth = (pd.to_numeric(date.str.extract(day)[0]) for date in dates)
    age = study - birth
    told = [f"born {born}, studied {studied}" if born and studied else "" for studied, born in zip(*dates, strict=True)]
    return [text if pd.isna(value) or value < 0 else str(int(value)) for value, text in zip(age, told, strict=True)]
