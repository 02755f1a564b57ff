"""BRAX (Reis et al., 2022, doi 10.1038/s41597-022-01608-8)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.formats.chexpert import FINDING_COLUMNS, chexpert_findings
from shard.formats.rows import Rows, hashed_splits, strip_suffixes, text_column
from shard.note import Note
from shard.tabular.columns import AGE, SEX, VIEW, note_missing
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns
from shard.tabular.finding_names import CHEXPERT_FINDINGS

_COLUMNS = {"PngPath": (), "DicomPath": (), "PatientSex": SEX, "PatientAge": AGE, "ViewPosition": VIEW}
_PROBES = 200  # paths that are looked up on disk to choose between PNG and DICOM


def is_brax(csv: Path) -> bool:
    """Whether a table has the columns of master_spreadsheet_update.csv."""
    return has_columns(csv, "PatientID", "PngPath") or has_columns(csv, "PatientID", "DicomPath", "No Finding")


def read_brax(src: Path, csv: Path) -> Rows:
    """Read BRAX: master_spreadsheet_update.csv; images/…png or, if those are missing, Anonymized_DICOMs/…dcm.

    The findings are CheXpert's, labelled by its labeller: 1 present, 0 absent, -1 uncertain, blank not mentioned. Ages
    are in steps of five years. Dates are not real and are not read. Splits are by a hash of patients.
    """
    raw, notes = read_csv(csv, ("PatientID",), {**_COLUMNS, **FINDING_COLUMNS}, ids=("PatientID",), only=True)
    findings = chexpert_findings(raw.columns, csv)
    notes += note_missing(csv, CHEXPERT_FINDINGS, findings)
    notes += note_missing(csv, ("PatientSex", "PatientAge", "ViewPosition"), list(raw), "columns")
    paths = {name: text_column(raw, name).str.strip() for name in ("PngPath", "DicomPath")}
    existing = {name: sum((src / path).is_file() for path in column[column != ""].head(_PROBES))
                for name, column in paths.items()}  # fmt: skip
    chosen = max(existing, key=lambda name: existing[name]) if any(existing.values()) else next(
        name for name, column in paths.items() if (column != "").any())  # fmt: skip
    path = paths[chosen]
    other = paths["DicomPath" if chosen == "PngPath" else "PngPath"]
    if any(existing.values()) and (other != "").any():
        notes.append(Note(f"images are those of column {chosen}"))
    key = strip_suffixes(path.str.replace(r"^(?:images|Anonymized_DICOMs)/", "", regex=True))
    frame = pd.DataFrame({"path": path, "key": key, "patient": raw["PatientID"],
                          "split": hashed_splits(raw["PatientID"]), "view": text_column(raw, "ViewPosition"),
                          "sex": text_column(raw, "PatientSex"), "age": text_column(raw, "PatientAge")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]), tuple(notes), ((csv, len(raw)),))
