"""Find the images of tables that name them by an id alone, and read patient, view, sex and age from DICOM tags."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pandas as pd

from shard.formats.image_files import note_unlisted, preferred_paths
from shard.formats.scan import scan
from shard.machine import cores
from shard.note import Note
from shard.walk import TROUBLES


def find_images_by_id(
    src: Path, table: Path, ids: pd.Series, expected: str, workers: int
) -> tuple[pd.DataFrame, list[Note]]:
    """Return path, key, patient, view, sex and age of the images `ids`, in their order, with notes.

    The file of an image is the one under `src` whose name without suffix is the id. expected: the path to report for an
    image that is not found, such as "train/{}.dicom". The patient is that of the DICOM tags, or else the image itself.
    """
    scanned, scan_notes = scan(src, workers or cores())
    files = preferred_paths(scanned["path"])
    paths = [files.get(one, expected.format(one)) for one in ids]
    tags = scanned.set_index("path").reindex(paths).fillna("").reset_index(drop=True)
    unknown = (tags["patient"] == "").to_numpy()
    patient = tags["patient"].where(~unknown, ids.to_numpy())
    frame = pd.DataFrame({"path": paths, "key": ids.to_numpy(), "patient": patient, "view": tags["view"],
                          "sex": tags["sex"], "age": tags["age"]})  # fmt: skip
    notes = [note for note in scan_notes if note.text.endswith(tuple(chain(*TROUBLES)))]
    if unknown.any():
        notes.append(Note(f"the patient of {int(unknown.sum())} of {len(ids)} images is unknown: each counts as a "
                          "separate patient", str(ids[unknown].iloc[0])))  # fmt: skip
    unlisted = [files[name] for name in sorted(set(files).difference(ids))]
    return frame, [*notes, *note_unlisted(unlisted, table)]
