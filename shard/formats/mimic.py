"""MIMIC-CXR-JPG."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import CHEXPERT_FINDINGS, KNOWN, chexpert_findings
from shard.formats.rows import ENDING, Rows, column, find_one
from shard.note import Note
from shard.tabular.columns import VIEW, ColumnNames, not_found, not_taken
from shard.tabular.csv_file import has_columns, read_csv, tables_in
from shard.tabular.ids import without_prefix
from shard.tabular.join import join

MIMIC_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
_IDS = ("dicom_id", "subject_id", "study_id")
_PREFIX = {"subject_id": "p", "study_id": "s"}
_WANTED = {"metadata": _IDS, "chexpert": ("subject_id", "study_id"), "split": ("dicom_id", "split")}
_KNOWN: dict[str, ColumnNames] = {
    "metadata": {"ViewPosition": VIEW}, "chexpert": KNOWN, "split": {"subject_id": (), "study_id": ()}
}  # fmt: skip


def is_mimic(src: Path) -> bool:
    """Whether a folder has MIMIC-CXR-JPG's metadata, by its name or its columns."""
    return any(src.glob("mimic-cxr-*-metadata.csv*")) or any(
        has_columns(csv, *_IDS, "ViewPosition") for csv in tables_in(src))


def read_mimic(src: Path) -> Rows:
    """MIMIC-CXR-JPG: its metadata, chexpert and split tables (.csv.gz or .csv) and files/pNN/pNNNNNNNN/sNNNNNNNN/.

    Ids are compared in one form, with or without p and s before them, and what has no partner is noted. Raises
    InputError where an image has no split, or most have no labels.
    """
    tables = {name: _find(src, name) for name in _WANTED}
    frames, notes = {}, list[Note]()
    for name, csv in tables.items():
        frames[name], told = _read(csv, name)
        notes += told
    raw, labels, splits = frames.values()
    findings = chexpert_findings(labels.columns, tables["chexpert"])
    notes += not_found(tables["chexpert"], CHEXPERT_FINDINGS, findings)
    notes += not_found(tables["metadata"], _KNOWN["metadata"], list(raw), "columns")
    study = ["subject_id", "study_id"]
    labels, splits = labels[[*study, *findings]].drop_duplicates(), splits[["dicom_id", "split"]].drop_duplicates()
    for name, table, columns in (("chexpert", labels, study), ("split", splits, ["dicom_id"])):
        if (twice := table.duplicated(columns)).any():
            raise InputError(f"{tables[name]}: two rows for {'/'.join(table[twice].iloc[0][columns])} that say "
                             "different things; replace it by the original")
    raw, told = join(tables["metadata"], raw, tables["chexpert"], labels, study)
    notes += told
    raw, told = join(tables["metadata"], raw, tables["split"], splits, ["dicom_id"], all_wanted=True)
    notes += told
    subject = raw["subject_id"]
    path = ("files/p" + subject.str[:2] + "/p" + subject + "/s" + raw["study_id"] + "/" + raw["dicom_id"] + ".jpg")
    frame = pd.DataFrame({"path": path, "key": raw["dicom_id"], "patient": subject,
                          "split": raw["split"].str.lower().replace(MIMIC_SPLITS),
                          "view": column(raw, "ViewPosition"), "sex": "", "age": ""})  # its tables do not say
    return Rows(findings, frame.join(raw[list(findings)]), tuple(notes),
                tuple((csv, len(frames[name])) for name, csv in tables.items()))


def _find(src: Path, name: str) -> Path:
    """One of the tables, by its whole name or else by the part that says which it is, and its columns."""
    official = find_one(src, f"mimic-cxr-*-{name}.csv*")
    if official.exists():
        return official
    found = [csv for csv in tables_in(src) if name in csv.name.lower() and has_columns(csv, *_WANTED[name])]
    return found[0] if len(found) == 1 else official


def _read(csv: Path, name: str) -> tuple[pd.DataFrame, list[Note]]:
    """One of the tables, its ids without p, s and file endings."""
    wanted, known = _WANTED[name], _KNOWN[name]
    ids = tuple(column for column in wanted if column in _IDS)
    frame, notes = read_csv(csv, wanted, known, ids=ids)
    for name in ids:
        frame[name] = (frame[name].str.replace(ENDING, "", regex=True) if name == "dicom_id"
                       else without_prefix(frame[name], _PREFIX[name]))  # fmt: skip
    return frame, [*notes, *not_taken(csv, frame, (*wanted, *known))]
