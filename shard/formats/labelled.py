"""The images that a table names by an id, with what DICOM's tags say of them: VinDr's and RSNA's tables say no more."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.formats.places import best_of
from shard.formats.scan import scan
from shard.machine import cores
from shard.note import Note, counted
from shard.walk import TROUBLES


def place_images(
    src: Path, table: Path, ids: pd.Series, expected: str, workers: int
) -> tuple[pd.DataFrame, list[Note]]:
    """Path, key, patient, view, sex and age of the images called `ids`, in their order; and what to say of them.

    An image is the file under `src` whose name without ending is its id. expected: where it would be, such as
    "train/{}.dicom", for one that is not there. Its patient is the one that DICOM's tags name, else it is its own.
    """
    found, told = scan(src, workers or cores())
    names = best_of(found["path"])
    paths = [names.get(one, expected.format(one)) for one in ids]
    found = found.set_index("path")
    tags = found.reindex(paths).fillna("").reset_index(drop=True)
    alone = (tags["patient"] == "").to_numpy()
    patient = tags["patient"].where(~alone, ids.to_numpy())
    frame = pd.DataFrame({"path": paths, "key": ids.to_numpy(), "patient": patient, "view": tags["view"],
                          "sex": tags["sex"], "age": tags["age"]})  # fmt: skip
    notes = [note for note in told if note.text.endswith(TROUBLES)]
    if alone.any():
        notes.append(Note(f"nothing says whose {int(alone.sum())} of {len(ids)} images are: each counts as its own "
                          "patient", str(ids[alone].iloc[0])))  # fmt: skip
    strangers = sorted(set(names).difference(ids))
    if strangers:
        images = counted(len(strangers), "image is", "images are")
        notes.append(Note(f"{images} in no row of {table.name} and left out", names[strangers[0]]))
    return frame, notes
