"""One function a data set: a folder → a frame with the columns path, key, patient, split, view, sex, age, findings.

Cells are the text of the CSV, blank as "": checking, labels and rejects are table.py's.
"""

from __future__ import annotations

import csv as csv_module
import gzip
import hashlib
import zlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from shard.errors import InputError

SPLITS = ("train", "valid", "test")
CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
NIH_FINDINGS = (
    "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NIH_OPACITIES = ("Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Mass", "Nodule")
# What the published study probes, in its order.
TASKS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Enlarged Cardiomediastinum")
MIMIC_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
ENDING = r"(?i)\.(?:jpe?g|png|tiff?|dcm|dicom|bmp|jp2|webp|gif|pgm)$"
_UNLIKE = ("key",)  # beside those wanted, columns whose cells differ row by row
_NOT_FINDINGS = ("path", "key", "patient", "split", "view", "sex", "age")


class Rows(NamedTuple):
    """What a format reads: the frame, and which of its columns are findings."""

    findings: tuple[str, ...]
    frame: pd.DataFrame


def read_chexpert(src: Path) -> Rows:
    """CheXpert, original or -small, whole or in its batches, under any prefix: train.csv, valid.csv, maybe test.csv."""
    home = next((folder for folder in _chexpert_homes(src) if (folder / "train.csv").exists()), src)
    frames = []
    for split in SPLITS:
        csv = home / f"{split}.csv"
        if split == "train" or csv.exists():
            frames.append(read_csv(csv, ("Path",)).assign(split=split))
    raw = pd.concat(frames, ignore_index=True)
    findings = _chexpert_findings(raw, home / "train.csv", "for a table of your own use --dataset=csv --table=PATH")
    # The prefix is CheXpert-v1.0/, CheXpert-v1.0-small/ or a re-host's own: what counts starts at the split's folder.
    path = raw["Path"].str.replace(r"^(?:.*?/)?(?=(?:train|valid|test)/)", "", regex=True)
    patient = path.str.extract(r"(patient\d+)", expand=False)
    if patient.isna().any():
        raise InputError(f"{home}: Path {raw['Path'][patient.isna()].iloc[0]!r} has no patientNNNNN folder; "
                         "for a table of your own use --dataset=csv --table=PATH")
    view = _column(raw, "AP/PA").where(_column(raw, "Frontal/Lateral") != "Lateral", "lateral")
    key = path.str.replace(r"^(?:train|valid|test)/", "", regex=True).str.replace(ENDING, "", regex=True)
    frame = pd.DataFrame({"path": _in_batches(src, path, patient), "key": key, "patient": patient,
                          "split": raw["split"], "view": view, "sex": _column(raw, "Sex"),
                          "age": _column(raw, "Age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]))


def _chexpert_findings(table: pd.DataFrame, csv: Path, cure: str) -> tuple[str, ...]:
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in table.columns)
    if not findings:
        raise InputError(f"{csv}: none of CheXpert's findings is a column, such as Cardiomegaly; {cure}")
    return findings


def _chexpert_homes(src: Path) -> list[Path]:
    """Where the CSVs may lie: in the folder itself or, as Stanford hands it out, in one of its batches."""
    return [src, *sorted(src.glob("CheXpert-v1.0 batch *"))]


def _in_batches(src: Path, path: pd.Series, patient: pd.Series) -> pd.Series:
    """Paths inside "CheXpert-v1.0 batch 2 (train 1)" and its like, where the images lie so and not in train/."""
    batches = _chexpert_homes(src)[1:]
    if not batches or (src / "train").is_dir():
        return path
    folders = [inside for batch in batches for inside in (batch, batch / "train", batch / "valid")]
    places = {found.name: found.relative_to(src).as_posix() for folder in folders for found in folder.glob("patient*")}
    rest = path.str.replace(r"^.*?patient\d+/", "", regex=True)
    found: pd.Series = (patient.map(places) + "/" + rest).where(patient.isin(places), path)
    return found


def read_nih(src: Path) -> Rows:
    """NIH ChestX-ray14: Data_Entry_2017*.csv, images in images/ or images_*/images/, test_list.txt where it is.

    With that official list a patient is tested on where the list says so, and others whom a hash would have put into
    split test are trained on. "Lung Opacity" is added as the union of the seven opacities, to stand for CheXpert's
    finding of that name.
    """
    csv = _only(src, "Data_Entry_2017*.csv")
    raw = read_csv(csv, ("Image Index", "Finding Labels", "Patient ID"))
    name, patient = raw["Image Index"], raw["Patient ID"]
    folders = [src, src / "images", *sorted(src.glob("images_*/images"))]
    places = {file.name: file.relative_to(src).as_posix() for folder in folders if folder.is_dir()
              for file in folder.iterdir() if file.suffix.lower() == ".png"}  # fmt: skip
    listed = raw["Finding Labels"].map(lambda text: [name.strip() for name in text.split("|")])
    for image, names in zip(name, listed, strict=True):
        for unknown in set(names).difference(NIH_FINDINGS):
            raise InputError(f"{csv}: Finding Labels {unknown!r} of {image}: none of {', '.join(NIH_FINDINGS)}; "
                             "replace it by the original")  # fmt: skip
    labels = pd.DataFrame({finding: listed.map(lambda names, f=finding: float(f in names)) for finding in NIH_FINDINGS})
    labels["Lung Opacity"] = labels[list(NIH_OPACITIES)].max(axis=1)
    split = hashed_splits(patient)
    test_list = src / "test_list.txt"
    if test_list.exists():
        official = name.isin(set(test_list.read_text().split()))
        if not official.any():
            raise InputError(f"{test_list}: names none of the {len(name)} images of {csv.name}; take it away, and a "
                             "hash of patients makes the splits")  # fmt: skip
        split = split.where(split != "test", "train").where(~official, "test")
    frame = pd.DataFrame({"path": name.map(lambda file: places.get(file, f"images/{file}")),
                          "key": name.str.replace(ENDING, "", regex=True), "patient": patient, "split": split,
                          "view": _column(raw, "View Position"), "sex": _column(raw, "Patient Gender"),
                          "age": _column(raw, "Patient Age")})  # fmt: skip
    return Rows(tuple(labels), frame.join(labels))


def read_mimic(src: Path) -> Rows:
    """MIMIC-CXR-JPG: its metadata, chexpert and split tables (.csv.gz or .csv) and files/pNN/pNNNNNNNN/sNNNNNNNN/."""
    wanted = {"metadata": ("dicom_id", "subject_id", "study_id"), "chexpert": ("subject_id", "study_id"),
              "split": ("dicom_id", "split")}  # fmt: skip
    tables = {name: _only(src, f"mimic-cxr-*-{name}.csv*") for name in wanted}
    raw, labels, splits = (read_csv(csv, wanted[name]) for name, csv in tables.items())
    findings = _chexpert_findings(labels, tables["chexpert"], "replace it by the original")
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
                          "view": _column(raw, "ViewPosition"), "sex": "", "age": ""})  # its tables do not say
    return Rows(findings, frame.join(raw[list(findings)]))


def read_plain(csv: Path) -> Rows:
    """A plain CSV: path, patient, findings; key, else made of path; split, else by patient hash."""
    raw = read_csv(csv, ("path", "patient"), any_case=_NOT_FINDINGS)
    findings = tuple(name for name in raw.columns if name not in _NOT_FINDINGS)
    for name in findings:
        if not str(name).isprintable() or not str(name).strip():
            raise InputError(f"{csv}: column {name!r}: a finding's name wants letters, no line breaks and the like; "
                             "rename it")  # fmt: skip
    key = raw["key"] if "key" in raw.columns else raw["path"].str.replace(ENDING, "", regex=True)
    split = _column(raw, "split").str.strip() if "split" in raw.columns else hashed_splits(raw["patient"])
    frame = pd.DataFrame({"path": raw["path"], "key": key, "patient": raw["patient"], "split": split,
                          "view": _column(raw, "view"), "sex": _column(raw, "sex"),
                          "age": _column(raw, "age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]))


def hashed_splits(patient: pd.Series) -> pd.Series:
    """60 % of patients to train, 20 % to valid, 20 % to test, by a hash of the patient alone.

    Independent of the seed and of the other rows, so that a patient never changes sides when a table grows.
    """
    def split(name: str) -> str:
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        return "train" if place < 0.6 else "valid" if place < 0.8 else "test"

    return patient.map({name: split(name) for name in patient.unique()})


def read_csv(csv: Path, wanted: tuple[str, ...], any_case: tuple[str, ...] = ()) -> pd.DataFrame:
    """A CSV's cells as the text they are, blank as "": patient 007 is not 7, and NA may be a name.

    The columns `wanted` are of dtype str and without blanks around them, the others categories. any_case: columns that
    may be called so in capitals too. Raises InputError where there is no such file, table, row, or column of those
    `wanted`, or one of any_case is there twice.
    """
    try:
        names = {name: name.strip().lower() for name in _read_header(csv) if name.strip().lower() in any_case}
        # Few words, often repeated, are kept once: the table of an archive takes megabytes, not gigabytes.
        own = [name for name in names if names[name] in (*wanted, *_UNLIKE)]
        kinds = defaultdict(lambda: "category", dict.fromkeys((*wanted, *_UNLIKE, *own), "str"))
        frame: pd.DataFrame = pd.read_csv(csv, dtype=kinds, keep_default_na=False, index_col=False)
        frame = frame.rename(columns=names)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file; the data set's table is wanted there") from None
    except (ValueError, OSError, EOFError, zlib.error, csv_module.Error) as error:  # pandas' own are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{csv}: not a readable CSV ({reason}); replace it by the original") from None
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        shown = " and ".join(name for name in names if names[name] == twice[0])
        raise InputError(f"{csv}: columns {shown} are both its {twice[0]}; leave one out")
    for column in wanted:
        if column not in frame.columns:
            raise InputError(f"{csv}: column {column!r} is missing; it has: {', '.join(map(str, frame.columns[:20]))}")
        frame[column] = frame[column].str.strip()  # "1" and " 1" are one patient, who must not be in two splits
    if frame.empty:
        raise InputError(f"{csv}: no rows below the header; replace it by the original")
    return frame


def _read_header(csv: Path) -> list[str]:
    """The names of the columns. Every row must have as many cells: pandas fills up one cut short, and says nothing."""
    with (gzip.open if csv.suffix == ".gz" else open)(csv, "rt", encoding="utf-8-sig", newline="") as file:
        rows = csv_module.reader(file)
        header = next(rows, [])
        for number, row in enumerate(rows, 1):
            if row and len(row) != len(header):
                raise InputError(f"{csv}: row {number} has {len(row)} cells, the header {len(header)}; "
                                 "replace it by the original")
    return header


def _only(src: Path, pattern: str) -> Path:
    """The file of that name; a name that says what is wanted where there is none."""
    found = sorted(src.glob(pattern))
    if len(found) > 1:
        raise InputError(f"{src}: has {' and '.join(file.name for file in found)}; which one is it? Keep one there")
    return found[0] if found else src / pattern


def _column(raw: pd.DataFrame, name: str) -> pd.Series:
    return raw[name].astype("str") if name in raw.columns else pd.Series("", index=raw.index)
