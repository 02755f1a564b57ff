"""VinDr-CXR (Nguyen et al., 2022, doi 10.1038/s41597-022-01498-w), and VinBigData's part of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.images_by_id import find_images_by_id
from shard.formats.rows import Rows, hashed_splits
from shard.formats.votes import Votes, labels_as_numbers, vote
from shard.note import Note
from shard.tabular.columns import fold_name
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns

# Column names (folded) → CheXpert's name of the same finding, or one spelling of both tables.
_NAMES = {"nofinding": "No Finding", "pleuraleffusion": "Pleural Effusion", "otherdisease": "Other diseases"}
_BOXES = ("class_name",)  # in tables with one row per box, where a reader's labels are the classes of the boxes


def is_vindr(csv: Path) -> bool:
    """Whether a table has VinDr's columns: an image and its reader, or an image and No finding."""
    return has_columns(csv, "image_id", "rad_id") or has_columns(csv, "image_id", "No finding")


def read_vindr(src: Path, csv: Path, votes: Votes, workers: int) -> Rows:
    """Read VinDr-CXR, or VinBigData's train.csv with one row per box; images anywhere under `src`.

    VinDr-CXR has image_labels_train.csv, three radiologists per image, and image_labels_test.csv, their consensus.
    The findings are those of the tables, local findings and diagnoses; unmarked findings are 0, because readers
    assessed all of them. Findings that CheXpert also has use CheXpert's name: No Finding, Pleural Effusion. Test images
    are split test, others train or valid by a hash. Patients are read from DICOM tags, because the tables do not
    identify them; otherwise each image counts as a separate patient.
    """
    siblings = {fold_name(file.stem): file for file in csv.parent.iterdir()}
    test = siblings.get("imagelabelstest") if fold_name(csv.stem) == "imagelabelstrain" else None
    parts, notes, tables = list[pd.DataFrame](), list[Note](), list[tuple[Path, int]]()
    for table, split in ((csv, "test" if fold_name(csv.stem) == "imagelabelstest" else ""), (test, "test")):
        if table is not None:
            labels, table_notes, rows = _read_votes(table, votes)
            first = {fold_name(name): name for part in parts for name in part.columns}
            labels = labels.rename(columns=lambda name, first=first: first.get(fold_name(name), name))
            tables.append((table, rows))
            parts.append(labels.assign(split=split))
            notes += table_notes
    labels = pd.concat(parts)
    findings = tuple(name for name in labels.columns if name != "split")
    ids = pd.Series(labels.index, dtype="str")
    frame, image_notes = find_images_by_id(src, csv, ids, "train/{}.dicom", workers)
    hashed = hashed_splits(frame["patient"])
    official = labels["split"].to_numpy() == "test"
    if official.any():
        hashed = hashed.where(hashed != "test", "train").where(~official, "test")
    frame["split"] = hashed
    frame[list(findings)] = labels[list(findings)].to_numpy()
    return Rows(findings, frame, (*notes, *image_notes), tuple(tables))


def _read_votes(csv: Path, votes: Votes) -> tuple[pd.DataFrame, list[Note], int]:
    """Combine the readers of a table: labels with one row per image, notes, and the table's number of rows."""
    boxes = has_columns(csv, *_BOXES)
    raw, notes = read_csv(csv, ("image_id", *(_BOXES if boxes else ())), {"rad_id": ()}, ids=("image_id", "rad_id"))
    readers = raw["rad_id"].astype("str") if "rad_id" in raw else pd.Series("", index=raw.index)
    if boxes:
        spelling = {fold_name(name): _finding_name(name) for name in sorted(raw["class_name"].unique(), reverse=True)}
        classes = raw["class_name"].map(lambda name: spelling[fold_name(name)])
        seen = pd.crosstab([raw["image_id"], readers], classes).clip(upper=1)
        labels = seen.astype("float32").reset_index(level=0)
    else:
        own = [name for name in raw.columns if name not in ("image_id", "rad_id") and not name.startswith("Unnamed: ")]
        labels = labels_as_numbers(csv, raw[own], raw["image_id"]).rename(columns=_finding_name)
        labels = labels.assign(image_id=raw["image_id"])
        once = ~pd.concat([labels, readers.rename("rad_id")], axis=1).duplicated()
        labels, readers = labels[once], readers[once]
        repeated = pd.concat([labels["image_id"], readers], axis=1).duplicated() & (readers != "")
        if repeated.any():
            reader, image = readers[repeated].iloc[0], labels["image_id"][repeated].iloc[0]
            raise InputError(f"{csv}: two rows of reader {reader} for {image} contradict each other; replace it with "
                             "the original file")  # fmt: skip
    voted, vote_notes = vote(labels.drop(columns="image_id"), labels["image_id"], votes)
    return voted, [*notes, *(note._replace(text=f"{csv.name}: {note.text}") for note in vote_notes)], len(raw)


def _finding_name(column: str) -> str:
    return _NAMES.get(fold_name(column), column.strip())
