"""RSNA Pneumonia Detection Challenge, 2018 (Shih et al., 2019, doi 10.1148/ryai.2019180041): images from NIH."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from shard.errors import PARSE_ERRORS, InputError
from shard.formats.images_by_id import find_images_by_id
from shard.formats.rows import Rows, hashed_splits
from shard.note import Note
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns, tables_in
from shard.tabular.join import is_majority

RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
MAPPINGS = "pneumonia-challenge-dataset-mappings_2018.json"
_VALUES = {"Target": ("0", "1"), "class": RSNA_CLASSES}  # column of labels → its values


def is_rsna(csv: Path) -> bool:
    """Whether a table has the columns of stage_2_train_labels.csv or stage_2_detailed_class_info.csv."""
    return any(has_columns(csv, "patientId", column) for column in _VALUES)


def read_rsna(src: Path, csv: Path, workers: int) -> Rows:
    """Read RSNA's challenge: its table of boxes, of classes, or both; images anywhere under `src`.

    The findings are the three classes under their own names; each image has one. With the table of boxes alone, the
    finding is Lung Opacity: an opacity that may be pneumonia, which is narrower than CheXpert's Lung Opacity. A
    "patientId" identifies an image. NIH's patients are in its file of mappings; if that is not next to the table, each
    image counts as a separate patient, although some of NIH's patients have several. Splits are by a hash of patients.
    """
    files, columns, notes, tables = _read_columns(csv)
    targets, classes = columns.get("Target"), columns.get("class")
    if classes is None:
        assert targets is not None
        labels = pd.DataFrame({"Lung Opacity": targets.astype("float32")})
    else:
        labels = pd.DataFrame({name: (classes == name).astype("float32") for name in RSNA_CLASSES})
        if targets is not None:
            labels, target_notes = _join_targets(labels, targets.astype("float32"), files["class"], files["Target"])
            notes += target_notes
    ids = pd.Series(labels.index, dtype="str")
    frame, image_notes = find_images_by_id(src, csv, ids, "stage_2_train_images/{}.dcm", workers)
    patients = _read_mappings(csv.parent / MAPPINGS)
    if patients:
        tables.append((csv.parent / MAPPINGS, len(patients)))
        known = frame["key"].map(patients)
        frame["patient"] = known.where(known.notna(), frame["patient"])
        notes.append(Note(f"{int(known.notna().sum())} of {len(frame)} images have NIH's patient, from {MAPPINGS}"))
    else:
        notes.append(Note(f"WARNING: each image counts as a separate patient, but some have several images: put "
                          f"{MAPPINGS} (from RSNA's page of the challenge) next to {csv.name}"))  # fmt: skip
    frame["split"] = hashed_splits(frame["patient"])
    frame[list(labels.columns)] = labels.to_numpy()
    return Rows(tuple(labels.columns), frame, (*notes, *image_notes), tuple(tables))


def _read_columns(
    csv: Path,
) -> tuple[dict[str, Path], dict[str, pd.Series], list[Note], list[tuple[Path, int]]]:
    """Read the columns Target and class of `csv` and other tables of its stage.

    Returns the file of each column, its cells by image, notes, and each table read with its number of rows.
    """
    files, columns = dict[str, Path](), dict[str, pd.Series]()
    notes, tables = list[Note](), list[tuple[Path, int]]()
    for table in sorted({csv, *tables_in(csv.parent)}):
        same_stage = table == csv or table.name.startswith(csv.name[:8])  # stage_1_ or stage_2_
        for column, values in _VALUES.items():
            if same_stage and has_columns(table, "patientId", column):
                raw, table_notes = read_csv(table, ("patientId", column), {}, ids=("patientId",), only=True)
                notes += table_notes
                tables.append((table, len(raw)))
                files[column] = table
                columns[column] = _one_per_image(table, raw, column, values)
    return files, columns, notes, tables


def _join_targets(
    labels: pd.DataFrame, targets: pd.Series, classes_csv: Path, targets_csv: Path
) -> tuple[pd.DataFrame, list[Note]]:
    """Join the classes and targets of the images in either table, with notes about images in only one of them.

    An image without a class has only Lung Opacity, from its Target. Raises InputError if the tables contradict each
    other, or most images of one are not in the other.
    """
    both = labels.join(targets.rename("Target"), how="inner")
    if (wrong := both["Target"] != both["Lung Opacity"]).any():
        raise InputError(f"{classes_csv.parent}: for {int(wrong.sum())} images, such as {both.index[wrong][0]}, the "
                         "class and the Target contradict each other; replace the tables with the originals")
    notes = []
    for csv, own, other_csv, others in ((classes_csv, labels.index, targets_csv, targets.index),
                                        (targets_csv, targets.index, classes_csv, labels.index)):  # fmt: skip
        missing = own.difference(others)
        if is_majority(len(missing), len(own)):
            raise InputError(f"{other_csv}: no row for {len(missing)} of {len(own)} images of {csv.name}, such as "
                             f"{missing[0]} (it has {others[0]}); replace it with the original file or remove it")
        if len(missing):
            notes.append(Note(f"{other_csv.name}: no row for {len(missing)} of {len(own)} images of {csv.name}",
                              f"{missing[0]}; it has {others[0]}"))  # fmt: skip
    joined = labels.reindex(labels.index.append(targets.index.difference(labels.index, sort=False)))
    joined["Lung Opacity"] = joined["Lung Opacity"].fillna(targets)
    return joined, notes


def _one_per_image(csv: Path, raw: pd.DataFrame, name: str, values: tuple[str, ...]) -> pd.Series:
    """The cell of each image, which has one row per box. Raises InputError if they differ or are not in `values`."""
    cells = raw[name].str.replace(r"\.0$", "", regex=True)
    if (unknown := ~cells.isin(values)).any():
        raise InputError(f"{csv}: {name} {cells[unknown].iloc[0]!r} of {raw['patientId'][unknown].iloc[0]} is not "
                         f"one of {', '.join(values)}; replace it with the original file")  # fmt: skip
    once = pd.DataFrame({"id": raw["patientId"], "cell": cells}).drop_duplicates()
    if (repeated := once["id"].duplicated()).any():
        image = once["id"][repeated].iloc[0]
        raise InputError(f"{csv}: {image} has several {name}s; replace it with the original file")
    one: pd.Series = once.set_index("id")["cell"]
    return one


def _read_mappings(path: Path) -> dict[str, str]:
    """Map RSNA's image ids to NIH's patients. Empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {str(row["subset_img_id"]): str(row["img_id"]) for row in rows}
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not RSNA's file of mappings ({type(error).__name__}: {error}); remove it or "
                         "replace it with the original file") from None  # fmt: skip
    found = {image: re.match(r"0*(\d+)_", name) for image, name in names.items()}
    return {image: match[1] for image, match in found.items() if match}
