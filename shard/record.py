"""What an unfinished build remembers in OUT/build: the settings it began with, and a record of each finished shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.manifest import Shard
from shard.table import Reject
from shard.tabular.demographics import Counts, are_counts

UNFINISHED = "build"
# Of the sharder itself. Raise it when the same sources and settings would give other bytes than before: an unfinished
# build of another version is then not gone on with, nor are parts of both merged.
SHARDER = "2"
_BEGUN = "begun.json"


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: the hash of the rows it was made from, label → count a finding, patients, rejected rows.

    readers: the versions of what read DICOM files for it; {} where none of its files is one. demographics: sex, age,
    view → value → images, which a record of before they were counted lacks. pictures: key → what
    duplicates.Picture.pack makes of each image.
    """

    rows_sha256: str
    shard: Shard
    labels: dict[str, dict[str, int]]
    patients: list[str]
    rejects: list[Reject]
    readers: dict[str, str] = field(default_factory=dict)
    demographics: Counts = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path, stem: str) -> None:
        """Write it beside the shard, whole or not at all; the shard is finished when this is there."""
        write_bytes(folder / UNFINISHED / f"{stem}.json", json.dumps(asdict(self), allow_nan=False).encode())


def parse_record(content: dict[str, Any]) -> ShardRecord:
    """A record from its JSON. Raises one of PARSE_ERRORS where it is none."""
    record = ShardRecord(**{**content, "shard": Shard(**content["shard"]),
                            "rejects": parse_rejects(content["rejects"])})  # fmt: skip
    if len(record.pictures) != record.shard.samples or not all(type(text) is str for text in record.pictures.values()):
        raise ValueError(f"it describes {len(record.pictures)} pictures of {record.shard.samples} samples")
    if not are_counts(record.demographics):
        raise ValueError(f"its counts are {record.demographics}")
    return record


def parse_rejects(content: Any) -> list[Reject]:
    """Rejected rows from JSON. Raises one of PARSE_ERRORS where they are none."""
    return [(str(key), str(path), str(reason)) for key, path, reason in content]


def read_record(folder: Path, stem: str) -> ShardRecord | None:
    """The record of a finished shard; None where there is none that can be used, and the shard is written anew."""
    try:
        return parse_record(json.loads((folder / UNFINISHED / f"{stem}.json").read_text()))
    except (FileNotFoundError, *PARSE_ERRORS):  # of another build or version, or cut short by a disk that filled up
        return None


def begin(out: Path, settings: dict[str, Any], software: dict[str, str]) -> None:
    """Remember what is built in `out`. Raises InputError where something else is, half done."""
    path, now = out / UNFINISHED / _BEGUN, {"settings": settings, "software": software}
    if path.exists():
        try:
            begun = json.loads(path.read_text())
            difference = first_difference({**begun["settings"], **begun["software"]}, {**settings, **software})
        except PARSE_ERRORS:
            difference = f"{path} can't be read"
        if difference:
            raise InputError(f"{out}: holds an unfinished build with other settings ({difference}); "
                             f"choose another folder or remove this one")
    else:
        write_bytes(path, json.dumps(now, allow_nan=False).encode(), shared=True)  # all tasks of an array begin at once


def first_difference(there: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first setting in which two builds differ, for an error; None where they don't."""
    for name in {**there, **now}:
        if there.get(name) != now.get(name):
            return f"{name} {there.get(name)!r} there, {now.get(name)!r} now"
    return None
