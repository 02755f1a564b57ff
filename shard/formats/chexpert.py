"""CheXpert (Irvin et al., 2019, arXiv:1901.07031)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.rows import SPLITS, Rows, strip_suffixes, text_column
from shard.note import Note, listed
from shard.paths import normalise_paths
from shard.tabular.columns import AGE, SEX, fold_name, header_has, note_missing, note_unread
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import read_header, tables_in
from shard.tabular.finding_names import CHEXPERT_FINDINGS
from shard.tabular.view import join_views

# The findings that the published study probes, in its order.
TASKS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Enlarged Cardiomediastinum")
TEST_LABELS = "test_labels.csv"  # radiologists' labels, from CheXlocalize
OTHER_LABELS = ("val_labels.csv", "groundtruth.csv")
# Alternative names of findings in labellers' output and test sets.
_SECOND_NAMES = {
    "Lung Opacity": ("Airspace Opacity",), "Pleural Effusion": ("Effusion",), "No Finding": ("No Findings",),
    "Support Devices": ("Support Device",), "Enlarged Cardiomediastinum": ("Enlarged Cardiomediastinal Silhouette",),
}  # fmt: skip
FINDING_COLUMNS = {name: _SECOND_NAMES.get(name, ()) for name in CHEXPERT_FINDINGS}
_COLUMNS = {"Path": (), "Sex": SEX, "Age": AGE, "Frontal/Lateral": (), "AP/PA": ()}


def is_chexpert(src: Path) -> bool:
    """Whether a folder, or a batch in it, has a train.csv with CheXpert's columns: Path and a finding."""
    names = {fold_name(name) for finding, others in FINDING_COLUMNS.items() for name in (finding, *others)}
    headers = [{fold_name(name) for name in read_header(_find_table(home, "train"))} for home in _table_folders(src)]
    return len(headers) > 1 or any("path" in header and header & names for header in headers)


def read_chexpert(src: Path) -> Rows:
    """Read CheXpert, original or -small, complete or in batches.

    The tables are train.csv, valid.csv and optionally test.csv or test_labels.csv. Their paths may have any prefix. A
    finding that one of the tables lacks is blank in its rows; a note says so.
    """
    files, notes = _find_tables(src)
    frames = []
    read_notes = list[Note]()  # placed after the notes about what is not read
    for split, csv in files.items():
        frame, found = read_csv(csv, ("Path",), {**_COLUMNS, **FINDING_COLUMNS})
        frames.append(frame.assign(split=split))
        read_notes += found
        notes += note_unread(csv, frame, (*_COLUMNS, *FINDING_COLUMNS))
        notes += note_missing(csv, _COLUMNS, list(frame), "columns")
    findings = tuple(name for name in CHEXPERT_FINDINGS if any(name in frame for frame in frames))
    chexpert_findings(findings, files["train"])
    notes += note_missing(files["train"], CHEXPERT_FINDINGS, findings)
    for csv, frame in zip(files.values(), frames, strict=True):
        if lacking := [name for name in findings if name not in frame]:
            notes.append(Note(f"{csv.name}: lacks {listed(lacking)}, which other tables contain; left blank"))
    columns = [*_COLUMNS, *findings, "split"]
    raw = pd.concat([frame[[name for name in columns if name in frame]] for frame in frames], ignore_index=True)
    # The prefix is CheXpert-v1.0/, CheXpert-v1.0-small/ or another host's: the path starts at the split's folder.
    path = raw["Path"].str.replace(r"^(?:.*[/\\])?(?=(?:train|valid|test)[/\\])", "", regex=True)
    path, path_notes = normalise_paths(path)
    patient = path.str.extract(r"(patient\d+)", expand=False)
    if patient.isna().any():
        raise InputError(f"{files['train'].parent}: Path {raw['Path'][patient.isna()].iloc[0]!r} contains no "
                         f"patientNNNNN folder; for your own table: --dataset=csv --table={files['train']}")
    view = join_views(text_column(raw, "Frontal/Lateral"), text_column(raw, "AP/PA"))
    key = strip_suffixes(path.str.replace(r"^(?:train|valid|test)/", "", regex=True))
    frame = pd.DataFrame({"path": _paths_in_batches(src, path, patient), "key": key, "patient": patient,
                          "split": raw["split"], "view": view, "sex": text_column(raw, "Sex"),
                          "age": text_column(raw, "Age")})  # fmt: skip
    return Rows(findings, frame.join(raw[list(findings)]), (*notes, *read_notes, *path_notes),
                tuple((csv, len(one)) for csv, one in zip(files.values(), frames, strict=True)))


def chexpert_findings(names: Iterable[str], csv: Path) -> tuple[str, ...]:
    """Return CheXpert's findings among a table's columns. Raises InputError if there is none."""
    findings = tuple(name for name in CHEXPERT_FINDINGS if name in names)
    if not findings:
        raise InputError(f"{csv}: lacks columns of CheXpert's findings, such as Cardiomegaly; for your own "
                         f"table: --dataset=csv --table={csv}")  # fmt: skip
    return findings


def _find_tables(src: Path) -> tuple[dict[str, Path], list[Note]]:
    """The table of each split, and notes about tables of images that are not read."""
    home = next((folder for folder in _table_folders(src) if _find_table(folder, "train").exists()), src)
    files = {split: _find_table(home, split) for split in SPLITS}
    if not files["test"].exists():
        files["test"] = home / TEST_LABELS
    files = {split: csv for split, csv in files.items() if split == "train" or csv.exists()}
    notes = [Note(f"{name} is not read; --dataset=chexlocalize reads it") for name in OTHER_LABELS
             if (home / name).exists()]  # fmt: skip
    others = [table.name for table in tables_in(home) if table not in files.values() and table.name not in OTHER_LABELS
              and header_has(read_header(table), "Path", "Cardiomegaly")]  # fmt: skip
    notes += [Note(f"{name} is not read; train.csv, valid.csv and test.csv or {TEST_LABELS} are") for name in others]
    return files, notes


def _find_table(folder: Path, split: str) -> Path:
    """The table of a split, such as train.csv, in any letter case, optionally gzipped."""
    found = [table for table in tables_in(folder) if table.name.lower() in (f"{split}.csv", f"{split}.csv.gz")]
    if len(found) > 1:
        names = " and ".join(table.name for table in found)
        raise InputError(f"{folder}: contains {names}; keep only one of them")
    return found[0] if found else folder / f"{split}.csv"


def _table_folders(src: Path) -> list[Path]:
    """The folders that may contain the CSVs: `src` itself and the batches that Stanford distributes."""
    return [src, *sorted(src.glob("CheXpert-v1.0 batch *"))]


def _paths_in_batches(src: Path, path: pd.Series, patient: pd.Series) -> pd.Series:
    """Paths inside folders such as "CheXpert-v1.0 batch 2 (train 1)", if the images are there and not in train/."""
    batches = _table_folders(src)[1:]
    if not batches or (src / "train").is_dir():
        return path
    folders = [inside for batch in batches for inside in (batch, batch / "train", batch / "valid")]
    patient_folders = {found.name: found.relative_to(src).as_posix() for folder in folders
                       for found in folder.glob("patient*")}  # fmt: skip
    rest = path.str.replace(r"^.*?patient\d+/", "", regex=True)
    found: pd.Series = (patient.map(patient_folders) + "/" + rest).where(patient.isin(patient_folders), path)
    return found
