"""Radiologists' labels of CheXpert's validation and test images, as distributed by CheXlocalize and CheXzero.

CheXlocalize (Saporta et al., 2022): CheXpert/val_labels.csv, test_labels.csv, val/ and test/. CheXzero (Tiu et al.,
2022) is scored by groundtruth.csv of rajpurkarlab/cheXpert-test-set-labels, with one row per study.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.chexpert import FINDING_COLUMNS, chexpert_findings
from shard.formats.image_files import find_images, image_name
from shard.formats.rows import Rows, hashed_splits, text_column
from shard.note import Note
from shard.tabular.columns import AGE, SEX, fold_name, note_missing
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns
from shard.tabular.finding_names import CHEXPERT_FINDINGS

_COLUMNS = {"Sex": SEX, "Age": AGE, "Frontal/Lateral": (), "AP/PA": ()}
_SPLITS = {"vallabels": "valid", "validlabels": "valid", "testlabels": "test", "groundtruth": "test"}
_NAME_PARTS = 3  # patient64741/study1/view1_frontal


def is_chexlocalize(csv: Path) -> bool:
    """Whether a table has CheXpert's findings per study, or per image in a file named like CheXlocalize's."""
    studies = has_columns(csv, "Study", "Cardiomegaly", "Support Devices")
    return studies or (_stem(csv) in _SPLITS and has_columns(csv, "Path", "Cardiomegaly"))


def read_chexlocalize(src: Path, csv: Path) -> Rows:
    """Read CheXlocalize's val_labels.csv and test_labels.csv, or a groundtruth.csv per study; images anywhere in `src`.

    Labels are 1 or 0: radiologists decided on each finding. The labels of a study apply to all its images. The archive
    has no training split. With both tables, the validation images become split train, so that a probe has examples, and
    the test images split test; a note says so. With one table, splits are by a hash of patients.
    """
    tables = {_SPLITS.get(_stem(file), "test"): file for file in (csv, *_other_tables(csv))}
    parts, notes, read = [], list[Note](), list[tuple[Path, int]]()
    for split, table in sorted(tables.items()):
        rows, table_notes, count = _read_table(src, table, [other for other in tables.values() if other != table])
        read.append((table, count))
        parts.append(rows.assign(split=split))
        notes += table_notes
    frame = pd.concat(parts, ignore_index=True)
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in frame)
    if len(tables) > 1:
        frame["split"] = frame["split"].replace("valid", "train")
        notes.append(Note("this archive has no training images: its validation images become split train, from "
                          "which probes take their examples"))  # fmt: skip
    else:
        frame["split"] = hashed_splits(frame["patient"])
        notes.append(Note(f"{csv.name} is the only table: splits are by a hash of its patients"))
    return Rows(findings, frame, tuple(notes), tuple(read))


def _other_tables(csv: Path) -> list[Path]:
    """The table of the other split (validation or test) in the same folder."""
    own = _SPLITS.get(_stem(csv))
    return [file for file in sorted(csv.parent.glob("*_labels.csv"))
            if own and _SPLITS.get(_stem(file), own) != own and is_chexlocalize(file)]  # fmt: skip


def _stem(csv: Path) -> str:
    return fold_name(csv.name.split(".")[0])


def _read_table(src: Path, csv: Path, others: list[Path]) -> tuple[pd.DataFrame, list[Note], int]:
    """Read the images of one table, notes, and its number of rows.

    others: tables whose images don't count as unlisted.
    """
    by = "Study" if has_columns(csv, "Study") else "Path"
    raw, notes = read_csv(csv, (by,), {**_COLUMNS, **FINDING_COLUMNS}, only=True)
    findings = chexpert_findings(raw.columns, csv)
    notes += note_missing(csv, CHEXPERT_FINDINGS, findings)
    count, study = len(raw), raw[by].str.extract(r"(patient\d+/study\d+)", expand=False)
    if study.isna().any():
        raise InputError(f"{csv}: {by} {raw[by][study.isna()].iloc[0]!r} contains no patientNNNNN/studyN; for your own "
                         f"table: --dataset=csv --table={csv}")  # fmt: skip
    raw["path"], image_notes = _paths_by_image(src, csv, raw, others) if by == "Path" else _paths_by_study(
        src, csv, study)  # fmt: skip
    raw["patient"] = study.str.split("/").str[0]
    raw = raw.explode("path", ignore_index=True)
    raw["path"] = raw["path"].where(raw["path"].notna(), raw[by])
    view = text_column(raw, "AP/PA").where(text_column(raw, "Frontal/Lateral").str.lower() != "lateral", "lateral")
    view_in_path = raw["path"].str.extract(r"_(frontal|lateral)\.", expand=False).fillna("")
    frame = pd.DataFrame({"path": raw["path"], "key": raw["path"].map(lambda path: image_name(path, _NAME_PARTS)),
                          "patient": raw["patient"], "view": view.where(view != "", view_in_path),
                          "sex": text_column(raw, "Sex"), "age": text_column(raw, "Age")})  # fmt: skip
    return frame.join(raw[list(findings)]), [*notes, *image_notes], count


def _paths_by_image(src: Path, csv: Path, raw: pd.DataFrame, others: list[Path]) -> tuple[pd.Series, list[Note]]:
    """The path of each row's image, NaN if it is not found."""
    name = raw["Path"].map(lambda path: image_name(path, _NAME_PARTS))
    elsewhere = {image_name(path, _NAME_PARTS) for other in others if has_columns(other, "Path")
                 for path in read_csv(other, ("Path",), only=True)[0]["Path"]}  # fmt: skip
    images, notes = find_images(src, csv, {*name, *elsewhere}.__contains__, _NAME_PARTS)
    return name.map(images), notes


def _paths_by_study(src: Path, csv: Path, study: pd.Series) -> tuple[pd.Series, list[Note]]:
    """A list of paths per row: all images of its study. NaN if none is found."""
    studies = set(study)
    images, notes = find_images(src, csv, lambda name: name.rpartition("/")[0] in studies, _NAME_PARTS)
    return study.map(pd.Series(images).groupby(lambda name: name.rpartition("/")[0]).apply(list)), notes
