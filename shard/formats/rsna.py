"""RSNA Pneumonia Detection Challenge, 2018 (Shih et al., 2019, doi 10.1148/ryai.2019180041): images of NIH's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from shard.errors import PARSE_ERRORS, InputError
from shard.formats.labelled import place_images
from shard.formats.rows import Rows, hashed_splits
from shard.note import Note
from shard.tabular.csv_file import has_columns, read_csv, tables_in

RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
MAPPINGS = "pneumonia-challenge-dataset-mappings_2018.json"


def is_rsna(csv: Path) -> bool:
    """Whether a table has the columns of stage_2_train_labels.csv or stage_2_detailed_class_info.csv."""
    return has_columns(csv, "patientId", "Target") or has_columns(csv, "patientId", "class")


def read_rsna(src: Path, csv: Path, workers: int) -> Rows:
    """RSNA's challenge: its table of boxes, of classes, or both; images anywhere under `src`. Splits are by a hash.

    The findings are the three classes by their own names, of which each image has one; from the table of boxes alone,
    Lung Opacity. That is an opacity that may be pneumonia: less than what CheXpert calls Lung Opacity. A "patientId"
    is an image's: whose it is, is in NIH's file of mappings, and where that is not beside the table, each image is its
    own patient, though patients of NIH's have several.
    """
    targets, classes, notes, tables = None, None, list[Note](), list[tuple[Path, int]]()
    files = dict[str, Path]()
    for table in sorted({csv, *tables_in(csv.parent)}):
        same_stage = table == csv or table.name.startswith(csv.name[:8])  # stage_1_ or stage_2_
        for column in ("Target", "class"):
            if same_stage and has_columns(table, "patientId", column):
                raw, told = read_csv(table, ("patientId", column), {}, ids=("patientId",), only=True)
                notes += told
                tables.append((table, len(raw)))
                files[column] = table
                if column == "Target":
                    targets = _one_each(table, raw, "Target", ("0", "1"))
                else:
                    classes = _one_each(table, raw, "class", RSNA_CLASSES)
    if classes is None:
        assert targets is not None
        labels = pd.DataFrame({"Lung Opacity": targets.astype("float32")})
    else:
        labels = pd.DataFrame({name: (classes == name).astype("float32") for name in RSNA_CLASSES})
        if targets is not None:
            labels, told = _join_targets(labels, targets.astype("float32"), files["class"], files["Target"])
            notes += told
    frame, told = place_images(src, csv, pd.Series(labels.index, dtype="str"), "stage_2_train_images/{}.dcm", workers)
    patients = _read_mappings(csv.parent / MAPPINGS)
    if patients:
        tables.append((csv.parent / MAPPINGS, len(patients)))
        known = frame["key"].map(patients)
        frame["patient"] = known.where(known.notna(), frame["patient"])
        notes.append(Note(f"{int(known.notna().sum())} of {len(frame)} images have NIH's patient, from {MAPPINGS}"))
    else:
        notes.append(Note(f"WARNING: each image counts as its own patient, but NIH has several of some: put {MAPPINGS} "
                          f"(RSNA's page of the challenge has it) beside {csv.name}"))  # fmt: skip
    frame["split"] = hashed_splits(frame["patient"])
    frame[list(labels.columns)] = labels.to_numpy()
    return Rows(tuple(labels.columns), frame, (*notes, *told), tuple(tables))


def _join_targets(
    labels: pd.DataFrame, targets: pd.Series, classes_csv: Path, targets_csv: Path
) -> tuple[pd.DataFrame, list[Note]]:
    """The classes of all images that either table has, and notes of those that only one of them has. An image without a
    class has a Lung Opacity where its Target says so, and no more.

    Raises InputError where the tables contradict each other, or most images of one are not in the other.
    """
    both = labels.join(targets.rename("Target"), how="inner")
    if (wrong := both["Target"] != both["Lung Opacity"]).any():
        raise InputError(f"{classes_csv.parent}: of {int(wrong.sum())} images, such as {both.index[wrong][0]}, the "
                         "class and the Target contradict each other; replace the tables by the originals")  # fmt: skip
    notes = []
    for csv, own, other_csv, others in ((classes_csv, labels.index, targets_csv, targets.index),
                                        (targets_csv, targets.index, classes_csv, labels.index)):  # fmt: skip
        alone = own.difference(others)
        if 2 * len(alone) > len(own):
            raise InputError(f"{other_csv}: no row for {len(alone)} of {len(own)} images of {csv.name}, such as "
                             f"{alone[0]} (one it has is {others[0]}); replace it by the original or take it away")
        if len(alone):
            notes.append(Note(f"{other_csv.name}: no row for {len(alone)} of {len(own)} images of {csv.name}",
                              f"{alone[0]}; it has {others[0]}"))  # fmt: skip
    whole = labels.reindex(labels.index.append(targets.index.difference(labels.index, sort=False)))
    whole["Lung Opacity"] = whole["Lung Opacity"].fillna(targets)
    return whole, notes


def _one_each(csv: Path, raw: pd.DataFrame, name: str, known: tuple[str, ...]) -> pd.Series:
    """The cell of each image, of which there are several rows where there are several boxes."""
    cells = raw[name].str.replace(r"\.0$", "", regex=True)
    if (unknown := ~cells.isin(known)).any():
        raise InputError(f"{csv}: {name} {cells[unknown].iloc[0]!r} of {raw['patientId'][unknown].iloc[0]}: none of "
                         f"{', '.join(known)}; replace it by the original")  # fmt: skip
    once = pd.DataFrame({"id": raw["patientId"], "cell": cells}).drop_duplicates()
    if (twice := once["id"].duplicated()).any():
        raise InputError(f"{csv}: {once['id'][twice].iloc[0]} has several {name}s; replace it by the original")
    one: pd.Series = once.set_index("id")["cell"]
    return one


def _read_mappings(path: Path) -> dict[str, str]:
    """RSNA's id of an image → NIH's of its patient. Empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {str(row["subset_img_id"]): str(row["img_id"]) for row in rows}
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: not RSNA's file of mappings ({type(error).__name__}: {error}); take it away or "
                         "replace it by the original") from None  # fmt: skip
    found = {image: re.match(r"0*(\d+)_", name) for image, name in names.items()}
    return {image: match[1] for image, match in found.items() if match}
