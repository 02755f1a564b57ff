"""CheXpert."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.csv_file import read_csv
from shard.formats.rows import ENDING, SPLITS, Rows, column

CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
# What the published study probes, in its order.
TASKS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Enlarged Cardiomediastinum")


def read_chexpert(src: Path) -> Rows:
    """CheXpert, original or -small, whole or in its batches, under any prefix: train.csv, valid.csv, maybe test.csv."""
    home = next((folder for folder in _chexpert_homes(src) if (folder / "train.csv").exists()), src)
    frames = []
    for split in SPLITS:
        csv = home / f"{split}.csv"
        if split == "train" or csv.exists():
            frames.append(read_csv(csv, ("Path",)).assign(split=split))
    raw = pd.concat(frames, ignore_index=True)
    findings = chexpert_findings(raw, home / "train.csv", "for a table of your own use --dataset=csv --table=PATH")
    # The prefix is CheXpert-v1.0/, CheXpert-v1.0-small/ or a re-host's own: what counts starts at the split's folder.
    path = raw["Path"].str.replace(r"^(?:.*?/)?(?=(?:train|valid|test)/)", "", regex=True)
    patient = path.str.extract(r"(patient\d+)", expand=False)
    if patient.isna().any():
        raise InputError(f"{home}: Path {raw['Path'][patient.isna()].iloc[0]!r} has no patientNNNNN folder; "
                         "for a table of your own use --dataset=csv --table=PATH")
    view = column(raw, "AP/PA").where(column(raw, "Frontal/Lateral") != "Lateral", "lateral")
    key = path.str.replace(r"^(?:train|valid|test)/", "", regex=True).str.replace(ENDING, "", regex=True)
    frame = pd.DataFrame({"path": _in_batches(src, path, patient), "key": key, "patient": patient,
                          "split": raw["split"], "view": view, "sex": column(raw, "Sex"),
                          "age": column(raw, "Age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]))


def chexpert_findings(table: pd.DataFrame, csv: Path, cure: str) -> tuple[str, ...]:
    """The findings of CheXpert that are columns of a table. Raises InputError if there is none."""
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
