"""BRAX (Reis et al., 2022, doi 10.1038/s41597-022-01608-8)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.formats.chexpert import CHEXPERT_FINDINGS, KNOWN, chexpert_findings
from shard.formats.rows import ENDING, Rows, column, hashed_splits
from shard.note import Note
from shard.tabular.columns import AGE, SEX, VIEW, not_found
from shard.tabular.csv_file import has_columns, read_csv

_COLUMNS = {"PngPath": (), "DicomPath": (), "PatientSex": SEX, "PatientAge": AGE, "ViewPosition": VIEW}
_TRIED = 200  # paths that tell whether the PNGs are there


def is_brax(csv: Path) -> bool:
    """Whether a table has the columns of master_spreadsheet_update.csv."""
    return has_columns(csv, "PatientID", "PngPath") or has_columns(csv, "PatientID", "DicomPath", "No Finding")


def read_brax(src: Path, csv: Path) -> Rows:
    """BRAX: master_spreadsheet_update.csv, images/…png or, where those are not there, Anonymized_DICOMs/…dcm.

    The findings are CheXpert's, labelled by its labeller, so that 1 is present, 0 absent, -1 uncertain, blank not
    mentioned. Ages are in steps of five years, dates are not real and left out. Splits are by a hash of patients.
    """
    raw, notes = read_csv(csv, ("PatientID",), {**_COLUMNS, **KNOWN}, ids=("PatientID",), only=True)
    findings = chexpert_findings(raw.columns, csv)
    notes += not_found(csv, CHEXPERT_FINDINGS, findings)
    notes += not_found(csv, ("PatientSex", "PatientAge", "ViewPosition"), list(raw), "columns")
    paths = {name: column(raw, name).str.strip() for name in ("PngPath", "DicomPath")}
    there = {name: sum((src / path).is_file() for path in of[of != ""].head(_TRIED)) for name, of in paths.items()}
    taken = max(there, key=lambda name: there[name]) if any(there.values()) else next(
        name for name, of in paths.items() if (of != "").any())  # fmt: skip
    path = paths[taken]
    other = paths["DicomPath" if taken == "PngPath" else "PngPath"]
    if any(there.values()) and (other != "").any():
        notes.append(Note(f"images are those of column {taken}"))
    key = path.str.replace(r"^(?:images|Anonymized_DICOMs)/", "", regex=True).str.replace(ENDING, "", regex=True)
    frame = pd.DataFrame({"path": path, "key": key, "patient": raw["PatientID"],
                          "split": hashed_splits(raw["PatientID"]), "view": column(raw, "ViewPosition"),
                          "sex": column(raw, "PatientSex"), "age": column(raw, "PatientAge")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]), tuple(notes), ((csv, len(raw)),))
