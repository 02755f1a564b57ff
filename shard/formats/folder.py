"""An archive without a table: every image under a folder, and whose each is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.formats.folder_labels import join_labels
from shard.formats.rows import ENDING, Rows, hashed_splits
from shard.formats.scan import scan
from shard.machine import cores
from shard.note import Note, counted
from shard.tabular.ids import in_one_form
from shard.walk import Tally, add


def read_folder(
    src: Path, patient_from: str | None = None, labels: Path | None = None, workers: int = 0,
    findings: str | None = None,
) -> Rows:  # fmt: skip
    """Every image and DICOM file under `src`, told by its first bytes or its ending.

    Patient, view, sex, age and date come from DICOM's tags. Where those name no patient, and for other files, the
    patient comes from `patient_from`: "parent", the name of the folder that the file lies in, or a regular expression
    with one group, searched in the path. A DICOM file that neither names is of one patient with the others of its
    study; any other file is its own patient. labels: a CSV with labels of some; findings: which of its columns are
    findings, see take_findings. Splits are by a hash of patients where that says none. Raises InputError where no image
    is found, or none of the paths that it is tried on fits `patient_from`.
    """
    pattern = _parse_patient_from(patient_from)
    frame, notes = scan(src, workers or cores())
    patients, own = _find_patients(frame, pattern, patient_from)
    frame["patient"], told = in_one_form(pd.Series(patients, dtype="str"), "patient")
    frame = frame.drop(columns="study")
    frame["key"] = _keys(frame["path"])
    if labels is None:
        frame["split"] = hashed_splits(frame["patient"])
        read = Rows((), frame)
    else:
        read = join_labels(frame, src, labels, findings)
    if not (read.frame["split"] == "train").any():
        raise InputError(f"{src}: {len(frame)} images of {read.frame['patient'].nunique()} patients are in it, none of "
                         "them in split train (60 % of patients are, by a hash); give more images, --patient-from "
                         "where that is not whose they are, or splits with --table")  # fmt: skip
    notes = sorted((*notes, *own, *told, *read.notes), key=lambda note: not note.text.startswith("WARNING"))
    return read._replace(notes=tuple(notes))


def _parse_patient_from(text: str | None) -> re.Pattern[str] | None:
    """The expression that finds a patient in a path. Raises InputError where it is none with one group."""
    if text is None:
        return None
    try:
        pattern = re.compile(r"([^/]+)/[^/]*$" if text == "parent" else text)
    except re.error as error:
        raise InputError(f"--patient-from={text}: not a regular expression ({error}); give parent or, for example, "
                         r"'^(\w+)/'") from None  # fmt: skip
    if pattern.groups != 1:
        raise InputError(f"--patient-from={text}: has {pattern.groups} groups, wants one: the part of the path in "
                         r"parentheses is the patient, as in '^(\w+)/'; write others as (?:…)")  # fmt: skip
    return pattern


def _find_patients(
    frame: pd.DataFrame, pattern: re.Pattern[str] | None, flag: str | None
) -> tuple[list[str], list[Note]]:
    """The patient of every row, and what to say of how they were found. Raises InputError where `pattern` fits none."""
    patients = list[str]()
    told: Tally = {}
    for path, patient, study in zip(frame["path"], frame["patient"], frame["study"], strict=True):
        matched = pattern.search(path) if pattern and not patient else None
        in_path = (matched[1] or "").strip() if matched else ""
        patients.append(patient or in_path or study or path)
        if not patient:
            add(told, "in path" if in_path else "by study" if study else "alone", path)
    nameless = sum(count for count, _ in told.values())
    if pattern and nameless and "in path" not in told:
        raise InputError(f"--patient-from={flag}: finds no patient in any of {nameless} paths, such as "
                         f"{next(iter(told.values()))[1]!r}; change it, or leave it out")  # fmt: skip
    same_names = _say_same_names(frame["path"]) if flag == "parent" else []
    return patients, [*_say_whose(told, patients, flag), *same_names]


def _say_whose(told: Tally, patients: list[str], flag: str | None) -> Iterator[Note]:
    if "in path" in told:
        yield Note(counted(told["in path"][0], "image has its patient", "images have their patient") + " from the path",
                   told["in path"][1])  # fmt: skip
    if "by study" in told:
        count, path = told["by study"]
        files = counted(count, "DICOM file names", "DICOM files name")
        yield Note(f"{files} no patient: images of one study are taken for one patient's, other studies for other "
                   "patients'", path)  # fmt: skip
    if "alone" in told:
        count, path = told["alone"]
        cure = (f"--patient-from={flag} does not fit them" if flag else "where folders or names say it, give "
                "--patient-from=parent or --patient-from=REGEX with one group")  # fmt: skip
        yield Note(f"WARNING: nothing says whose {count} of {len(patients)} images are: each counts as its own "
                   f"patient, so that two of one person may be in different splits; {cure}", path)  # fmt: skip
    if len(patients) > 1 and len(set(patients)) == 1:
        yield Note(f"WARNING: all {len(patients)} images are of one patient, and so in one split; where the number "
                   "stands for nobody, the archive's own numbers are wanted", patients[0])  # fmt: skip


def _say_same_names(paths: pd.Series) -> list[Note]:
    """P1/study1 and P2/study1 are one patient by --patient-from=parent, which may not be what was meant."""
    folders = dict[str, str]()
    shared = dict[str, str]()
    for folder in paths.str.rpartition("/")[0].unique():
        name = folder.rpartition("/")[2]
        if (other := folders.setdefault(name, folder)) != folder:
            shared.setdefault(name, f"{other} and {folder}")
    if not shared:
        return []
    return [Note(f"WARNING: {len(shared)} names of parent folders occur in several places, and each is taken for one "
                 "patient; where they are studies, give a REGEX that finds the patient's folder, such as "
                 r"--patient-from='^([^/]+)/'", next(iter(shared.values())))]  # fmt: skip


def _keys(paths: pd.Series) -> pd.Series:
    """Keys of paths without endings; where two would be one key (a.png and a.dcm, a/b and a_b), with a hash."""
    stems = [re.sub(ENDING, "", path) for path in paths]
    digests = pd.Series([hashlib.blake2b(re.sub(r"[^A-Za-z0-9_-]+", "_", stem.strip("/")).encode(), digest_size=8)
                         .digest() for stem in stems])  # fmt: skip
    clash = digests.duplicated(keep=False)
    return pd.Series([f"{path}-{hashlib.sha256(path.encode()).hexdigest()[:12]}" if is_same else stem
                      for path, stem, is_same in zip(paths, stems, clash, strict=True)], index=paths.index)  # fmt: skip
