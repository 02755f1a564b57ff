"""MIMIC-CXR-JPG."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import chexpert_findings
from shard.formats.csv_file import read_csv
from shard.formats.rows import Rows, column, find_one

MIMIC_SPLITS = {"train": "train", "validate": "valid", "test": "test"}


def read_mimic(src: Path) -> Rows:
    """MIMIC-CXR-JPG: its metadata, chexpert and split tables (.csv.gz or .csv) and files/pNN/pNNNNNNNN/sNNNNNNNN/."""
    wanted = {"metadata": ("dicom_id", "subject_id", "study_id"), "chexpert": ("subject_id", "study_id"),
              "split": ("dicom_id", "split")}  # fmt: skip
    tables = {name: find_one(src, f"mimic-cxr-*-{name}.csv*") for name in wanted}
    raw, labels, splits = (read_csv(csv, wanted[name]) for name, csv in tables.items())
    findings = chexpert_findings(labels, tables["chexpert"], "replace it by the original")
    study = ["subject_id", "study_id"]
    labels, splits = labels[[*study, *findings]].drop_duplicates(), splits[["dicom_id", "split"]].drop_duplicates()
    for name, table, columns in (("chexpert", labels, study), ("split", splits, ["dicom_id"])):
        if (twice := table.duplicated(columns)).any():
            raise InputError(f"{tables[name]}: two rows for {'/'.join(table[twice].iloc[0][columns])} that say "
                             "different things; replace it by the original")
    raw = raw.merge(labels, "left", study).merge(splits, "left", "dicom_id")
    if (missing := raw["split"].isna()).any():
        raise InputError(f"{tables['split']}: no row for dicom_id {raw['dicom_id'][missing].iloc[0]!r} "
                         f"({missing.sum()} are missing); replace it by the original")
    subject = raw["subject_id"]
    path = ("files/p" + subject.str[:2] + "/p" + subject + "/s" + raw["study_id"] + "/" + raw["dicom_id"] + ".jpg")
    frame = pd.DataFrame({"path": path, "key": raw["dicom_id"], "patient": subject,
                          "split": raw["split"].replace(MIMIC_SPLITS),
                          "view": column(raw, "ViewPosition"), "sex": "", "age": ""})  # its tables do not say
    return Rows(findings, frame.join(raw[list(findings)]))
