"""NIH ChestX-ray14."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.csv_file import read_csv
from shard.formats.rows import ENDING, Rows, column, find_one, hashed_splits

NIH_FINDINGS = (
    "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NIH_OPACITIES = ("Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Mass", "Nodule")


def read_nih(src: Path) -> Rows:
    """NIH ChestX-ray14: Data_Entry_2017*.csv, images in images/ or images_*/images/, test_list.txt where it is.

    With that official list a patient is tested on where the list says so, and others whom a hash would have put into
    split test are trained on. "Lung Opacity" is added as the union of the seven opacities, to stand for CheXpert's
    finding of that name.
    """
    csv = find_one(src, "Data_Entry_2017*.csv")
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
                          "view": column(raw, "View Position"), "sex": column(raw, "Patient Gender"),
                          "age": column(raw, "Patient Age")})  # fmt: skip
    return Rows(tuple(labels), frame.join(labels))
