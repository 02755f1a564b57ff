"""VinDr-CXR (Nguyen et al., 2022, doi 10.1038/s41597-022-01498-w), and VinBigData's part of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.labelled import place_images
from shard.formats.rows import Rows, hashed_splits
from shard.note import Note
from shard.tabular.columns import fold
from shard.tabular.csv_file import has_columns, read_csv
from shard.tabular.votes import Votes, as_numbers, vote

# As CheXpert calls them, where they are the same finding; "Other disease" is the test table's spelling.
_NAMES = {"nofinding": "No Finding", "pleuraleffusion": "Pleural Effusion", "otherdisease": "Other diseases"}
_BOXES = ("class_name",)  # in tables with a row a box; the classes of a reader are those of his boxes


def is_vindr(csv: Path) -> bool:
    """Whether a table has VinDr's columns: an image and its reader, or an image and No finding."""
    return has_columns(csv, "image_id", "rad_id") or has_columns(csv, "image_id", "No finding")


def read_vindr(src: Path, csv: Path, votes: Votes, workers: int) -> Rows:
    """VinDr-CXR: image_labels_train.csv, in which three radiologists read each image, and image_labels_test.csv, their
    consensus; or VinBigData's train.csv, with a row a box. Images anywhere under `src`.

    The findings are the tables' own (local ones and diagnoses), 0 where a reader did not mark one: each was asked for.
    What CheXpert calls the same bears its name: No Finding, Pleural Effusion. Test images are split test, others train
    or valid by a hash. The tables name no patients: they are DICOM's tags', else each image is its own patient.
    """
    home = {fold(file.stem): file for file in csv.parent.iterdir()}
    test = home.get("imagelabelstest") if fold(csv.stem) == "imagelabelstrain" else None
    parts, notes, tables = list[pd.DataFrame](), list[Note](), list[tuple[Path, int]]()
    for table, split in ((csv, "test" if fold(csv.stem) == "imagelabelstest" else ""), (test, "test")):
        if table is not None:
            labels, told, rows = _read_votes(table, votes)
            first = {fold(name): name for part in parts for name in part.columns}
            labels = labels.rename(columns=lambda name, first=first: first.get(fold(name), name))
            tables.append((table, rows))
            parts.append(labels.assign(split=split))
            notes += told
    labels = pd.concat(parts)
    findings = tuple(name for name in labels.columns if name != "split")
    frame, told = place_images(src, csv, pd.Series(labels.index, dtype="str"), "train/{}.dicom", workers)
    hashed = hashed_splits(frame["patient"])
    official = labels["split"].to_numpy() == "test"
    if official.any():
        hashed = hashed.where(hashed != "test", "train").where(~official, "test")
    frame["split"] = hashed
    frame[list(findings)] = labels[list(findings)].to_numpy()
    return Rows(findings, frame, (*notes, *told), tuple(tables))


def _read_votes(csv: Path, votes: Votes) -> tuple[pd.DataFrame, list[Note], int]:
    """One row an image, a column a finding; and of how many rows."""
    boxes = has_columns(csv, *_BOXES)
    raw, notes = read_csv(csv, ("image_id", *(_BOXES if boxes else ())), {"rad_id": ()}, ids=("image_id", "rad_id"))
    readers = raw["rad_id"].astype("str") if "rad_id" in raw else pd.Series("", index=raw.index)
    if boxes:
        spelt = {fold(name): _name(name) for name in sorted(raw["class_name"].unique(), reverse=True)}
        classes = raw["class_name"].map(lambda name: spelt[fold(name)])
        seen = pd.crosstab([raw["image_id"], readers], classes).clip(upper=1)
        labels = seen.astype("float32").reset_index(level=0)
    else:
        own = [name for name in raw.columns if name not in ("image_id", "rad_id") and not name.startswith("Unnamed: ")]
        labels = as_numbers(csv, raw[own], raw["image_id"]).rename(columns=_name).assign(image_id=raw["image_id"])
        once = ~pd.concat([labels, readers.rename("rad_id")], axis=1).duplicated()
        labels, readers = labels[once], readers[once]
        if (twice := pd.concat([labels["image_id"], readers], axis=1).duplicated() & (readers != "")).any():
            reader, image = readers[twice].iloc[0], labels["image_id"][twice].iloc[0]
            raise InputError(f"{csv}: reader {reader} has two rows for {image} that say different things; replace it "
                             "by the original")  # fmt: skip
    voted, told = vote(labels.drop(columns="image_id"), labels["image_id"], votes)
    return voted, [*notes, *(note._replace(text=f"{csv.name}: {note.text}") for note in told)], len(raw)


def _name(column: str) -> str:
    return _NAMES.get(fold(column), column.strip())
