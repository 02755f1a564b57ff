"""CheXpert."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.rows import ENDING, SPLITS, Rows, column
from shard.note import Note, listed
from shard.paths import in_one_spelling
from shard.tabular.columns import AGE, SEX, fold, has, not_found, not_taken
from shard.tabular.csv_file import header_of, read_csv, tables_in
from shard.tabular.view import join_views

CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
# What the published study probes, in its order.
TASKS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Enlarged Cardiomediastinum")
TEST_LABELS = "test_labels.csv"  # radiologists', as CheXlocalize has them
OTHER_LABELS = ("val_labels.csv", "groundtruth.csv")
# What its labellers and test sets call a finding otherwise.
SECOND_NAMES = {
    "Lung Opacity": ("Airspace Opacity",), "Pleural Effusion": ("Effusion",), "No Finding": ("No Findings",),
    "Support Devices": ("Support Device",), "Enlarged Cardiomediastinum": ("Enlarged Cardiomediastinal Silhouette",),
}  # fmt: skip
KNOWN = {name: SECOND_NAMES.get(name, ()) for name in CHEXPERT_FINDINGS}
_COLUMNS = {"Path": (), "Sex": SEX, "Age": AGE, "Frontal/Lateral": (), "AP/PA": ()}


def is_chexpert(src: Path) -> bool:
    """Whether a folder, or a batch in it, has a train.csv with CheXpert's columns: Path and a finding."""
    names = {fold(name) for finding, others in KNOWN.items() for name in (finding, *others)}
    headers = [{fold(name) for name in header_of(_table_of(home, "train"))} for home in _chexpert_homes(src)]
    return len(headers) > 1 or any("path" in header and header & names for header in headers)


def read_chexpert(src: Path) -> Rows:
    """CheXpert, original or -small, whole or in its batches, under any prefix: train.csv, valid.csv, maybe test.csv or
    test_labels.csv.

    A finding that one of the tables lacks is blank in its rows, and noted.
    """
    home = next((folder for folder in _chexpert_homes(src) if _table_of(folder, "train").exists()), src)
    files = {split: _table_of(home, split) for split in SPLITS}
    if not files["test"].exists():
        files["test"] = home / TEST_LABELS
    files = {split: csv for split, csv in files.items() if split == "train" or csv.exists()}
    notes = [Note(f"{name} is not read; --dataset=chexlocalize reads it") for name in OTHER_LABELS
             if (home / name).exists()]  # fmt: skip
    notes += _not_read(home, files.values())
    frames = []
    read = list[Note]()  # what is lost is told before how the tables were read
    for split, csv in files.items():
        frame, found = read_csv(csv, ("Path",), {**_COLUMNS, **KNOWN})
        frames.append(frame.assign(split=split))
        read += found
        notes += not_taken(csv, frame, (*_COLUMNS, *KNOWN))
        notes += not_found(csv, _COLUMNS, list(frame), "columns")
    findings = tuple(name for name in CHEXPERT_FINDINGS if any(name in frame for frame in frames))
    chexpert_findings(findings, files["train"])
    notes += not_found(files["train"], CHEXPERT_FINDINGS, findings)
    for csv, frame in zip(files.values(), frames, strict=True):
        if lacking := [name for name in findings if name not in frame]:
            notes.append(Note(f"{csv.name}: lacks {listed(lacking)}, which other tables of the set have: blank there"))
    taken = [*_COLUMNS, *findings, "split"]
    raw = pd.concat([frame[[name for name in taken if name in frame]] for frame in frames], ignore_index=True)
    # The prefix is CheXpert-v1.0/, CheXpert-v1.0-small/ or a re-host's own: what counts starts at the split's folder.
    path = raw["Path"].str.replace(r"^(?:.*[/\\])?(?=(?:train|valid|test)[/\\])", "", regex=True)
    path, told = in_one_spelling(path)
    patient = path.str.extract(r"(patient\d+)", expand=False)
    if patient.isna().any():
        raise InputError(f"{home}: Path {raw['Path'][patient.isna()].iloc[0]!r} has no patientNNNNN folder; "
                         f"for a table of your own: --dataset=csv --table={files['train']}")
    view = join_views(column(raw, "Frontal/Lateral"), column(raw, "AP/PA"))
    key = path.str.replace(r"^(?:train|valid|test)/", "", regex=True).str.replace(ENDING, "", regex=True)
    frame = pd.DataFrame({"path": _in_batches(src, path, patient), "key": key, "patient": patient,
                          "split": raw["split"], "view": view, "sex": column(raw, "Sex"),
                          "age": column(raw, "Age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]), (*notes, *read, *told),
                tuple((csv, len(one)) for csv, one in zip(files.values(), frames, strict=True)))


def chexpert_findings(names: Iterable[str], csv: Path) -> tuple[str, ...]:
    """The findings of CheXpert that are among a table's columns. Raises InputError if there is none."""
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in names)
    if not findings:
        raise InputError(f"{csv}: none of CheXpert's findings is a column, such as Cardiomegaly; for a table of your "
                         f"own: --dataset=csv --table={csv}")  # fmt: skip
    return findings


def _not_read(home: Path, read: Iterable[Path]) -> list[Note]:
    """Notes of tables of images beside those that are read, such as a validation.csv."""
    others = [table.name for table in tables_in(home) if table not in read and table.name not in OTHER_LABELS
              and has(header_of(table), "Path") and has(header_of(table), "Cardiomegaly")]  # fmt: skip
    return [Note(f"{name} is not read; train.csv, valid.csv and test.csv or {TEST_LABELS} are") for name in others]


def _table_of(folder: Path, split: str) -> Path:
    """The table of a split, such as train.csv: in any case, and gzipped or not."""
    found = [table for table in tables_in(folder) if table.name.lower() in (f"{split}.csv", f"{split}.csv.gz")]
    if len(found) > 1:
        names = " and ".join(table.name for table in found)
        raise InputError(f"{folder}: has {names}; which one is it? Keep one there")
    return found[0] if found else folder / f"{split}.csv"


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
