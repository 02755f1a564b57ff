"""MIMIC-CXR-JPG (Johnson et al., 2019, arXiv:1901.07042)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import FINDING_COLUMNS, chexpert_findings
from shard.formats.rows import Rows, find_file, strip_suffixes, text_column
from shard.note import Note
from shard.tabular.columns import VIEW, ColumnNames, note_missing, note_unread
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns, tables_in
from shard.tabular.finding_names import CHEXPERT_FINDINGS
from shard.tabular.ids import strip_prefix
from shard.tabular.join import join

MIMIC_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
_IDS = ("dicom_id", "subject_id", "study_id")
_PREFIX = {"subject_id": "p", "study_id": "s"}
_REQUIRED = {"metadata": _IDS, "chexpert": ("subject_id", "study_id"), "split": ("dicom_id", "split")}
_OPTIONAL: dict[str, ColumnNames] = {
    "metadata": {"ViewPosition": VIEW}, "chexpert": FINDING_COLUMNS, "split": {"subject_id": (), "study_id": ()}
}  # fmt: skip


def is_mimic(src: Path) -> bool:
    """Whether a folder has MIMIC-CXR-JPG's metadata, by its name or its columns."""
    return any(src.glob("mimic-cxr-*-metadata.csv*")) or any(
        has_columns(csv, *_IDS, "ViewPosition") for csv in tables_in(src))


def read_mimic(src: Path) -> Rows:
    """Read MIMIC-CXR-JPG: the tables metadata, chexpert and split (.csv.gz or .csv); files/pNN/pNNNNNNNN/sNNNNNNNN/.

    Ids are normalised, with or without p and s before them. Rows without a counterpart are noted.
    Raises InputError if an image has no split, or most images have no labels.
    """
    tables = {name: _find_table(src, name) for name in _REQUIRED}
    frames, notes = {}, list[Note]()
    for name, csv in tables.items():
        frames[name], table_notes = _read_table(csv, name)
        notes += table_notes
    raw, labels, splits = frames.values()
    findings = chexpert_findings(labels.columns, tables["chexpert"])
    notes += note_missing(tables["chexpert"], CHEXPERT_FINDINGS, findings)
    notes += note_missing(tables["metadata"], _OPTIONAL["metadata"], list(raw), "columns")
    study = ["subject_id", "study_id"]
    labels, splits = labels[[*study, *findings]].drop_duplicates(), splits[["dicom_id", "split"]].drop_duplicates()
    for name, table, columns in (("chexpert", labels, study), ("split", splits, ["dicom_id"])):
        if (repeated := table.duplicated(columns)).any():
            raise InputError(f"{tables[name]}: two rows for {'/'.join(table[repeated].iloc[0][columns])} contradict "
                             "each other; replace it with the original file")
    raw, label_notes = join(tables["metadata"], raw, tables["chexpert"], labels, study)
    raw, split_notes = join(tables["metadata"], raw, tables["split"], splits, ["dicom_id"], require_all=True)
    subject = raw["subject_id"]
    path = ("files/p" + subject.str[:2] + "/p" + subject + "/s" + raw["study_id"] + "/" + raw["dicom_id"] + ".jpg")
    frame = pd.DataFrame({"path": path, "key": raw["dicom_id"], "patient": subject,
                          "split": raw["split"].str.lower().replace(MIMIC_SPLITS),
                          "view": text_column(raw, "ViewPosition"), "sex": "", "age": ""})  # not in these tables
    return Rows(findings, frame.join(raw[list(findings)]), (*notes, *label_notes, *split_notes),
                tuple((csv, len(frames[name])) for name, csv in tables.items()))


def _find_table(src: Path, name: str) -> Path:
    """Find a table by its official file name or else by "metadata", "chexpert" or "split" in its name, and columns."""
    official = find_file(src, f"mimic-cxr-*-{name}.csv*")
    if official.exists():
        return official
    found = [csv for csv in tables_in(src) if name in csv.name.lower() and has_columns(csv, *_REQUIRED[name])]
    return found[0] if len(found) == 1 else official


def _read_table(csv: Path, name: str) -> tuple[pd.DataFrame, list[Note]]:
    """Read one of the tables, with its ids without the prefixes p and s and file suffixes."""
    required, optional = _REQUIRED[name], _OPTIONAL[name]
    ids = tuple(column for column in required if column in _IDS)
    frame, notes = read_csv(csv, required, optional, ids=ids)
    for column in ids:
        frame[column] = (strip_suffixes(frame[column]) if column == "dicom_id"
                         else strip_prefix(frame[column], _PREFIX[column]))  # fmt: skip
    return frame, [*notes, *note_unread(csv, frame, (*required, *optional))]
