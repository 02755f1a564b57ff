"""NIH ChestX-ray14 (Wang et al., 2017, arXiv:1705.02315)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.rows import Rows, find_file, hashed_splits, strip_suffixes, text_column
from shard.note import Note
from shard.tabular.columns import AGE, SEX, VIEW, note_missing, note_unread
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import has_columns, tables_in
from shard.tabular.finding_names import NIH_FINDINGS
from shard.tabular.text_file import read_lines

NIH_OPACITIES = ("Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Mass", "Nodule")
_REQUIRED = ("Image Index", "Finding Labels", "Patient ID")
_OPTIONAL = {"Patient Age": AGE, "Patient Gender": SEX, "View Position": VIEW}


def is_nih(src: Path) -> bool:
    """Whether a folder has NIH's table, by its name or its columns."""
    return any(src.glob("Data_Entry_2017*.csv")) or any(has_columns(csv, *_REQUIRED) for csv in tables_in(src))


def read_nih(src: Path) -> Rows:
    """Read NIH ChestX-ray14: Data_Entry_2017*.csv or another table with its columns; images/ or images_*/images/.

    If test_list.txt is there, the images it lists are split test, and patients that the hash would put into test are
    split train. "Lung Opacity" is added as the union of NIH_OPACITIES, in place of CheXpert's finding of that name.
    """
    csv = find_file(src, "Data_Entry_2017*.csv", _REQUIRED)
    raw, notes = read_csv(csv, _REQUIRED, _OPTIONAL, ids=("Patient ID",))
    notes += [*note_unread(csv, raw, (*_REQUIRED, *_OPTIONAL)), *note_missing(csv, _OPTIONAL, list(raw), "columns")]
    name, patient = _file_names(raw["Image Index"]), raw["Patient ID"]
    folders = [src, src / "images", *sorted(src.glob("images_*/images"))]
    paths = {file.name: file.relative_to(src).as_posix() for folder in folders if folder.is_dir()
             for file in folder.iterdir() if file.suffix.lower() == ".png"}  # fmt: skip
    if unlisted := set(paths).difference(name):
        notes.append(Note(f"{len(unlisted)} of {len(paths)} images are not listed in {csv.name}: skipped",
                          min(unlisted)))  # fmt: skip
    labels = _parse_labels(csv, raw["Finding Labels"], name)
    split = hashed_splits(patient)
    official, list_notes = _read_official_lists(src, csv, name)
    if official is not None:
        split = split.where(split != "test", "train").where(~official, "test")
    frame = pd.DataFrame({"path": name.map(lambda file: paths.get(file, f"images/{file}")),
                          "key": strip_suffixes(name), "patient": patient, "split": split,
                          "view": text_column(raw, "View Position"), "sex": text_column(raw, "Patient Gender"),
                          "age": text_column(raw, "Patient Age")})  # fmt: skip
    test_list = src / "test_list.txt"
    lists = [(test_list, len(read_lines(test_list)))] if test_list.exists() else []
    return Rows(tuple(labels.columns), frame.join(labels), (*notes, *list_notes), ((csv, len(raw)), *lists))


def _parse_labels(csv: Path, cells: pd.Series, image: pd.Series) -> pd.DataFrame:
    """Labels, one column per finding, from cells such as "Mass|Edema". Raises InputError for an unknown finding."""
    listed = cells.map(lambda text: [name.strip() for name in text.split("|")])
    for file, names in zip(image, listed, strict=True):
        for unknown in set(names).difference(NIH_FINDINGS):
            raise InputError(f"{csv}: Finding Labels {unknown!r} of {file}: not one of {', '.join(NIH_FINDINGS)}; "
                             "replace it with the original file, or pass your own table: --dataset=csv --table=PATH")
    labels: pd.DataFrame = pd.DataFrame({
        finding: listed.map(lambda names, f=finding: float(f in names)) for finding in NIH_FINDINGS
    })  # fmt: skip
    labels["Lung Opacity"] = labels[list(NIH_OPACITIES)].max(axis=1)
    return labels


def _read_official_lists(src: Path, csv: Path, name: pd.Series) -> tuple[pd.Series | None, list[Note]]:
    """Whether each image is in test_list.txt (None if that is missing), and notes about mismatches with the table.

    Names are compared without folder and suffix. Raises InputError if the list names no image of the table, or an image
    that train_val_list.txt names too.
    """
    test_list, others = src / "test_list.txt", src / "train_val_list.txt"
    if not test_list.exists():
        return None, []
    stem = strip_suffixes(name)
    listed = {file: set(_stems(read_lines(file))) for file in (test_list, others) if file.exists()}
    official = stem.isin(listed[test_list])
    if not official.any():
        raise InputError(f"{test_list}: lists none of the {len(name)} images of {csv.name}; remove it to split by a "
                         "hash of patients")  # fmt: skip
    notes = []
    for file, names in listed.items():
        if lacking := names.difference(stem):
            notes.append(Note(f"{file.name}: {len(lacking)} of its {len(names)} names are not in {csv.name}",
                              min(lacking)))  # fmt: skip
    if others in listed:
        if both := listed[test_list] & listed[others]:
            raise InputError(f"{others}: {len(both)} images are in {test_list.name} too, such as {min(both)}; remove "
                             "one of the lists")  # fmt: skip
        neither = ~official & ~stem.isin(listed[others])
        if neither.any():
            notes.append(Note(f"{int(neither.sum())} of {len(name)} images are in neither {test_list.name} nor "
                              f"{others.name}: not in split test", stem[neither].min()))  # fmt: skip
    return official, notes


def _file_names(paths: pd.Series) -> pd.Series:
    return paths.str.replace(r"^.*[/\\]", "", regex=True)


def _stems(lines: list[str]) -> pd.Series:
    """File names without folder and suffix, of lines with one or more paths each."""
    return strip_suffixes(_file_names(pd.Series(" ".join(lines).split(), dtype="str")))
