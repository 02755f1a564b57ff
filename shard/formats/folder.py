"""An archive without a table: read all images under a folder, and find their patients."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.folder_labels import join_labels
from shard.formats.rows import Rows, hashed_splits, strip_suffix
from shard.formats.scan import scan
from shard.key import replace_invalid, short_hash
from shard.machine import cores
from shard.note import Note, counted
from shard.tabular.ids import normalise_ids
from shard.walk import Tally, add


def read_folder(
    src: Path, patient_from: str | None = None, labels: Path | None = None, workers: int = 0,
    findings: str | None = None, training: bool = True,
) -> Rows:  # fmt: skip
    """Read all images and DICOM files under `src`, recognised by their first bytes or their suffix.

    Patient, view, sex, age and date come from DICOM tags. For other files, and if the tags name no patient, the patient
    comes from `patient_from`: "parent" (the name of the file's folder) or a regular expression with one group that is
    searched in the path. Without either, the images of a DICOM study share a patient, and any other file counts as a
    separate patient. labels: a CSV with labels of some images. findings: its columns that are findings, see
    select_findings. Splits are by a hash of patients unless `labels` names them. training: whether an image must be in
    split train.
    Raises InputError if no image is found, or `patient_from` matches none of the paths.
    """
    pattern = _parse_patient_from(patient_from)
    frame, notes = scan(src, workers or cores())
    patients, patient_notes = _find_patients(frame, pattern, patient_from)
    frame["patient"], id_notes = normalise_ids(pd.Series(patients, dtype="str"), "patient")
    frame = frame.drop(columns="study")
    frame["key"] = _make_unique_keys(frame["path"])
    if labels is None:
        frame["split"] = hashed_splits(frame["patient"])
        read = Rows((), frame)
    else:
        read = join_labels(frame, src, labels, findings)
    if training and not (read.frame["split"] == "train").any():
        raise InputError(f"{src}: none of {len(frame)} images of {read.frame['patient'].nunique()} patients is in "
                         "split train (by a hash, 60 % of patients are); add images, or set the patients with "
                         "--patient-from or the splits with --table")  # fmt: skip
    notes = sorted((*notes, *patient_notes, *id_notes, *read.notes),
                   key=lambda note: not note.text.startswith("WARNING"))  # fmt: skip
    return read._replace(notes=tuple(notes))


def _parse_patient_from(text: str | None) -> re.Pattern[str] | None:
    """Compile --patient-from. Raises InputError unless it is a regular expression with one group."""
    if text is None:
        return None
    try:
        pattern = re.compile(r"([^/]+)/[^/]*$" if text == "parent" else text)
    except re.error as error:
        raise InputError(f"--patient-from={text}: not a regular expression ({error}); give parent or, for example, "
                         r"'^(\w+)/'") from None  # fmt: skip
    if pattern.groups != 1:
        raise InputError(f"--patient-from={text}: has {pattern.groups} groups, requires one: the part of the path in "
                         r"parentheses is the patient, as in '^(\w+)/'; write other groups as (?:…)")  # fmt: skip
    return pattern


def _find_patients(
    frame: pd.DataFrame, pattern: re.Pattern[str] | None, flag: str | None
) -> tuple[list[str], list[Note]]:
    """Return the patient of every row, with notes. Raises InputError if `pattern` matches no path."""
    patients = list[str]()
    sources: Tally[str] = {}
    for path, patient, study in zip(frame["path"], frame["patient"], frame["study"], strict=True):
        matched = pattern.search(path) if pattern and not patient else None
        in_path = (matched[1] or "").strip() if matched else ""
        patients.append(patient or in_path or study or path)
        if not patient:
            add(sources, "path" if in_path else "study" if study else "none", path)
    untagged = sum(count for count, _ in sources.values())
    if pattern and untagged and "path" not in sources:
        raise InputError(f"--patient-from={flag}: finds no patient in any of {untagged} paths, such as "
                         f"{next(iter(sources.values()))[1]!r}; change it, or omit it")  # fmt: skip
    ambiguous = _note_repeated_folder_names(frame["path"]) if flag == "parent" else []
    return patients, [*_note_sources(sources, patients, flag), *ambiguous]


def _note_sources(sources: Tally[str], patients: list[str], flag: str | None) -> Iterator[Note]:
    """Notes about where the patients come from."""
    if "path" in sources:
        count, path = sources["path"]
        yield Note(counted(count, "image has its patient", "images have their patient") + " from the path", path)
    if "study" in sources:
        count, path = sources["study"]
        files = counted(count, "DICOM file names", "DICOM files name")
        yield Note(f"{files} no patient: each study counts as a separate patient", path)  # fmt: skip
    if "none" in sources:
        count, path = sources["none"]
        cure = (f"--patient-from={flag} does not match them" if flag else "if folders or names contain it, give "
                "--patient-from=parent or --patient-from=REGEX with one group")  # fmt: skip
        yield Note(f"WARNING: the patient of {count} of {len(patients)} images is unknown: each counts as a "
                   f"separate patient, so images of one person may be in different splits; {cure}", path)  # fmt: skip
    if len(patients) > 1 and len(set(patients)) == 1:
        yield Note(f"WARNING: all {len(patients)} images are of one patient, and therefore in one split; if the id "
                   "is a placeholder, replace it with the archive's patient numbers", patients[0])  # fmt: skip


def _note_repeated_folder_names(paths: pd.Series) -> list[Note]:
    """A warning that --patient-from=parent makes P1/study1 and P2/study1 one patient."""
    folders = dict[str, str]()
    shared = dict[str, str]()
    for folder in paths.str.rpartition("/")[0].unique():
        name = folder.rpartition("/")[2]
        if (other := folders.setdefault(name, folder)) != folder:
            shared.setdefault(name, f"{other} and {folder}")
    if not shared:
        return []
    return [Note(f"WARNING: {len(shared)} names of parent folders occur in several places, and each counts as one "
                 "patient; if they are studies, give a REGEX that finds the patient's folder, such as "
                 r"--patient-from='^([^/]+)/'", next(iter(shared.values())))]  # fmt: skip


def _make_unique_keys(paths: pd.Series) -> pd.Series:
    """Keys of paths: without suffix or, if two would be equal (a.png and a.dcm, a/b and a_b), with a hash."""
    stems = [strip_suffix(path) for path in paths]
    digests = pd.Series([hashlib.blake2b(replace_invalid(stem).encode(), digest_size=8).digest() for stem in stems])
    clash = digests.duplicated(keep=False)
    return pd.Series([f"{path}-{short_hash(path)}" if is_same else stem
                      for path, stem, is_same in zip(paths, stems, clash, strict=True)], index=paths.index)  # fmt: skip
