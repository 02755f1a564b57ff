"""CheXpert Plus (Chambon et al., 2024, arXiv:2405.19538)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from shard.errors import PARSE_ERRORS, InputError
from shard.formats.chexpert import FINDING_COLUMNS
from shard.formats.image_files import find_images, image_name
from shard.formats.rows import Rows, text_column
from shard.note import Note, listed
from shard.tabular.columns import fold_name, header_has, note_missing
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns, read_header
from shard.tabular.finding_names import CHEXPERT_FINDINGS
from shard.tabular.join import is_majority
from shard.tabular.view import join_views

_REQUIRED = ("path_to_image", "deid_patient_id", "split")
_OPTIONAL = {"frontal_lateral": (), "ap_pa": (), "age": (), "sex": ()}
# CheXbert's labels: one file per section of the report. CheXpert's own labels are those of the impression.
LABELS = ("impression_fixed.json", "findings_fixed.json", "report_fixed.json")
_NAME_PARTS = 3  # patient42142/study5/view1_frontal


def is_chexpert_plus(csv: Path) -> bool:
    """Whether a table has the columns of df_chexpert_plus_240401.csv."""
    return has_columns(csv, *_REQUIRED)


def read_chexpert_plus(src: Path, csv: Path) -> Rows:
    """Read CheXpert Plus: df_chexpert_plus_240401.csv; images as PNG, JPEG or DICOM, anywhere under `src`.

    The findings are CheXpert's: 1 present, 0 absent, -1 uncertain, blank not mentioned. They come from the table if it
    has them, else from the first of LABELS that is next to it or one folder below. Without such a file there are none.
    Splits are the table's: train and valid.
    """
    optional = {**_OPTIONAL, **(FINDING_COLUMNS if header_has(read_header(csv), CHEXPERT_FINDINGS[2]) else {})}
    raw, notes = read_csv(csv, _REQUIRED, optional, ids=("deid_patient_id",), only=True)
    notes += note_missing(csv, _OPTIONAL, list(raw), "columns")
    name = raw["path_to_image"].map(lambda path: image_name(path, _NAME_PARTS))
    findings = tuple(finding for finding in CHEXPERT_FINDINGS if finding in raw.columns)
    labels, tables = raw[list(findings)], [(csv, len(raw))]
    if not findings:
        files = [file for label in LABELS for place in ("", "*/") for file in sorted(csv.parent.glob(place + label))]
        if files:
            findings, labels, label_notes = _read_labels(files[0], name)
            notes += label_notes
            tables.append((files[0], len(labels)))
            if len(files) > 1:
                notes.append(Note(f"labels are those of {files[0].name}; not read: "
                                  + listed(file.name for file in files[1:])))  # fmt: skip
        else:
            notes.append(Note(f"no labels: none of {listed(LABELS)} is next to {csv.name} or in a folder there"))
    paths, image_notes = find_images(src, csv, set(name).__contains__, _NAME_PARTS)
    view = join_views(text_column(raw, "frontal_lateral"), text_column(raw, "ap_pa"))
    frame = pd.DataFrame({
        "path": [paths.get(one, path) for one, path in zip(name, raw["path_to_image"], strict=True)], "key": name,
        "patient": raw["deid_patient_id"], "split": raw["split"].str.lower(),
        "view": view, "sex": text_column(raw, "sex"), "age": text_column(raw, "age"),
    })  # fmt: skip
    return Rows(findings, frame.join(labels), (*notes, *image_notes), tuple(tables))


def _read_labels(path: Path, name: pd.Series) -> tuple[tuple[str, ...], pd.DataFrame, list[Note]]:
    """Read the labels of the images `name` from a JSON Lines file, with the findings and notes."""
    rows = _read_json_lines(path)
    table = pd.DataFrame.from_dict(rows, orient="index")
    findings = tuple(finding for finding in CHEXPERT_FINDINGS if finding in table.columns)
    unlabelled = ~name.isin(table.index)
    missing = int(unlabelled.sum())
    if not findings or is_majority(missing, len(name)):
        raise InputError(f"{path}: has {len(findings)} of CheXpert's findings, and labels for {len(name) - missing} of "
                         f"{len(name)} images; replace it with the original file or remove it")  # fmt: skip
    notes = note_missing(path, CHEXPERT_FINDINGS, findings)
    if missing:
        notes.append(Note(f"{path.name}: no line for {missing} of {len(name)} images: blank", name[unlabelled].iloc[0]))
    labels = table[list(findings)].reindex(name).fillna("").reset_index(drop=True)
    return findings, labels, notes


def _read_json_lines(path: Path) -> dict[str, dict[str, str]]:
    """Map each image name to its labels by finding."""
    known = {fold_name(name): finding for finding, others in FINDING_COLUMNS.items() for name in (*others, finding)}
    rows = dict[str, dict[str, str]]()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    row = json.loads(line)
                    image = image_name(row.pop("path_to_image"), _NAME_PARTS)
                    row = {known.get(fold_name(finding), finding): "" if label is None else str(label)
                           for finding, label in row.items()}  # fmt: skip
                    if rows.setdefault(image, row) != row:
                        raise InputError(f"{path}: two lines for {image} contradict each other; replace it with the "
                                         "original file or remove it")  # fmt: skip
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not a file with one line of JSON per image ({type(error).__name__}: {error}); "
                         "remove it or replace it with the original file") from None  # fmt: skip
    return rows
