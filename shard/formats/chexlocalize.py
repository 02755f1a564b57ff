"""The labels that radiologists gave CheXpert's validation and test images, as CheXlocalize and CheXzero have them.

CheXlocalize (Saporta et al., 2022): CheXpert/val_labels.csv, test_labels.csv, val/ and test/. CheXzero (Tiu et al.,
2022) is scored by groundtruth.csv of rajpurkarlab/cheXpert-test-set-labels, with a row a study.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import CHEXPERT_FINDINGS, KNOWN, chexpert_findings
from shard.formats.places import find_files, name_of
from shard.formats.rows import Rows, column, hashed_splits
from shard.note import Note
from shard.tabular.columns import AGE, SEX, fold, not_found
from shard.tabular.csv_file import has_columns, read_csv

_COLUMNS = {"Sex": SEX, "Age": AGE, "Frontal/Lateral": (), "AP/PA": ()}
_SPLITS = {"vallabels": "valid", "validlabels": "valid", "testlabels": "test", "groundtruth": "test"}


def is_chexlocalize(csv: Path) -> bool:
    """Whether a table is one of CheXpert's findings by study, or by image under the name of a file of labels."""
    studies = has_columns(csv, "Study", "Cardiomegaly", "Support Devices")
    return studies or (fold(_stem(csv)) in _SPLITS and has_columns(csv, "Path", "Cardiomegaly"))


def read_chexlocalize(src: Path, csv: Path) -> Rows:
    """CheXlocalize's val_labels.csv and test_labels.csv, or a groundtruth.csv by study; images anywhere under `src`.

    Labels are 1 or 0: radiologists were asked for each finding. A study's are those of all its images. There is no
    training split. Of both tables, the validation images are split train here, from which a probe takes its examples,
    and the test images split test, and the notes say so; of one table, splits are by a hash of patients.
    """
    tables = {_SPLITS.get(fold(_stem(file)), "test"): file for file in (csv, *_beside(csv))}
    parts, notes, read = [], list[Note](), list[tuple[Path, int]]()
    for split, table in sorted(tables.items()):
        rows, told, count = _read_one(src, table, [other for other in tables.values() if other != table])
        read.append((table, count))
        parts.append(rows.assign(split=split))
        notes += told
    frame = pd.concat(parts, ignore_index=True)
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in frame)
    if len(tables) > 1:
        frame["split"] = frame["split"].replace("valid", "train")
        notes.append(Note("no training images in this archive: its validation images are split train here, from which "
                          "probes take their examples"))  # fmt: skip
    else:
        frame["split"] = hashed_splits(frame["patient"])
        notes.append(Note(f"{csv.name} alone: splits are by a hash of its patients"))
    return Rows(findings, frame, tuple(notes), tuple(read))


def _beside(csv: Path) -> list[Path]:
    """The other table, of validation or test images, in the same folder."""
    own = _SPLITS.get(fold(_stem(csv)))
    return [file for file in sorted(csv.parent.glob("*_labels.csv"))
            if own and _SPLITS.get(fold(_stem(file)), own) != own and is_chexlocalize(file)]  # fmt: skip


def _stem(csv: Path) -> str:
    return csv.name.split(".")[0]


def _read_one(src: Path, csv: Path, others: list[Path]) -> tuple[pd.DataFrame, list[Note], int]:
    """The images of a table, what to say of it, and its rows. others: tables whose images are not told of as left."""
    by = "Study" if has_columns(csv, "Study") else "Path"
    raw, notes = read_csv(csv, (by,), {**_COLUMNS, **KNOWN}, only=True)
    findings = chexpert_findings(raw.columns, csv)
    notes += not_found(csv, CHEXPERT_FINDINGS, findings)
    count, study = len(raw), raw[by].str.extract(r"(patient\d+/study\d+)", expand=False)
    if study.isna().any():
        raise InputError(f"{csv}: {by} {raw[by][study.isna()].iloc[0]!r} has no patientNNNNN/studyN; for a table of "
                         f"your own: --dataset=csv --table={csv}")  # fmt: skip
    if by == "Path":
        name = raw["Path"].map(lambda path: name_of(path, 3))
        elsewhere = {name_of(path, 3) for other in others if has_columns(other, "Path")
                     for path in read_csv(other, ("Path",), only=True)[0]["Path"]}  # fmt: skip
        images, told = find_files(src, csv, {*name, *elsewhere}.__contains__, 3)
        raw["path"] = name.map(images)
    else:
        studies = set(study)
        images, told = find_files(src, csv, lambda name: name.rpartition("/")[0] in studies, 3)
        raw["path"] = study.map(pd.Series(images).groupby(lambda name: name.rpartition("/")[0]).apply(list))
    raw["patient"] = study.str.split("/").str[0]
    raw = raw.explode("path", ignore_index=True)
    raw["path"] = raw["path"].where(raw["path"].notna(), raw[by])
    view = column(raw, "AP/PA").where(column(raw, "Frontal/Lateral").str.lower() != "lateral", "lateral")
    said = raw["path"].str.extract(r"_(frontal|lateral)\.", expand=False).fillna("")
    frame = pd.DataFrame({"path": raw["path"], "key": raw["path"].map(lambda path: name_of(path, 3)),
                          "patient": raw["patient"], "view": view.where(view != "", said),
                          "sex": column(raw, "Sex"), "age": column(raw, "Age")})  # fmt: skip
    return frame.join(raw[list(findings)]), [*notes, *told], count
