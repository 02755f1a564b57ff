"""CheXpert Plus (Chambon et al., 2024, arXiv:2405.19538)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from shard.errors import PARSE_ERRORS, InputError
from shard.formats.chexpert import CHEXPERT_FINDINGS, KNOWN
from shard.formats.places import find_files, name_of
from shard.formats.rows import Rows, column
from shard.note import Note, listed
from shard.tabular.columns import fold, has, not_found
from shard.tabular.csv_file import has_columns, header_of, read_csv
from shard.tabular.view import join_views

_WANTED = ("path_to_image", "deid_patient_id", "split")
_KNOWN = {"frontal_lateral": (), "ap_pa": (), "age": (), "sex": ()}
# CheXbert's labels come in a file for each section of the report; CheXpert's own are those of the impression.
LABELS = ("impression_fixed.json", "findings_fixed.json", "report_fixed.json")
_PARTS = 3  # patient42142/study5/view1_frontal


def is_chexpert_plus(csv: Path) -> bool:
    """Whether a table has the columns of df_chexpert_plus_240401.csv."""
    return has_columns(csv, *_WANTED)


def read_chexpert_plus(src: Path, csv: Path) -> Rows:
    """CheXpert Plus: df_chexpert_plus_240401.csv; images as PNG, JPEG or DICOM, anywhere under `src`.

    The findings are CheXpert's: of the table, where it has them, else of impression_fixed.json beside it or one folder
    below (findings_fixed.json, report_fixed.json where there is no such file): 1 present, 0 absent, -1 uncertain, blank
    not mentioned. Without such a file there are none. Splits are the table's: train and valid.
    """
    known = {**_KNOWN, **(KNOWN if has(header_of(csv), CHEXPERT_FINDINGS[2]) else {})}
    raw, notes = read_csv(csv, _WANTED, known, ids=("deid_patient_id",), only=True)
    notes += not_found(csv, _KNOWN, list(raw), "columns")
    name = raw["path_to_image"].map(lambda path: name_of(path, _PARTS))
    findings = tuple(finding for finding in CHEXPERT_FINDINGS if finding in raw.columns)
    labels, tables = raw[list(findings)], [(csv, len(raw))]
    if not findings:
        files = [file for wanted in LABELS for place in ("", "*/") for file in sorted(csv.parent.glob(place + wanted))]
        if files:
            findings, labels, told = _read_labels(files[0], name)
            notes += told
            tables.append((files[0], len(labels)))
            if len(files) > 1:
                notes.append(Note(f"labels are those of {files[0].name}; not taken: "
                                  + listed(file.name for file in files[1:])))  # fmt: skip
        else:
            notes.append(Note(f"no labels: none of {listed(LABELS)} is beside {csv.name} or in a folder there"))
    places, told = find_files(src, csv, set(name).__contains__, _PARTS)
    view = join_views(column(raw, "frontal_lateral"), column(raw, "ap_pa"))
    frame = pd.DataFrame({
        "path": [places.get(one, path) for one, path in zip(name, raw["path_to_image"], strict=True)], "key": name,
        "patient": raw["deid_patient_id"], "split": raw["split"].str.lower(),
        "view": view, "sex": column(raw, "sex"), "age": column(raw, "age"),
    })  # fmt: skip
    return Rows(findings, frame.join(labels), (*notes, *told), tuple(tables))


def _read_labels(path: Path, name: pd.Series) -> tuple[tuple[str, ...], pd.DataFrame, list[Note]]:
    """The labels of the images called `name`, from a file with a line of JSON an image."""
    known = {fold(name): finding for finding, others in KNOWN.items() for name in (*others, finding)}
    rows = dict[str, dict[str, str]]()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    row = json.loads(line)
                    image = name_of(row.pop("path_to_image"), _PARTS)
                    row = {known.get(fold(finding), finding): _cell(label) for finding, label in row.items()}
                    if rows.setdefault(image, row) != row:
                        raise InputError(f"{path}: two lines for {image} that say different things; replace it by the "
                                         "original or take it away")  # fmt: skip
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not a file with a line of JSON an image ({type(error).__name__}: {error}); take it "
                         "away or replace it by the original") from None  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index")
    findings = tuple(finding for finding in CHEXPERT_FINDINGS if finding in table.columns)
    lost = ~name.isin(table.index)
    if not findings or 2 * lost.sum() > len(name):
        raise InputError(f"{path}: has {len(findings)} of CheXpert's findings, and labels for {int((~lost).sum())} of "
                         f"{len(name)} images; replace it by the original or take it away")  # fmt: skip
    notes = not_found(path, CHEXPERT_FINDINGS, findings)
    if lost.any():
        notes.append(Note(f"{path.name}: no line for {int(lost.sum())} of {len(name)} images: blank",
                          name[lost].iloc[0]))  # fmt: skip
    labels = table[list(findings)].reindex(name).fillna("").reset_index(drop=True)
    return findings, labels, notes


def _cell(label: object) -> str:
    return "" if label is None else str(label)
