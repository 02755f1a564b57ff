"""CheXpert / NIH ChestX-ray14 / plain CSV → one tidy table.

A format is one function from a folder to a frame with the columns key, path, patient, split, view and one
column a finding: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from shard.errors import InputError

Dataset = Literal["auto", "chexpert", "nih", "csv"]
SPLITS = ("train", "valid", "test")
CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
# What the published study probes, in its order.
TASKS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Enlarged Cardiomediastinum")
NIH_FINDINGS = (
    "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NIH_OPACITIES = ("Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Mass", "Nodule")
_DESCRIPTIVE = ("path", "patient", "split", "view", "key", "sex", "age")


@dataclass(frozen=True)
class Table:
    """Every image of a data set: `rows` has key, path (relative to the source), patient, split, view, findings."""

    dataset: str
    findings: tuple[str, ...]
    rows: pd.DataFrame


def read_table(src: Path, dataset: Dataset = "auto", table: Path | None = None) -> Table:
    """Read the table of the data set in folder `src`, checked: unique keys, known splits and labels, no leak.

    Raises InputError, naming file, value and cure, where the folder, a column, a label or a split can't be used.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; SRC is the folder that holds the images and their CSV")
    if dataset == "auto":
        dataset = _recognise(src, table)
    if dataset == "csv" and table is None:
        raise InputError("--dataset=csv: wants --table=PATH, a CSV with the columns path, patient, split and findings")
    if dataset != "csv" and table is not None:
        raise InputError(f"--table={table}: goes with --dataset=csv, not with {dataset}")
    if dataset == "chexpert":
        result = read_chexpert(src)
    elif dataset == "nih":
        result = read_nih(src)
    else:
        assert table is not None
        result = read_plain(table)
    _check(result, src)
    return result


def read_chexpert(src: Path) -> Table:
    """CheXpert, original or -small, under any path prefix: train.csv, valid.csv and, where it is, test.csv."""
    frames = []
    for split in SPLITS:
        csv = src / f"{split}.csv"
        if split == "train" or csv.exists():
            frames.append(_read_csv(csv, ("Path",)).assign(split=split))
    raw = pd.concat(frames, ignore_index=True)
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in raw.columns)
    if not findings:
        raise InputError(f"{src / 'train.csv'}: none of CheXpert's findings is a column, such as Cardiomegaly; "
                         "for a table of your own use --dataset=csv --table=PATH")
    # The prefix is CheXpert-v1.0/, CheXpert-v1.0-small/ or a re-host's own: what counts starts at the split's folder.
    path = raw["Path"].str.replace(r"^(?:.*?/)?(?=(?:train|valid|test)/)", "", regex=True)
    patient = path.str.extract(r"(patient\d+)", expand=False)
    if patient.isna().any():
        raise InputError(f"{src}: Path {raw['Path'][patient.isna()].iloc[0]!r} has no patientNNNNN folder; "
                         "for a table of your own use --dataset=csv --table=PATH")
    view = _column(raw, "AP/PA").where(_column(raw, "Frontal/Lateral") != "Lateral", "lateral")
    key = path.str.replace(r"^(?:train|valid|test)/", "", regex=True).str.replace(r"\.[A-Za-z]+$", "", regex=True)
    return _tidy("chexpert", findings, raw, key=key, path=path, patient=patient, split=raw["split"], view=view)


def read_nih(src: Path) -> Table:
    """NIH ChestX-ray14: Data_Entry_2017*.csv, images in images/ or images_*/images/, official lists where they are.

    "Lung Opacity" is added as the union of the seven opacities, to stand for CheXpert's finding of that name.
    """
    found = sorted(src.glob("Data_Entry_2017*.csv"))
    csv = found[0] if found else src / "Data_Entry_2017.csv"
    raw = _read_csv(csv, ("Image Index", "Finding Labels", "Patient ID"))
    name = raw["Image Index"]
    folders = [src, src / "images", *sorted(src.glob("images_*/images"))]
    places = {file.name: file.relative_to(src).as_posix() for folder in folders if folder.is_dir()
              for file in folder.iterdir() if file.suffix.lower() == ".png"}  # fmt: skip
    listed = raw["Finding Labels"].str.split("|")
    labels = {finding: listed.map(lambda names, f=finding: float(f in names)) for finding in NIH_FINDINGS}
    labels["Lung Opacity"] = pd.DataFrame(labels)[list(NIH_OPACITIES)].max(axis=1)
    patient = raw["Patient ID"]
    split = _hashed_splits(patient)
    test_list = src / "test_list.txt"
    if test_list.exists():
        official = name.isin(set(test_list.read_text().split()))
        split = split.where(split != "test", "train").where(~official, "test")
    frame = pd.DataFrame(labels)
    path = name.map(lambda file: places.get(file, f"images/{file}"))
    view = _column(raw, "View Position")
    key = name.str.replace(r"\.[A-Za-z]+$", "", regex=True)
    return _tidy("nih", tuple(labels), frame, key=key, path=path, patient=patient, split=split, view=view)


