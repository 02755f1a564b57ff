"""NIH ChestX-ray14."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.rows import ENDING, Rows, column, find_one, hashed_splits
from shard.note import Note
from shard.tabular.columns import AGE, SEX, VIEW, not_found, not_taken
from shard.tabular.csv_file import has_columns, read_csv, tables_in
from shard.tabular.text_file import read_lines

NIH_FINDINGS = (
    "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NIH_OPACITIES = ("Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Mass", "Nodule")
_WANTED = ("Image Index", "Finding Labels", "Patient ID")
_KNOWN = {"Patient Age": AGE, "Patient Gender": SEX, "View Position": VIEW}


def is_nih(src: Path) -> bool:
    """Whether a folder has NIH's table, by its name or its columns."""
    return any(src.glob("Data_Entry_2017*.csv")) or any(has_columns(csv, *_WANTED) for csv in tables_in(src))


def read_nih(src: Path) -> Rows:
    """NIH ChestX-ray14: Data_Entry_2017*.csv or another table of its columns, images in images/ or images_*/images/,
    test_list.txt where it is.

    With that official list a patient is tested on where the list says so, and others whom a hash would have put into
    split test are trained on. "Lung Opacity" is added as the union of the seven opacities, to stand for CheXpert's
    finding of that name.
    """
    csv = find_one(src, "Data_Entry_2017*.csv", _WANTED)
    raw, notes = read_csv(csv, _WANTED, _KNOWN, ids=("Patient ID",))
    notes += [*not_taken(csv, raw, (*_WANTED, *_KNOWN)), *not_found(csv, _KNOWN, list(raw), "columns")]
    name, patient = raw["Image Index"].str.replace(r"^.*[/\\]", "", regex=True), raw["Patient ID"]
    folders = [src, src / "images", *sorted(src.glob("images_*/images"))]
    places = {file.name: file.relative_to(src).as_posix() for folder in folders if folder.is_dir()
              for file in folder.iterdir() if file.suffix.lower() == ".png"}  # fmt: skip
    if left := set(places).difference(name):
        notes.append(Note(f"{len(left)} of {len(places)} images are in no row of {csv.name}: left out", min(left)))
    listed = raw["Finding Labels"].map(lambda text: [name.strip() for name in text.split("|")])
    for image, names in zip(name, listed, strict=True):
        for unknown in set(names).difference(NIH_FINDINGS):
            raise InputError(f"{csv}: Finding Labels {unknown!r} of {image}: none of {', '.join(NIH_FINDINGS)}; "
                             f"replace it by the original, or make a table of your own: --dataset=csv --table=PATH")
    labels = pd.DataFrame({finding: listed.map(lambda names, f=finding: float(f in names)) for finding in NIH_FINDINGS})
    labels["Lung Opacity"] = labels[list(NIH_OPACITIES)].max(axis=1)
    split = hashed_splits(patient)
    official, told = _official_lists(src, csv, name)
    if official is not None:
        split = split.where(split != "test", "train").where(~official, "test")
    frame = pd.DataFrame({"path": name.map(lambda file: places.get(file, f"images/{file}")),
                          "key": name.str.replace(ENDING, "", regex=True), "patient": patient, "split": split,
                          "view": column(raw, "View Position"), "sex": column(raw, "Patient Gender"),
                          "age": column(raw, "Patient Age")})  # fmt: skip
    test_list = src / "test_list.txt"
    lists = [(test_list, len(read_lines(test_list)))] if test_list.exists() else []
    return Rows(tuple(labels), frame.join(labels), (*notes, *told), ((csv, len(raw)), *lists))


def _official_lists(src: Path, csv: Path, name: pd.Series) -> tuple[pd.Series | None, list[Note]]:
    """Which images test_list.txt names, None where there is no such file; what it and train_val_list.txt name beside.

    Names count without their folder and ending. Raises InputError where the list names no image of the table, or one
    that the other list names too.
    """
    test_list, others = src / "test_list.txt", src / "train_val_list.txt"
    if not test_list.exists():
        return None, []
    stem = _stems(name)
    listed = {file: set(_stems(pd.Series(" ".join(read_lines(file)).split(), dtype="str")))
              for file in (test_list, others) if file.exists()}  # fmt: skip
    official = stem.isin(listed[test_list])
    if not official.any():
        raise InputError(f"{test_list}: names none of the {len(name)} images of {csv.name}; take it away, and a "
                         "hash of patients makes the splits")  # fmt: skip
    notes = []
    for file, names in listed.items():
        if lacking := names.difference(stem):
            notes.append(Note(f"{file.name}: {len(lacking)} of its {len(names)} names are not in {csv.name}",
                              min(lacking)))  # fmt: skip
    if others in listed:
        if both := listed[test_list] & listed[others]:
            raise InputError(f"{others}: {len(both)} images are in {test_list.name} too, such as {min(both)}; take one "
                             "of the lists away")  # fmt: skip
        neither = ~official & ~stem.isin(listed[others])
        if neither.any():
            notes.append(Note(f"{int(neither.sum())} of {len(name)} images are in neither {test_list.name} nor "
                              f"{others.name}: not tested on", stem[neither].min()))  # fmt: skip
    return official, notes


def _stems(names: pd.Series) -> pd.Series:
    return names.str.replace(r"^.*[/\\]", "", regex=True).str.replace(ENDING, "", regex=True)