def read_plain(csv: Path) -> Table:
    """A plain CSV: path (relative to the source folder), patient, split (else by patient hash), findings."""
    raw = _read_csv(csv, ("path", "patient"))
    findings = tuple(name for name in raw.columns if name.lower() not in _DESCRIPTIVE)
    patient = raw["patient"]
    split = raw["split"] if "split" in raw.columns else _hashed_splits(patient)
    key = raw["path"].str.replace(r"\.[A-Za-z]+$", "", regex=True)
    view = _column(raw, "view")
    return _tidy("csv", findings, raw, key=key, path=raw["path"], patient=patient, split=split, view=view)


def _recognise(src: Path, table: Path | None) -> Dataset:
    if table is not None:
        return "csv"
    if (src / "train.csv").exists():
        return "chexpert"
    if any(src.glob("Data_Entry_2017*.csv")):
        return "nih"
    raise InputError(f"{src}: neither train.csv (CheXpert) nor Data_Entry_2017*.csv (NIH) is in it; "
                     "name your own table with --table=PATH")


def _read_csv(csv: Path, wanted: tuple[str, ...]) -> pd.DataFrame:
    """A CSV's cells as the text they are, blank as "": patient 007 is not 7, and NA may be a name."""
    try:
        frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file; the data set's table is wanted there") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{csv}: not a readable CSV ({str(error).strip()}); replace it by the original") from None
    for column in wanted:
        if column not in frame.columns:
            raise InputError(f"{csv}: column {column!r} is missing; it has: {', '.join(map(str, frame.columns[:20]))}")
    if frame.empty:
        raise InputError(f"{csv}: no rows below the header; replace it by the original")
    return frame


def _column(raw: pd.DataFrame, name: str) -> pd.Series:
    return raw[name] if name in raw.columns else pd.Series("", index=raw.index)


def _tidy(dataset: str, findings: tuple[str, ...], labels: pd.DataFrame, **columns: pd.Series) -> Table:
    rows = pd.DataFrame(columns)
    # Readers cut keys at the first dot and indexes at spaces: only plain characters stay.
    rows["key"] = rows["key"].map(lambda key: re.sub(r"[^A-Za-z0-9_-]+", "_", str(key).strip("/")))
    for finding in findings:
        values = pd.to_numeric(labels[finding], errors="coerce").astype(float)
        wrong = ~(values.isin((1, 0, -1)) | labels[finding].isin(("", "nan", "NaN", "NA")))
        if wrong.any():
            value, path = labels[finding][wrong].iloc[0], rows["path"][wrong].iloc[0]
            raise InputError(f"finding {finding!r}: label {str(value)!r} of {path} "
                             "is not 1, 0, -1 or blank; mend the table or leave the column out")
        rows[finding] = values
    return Table(dataset, findings, rows)


def _check(table: Table, src: Path) -> None:
    rows = table.rows
    for name in ("path", "patient"):
        blank = rows[rows[name].str.strip() == ""]
        if len(blank):
            row = f"row {blank.index[0] + 1} of {len(rows)}"
            raise InputError(f"{src}: {name} is blank in {row}; fill it in or leave the row out")
    unknown = rows[~rows["split"].isin(SPLITS)]
    if len(unknown):
        split, path = unknown["split"].iloc[0], unknown["path"].iloc[0]
        raise InputError(f"split {split!r} of {path}: not one of {', '.join(SPLITS)}")
    twice = rows[rows["key"].duplicated()]
    if len(twice):
        path, key = twice["path"].iloc[0], twice["key"].iloc[0]
        raise InputError(f"{path}: a second row for key {key!r}; keep one row an image")
    splits = rows.groupby("patient")["split"].nunique()
    if (splits > 1).any():
        leak = splits.index[splits > 1][0]
        raise InputError(f"patient {leak!r} is in more than one split; move all of a patient's images to one")
    if not (rows["split"] == "train").any():
        raise InputError("no row is in split 'train'; there would be nothing to train on")
    if not any((src / path).exists() for path in rows["path"].sample(min(200, len(rows)), random_state=0)):
        raise InputError(f"{src / rows['path'].iloc[0]}: no such image, nor any of 200 rows tried; "
                         "SRC is the folder that the table's paths start from")


def _hashed_splits(patient: pd.Series) -> pd.Series:
    """60 % of patients to train, 20 % to valid, 20 % to test, by a hash of the patient alone.

    Independent of the seed and of the other rows, so that a patient never changes sides when a table grows.
    """
    def split(name: str) -> str:
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        return "train" if place < 0.6 else "valid" if place < 0.8 else "test"

    return patient.map({name: split(name) for name in patient.unique()})
