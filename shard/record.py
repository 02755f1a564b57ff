"""The state of an unfinished build in OUT/build: its settings, and a record of each finished shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.conflicts import Reject
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.manifest import Shard
from shard.tabular.demographics import Counts, are_counts

UNFINISHED = "build"
# The version of the sharder. Raise it when equal sources and settings produce different bytes than before. A
# build then neither continues one of another version nor merges its parts.
SHARDER = "3"
_SETTINGS = "begun.json"


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: the hash of its rows, the label counts of each finding, its patients and its rejected rows.

    readers: the versions of the DICOM libraries that read its files; {} if none of them is DICOM.
    demographics: "sex", "age", "view" → value → images; {} in a record of an older version.
    pictures: key → the string of duplicates.Picture.pack.
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
        """Write the record atomically. The shard counts as finished when this file exists."""
        write_bytes(folder / UNFINISHED / f"{stem}.json", json.dumps(asdict(self), allow_nan=False).encode())


def parse_record(content: dict[str, Any]) -> ShardRecord:
    """Restore a record from its JSON. Raises one of PARSE_ERRORS if it is malformed."""
    record = ShardRecord(**{**content, "shard": Shard(**content["shard"]),
                            "rejects": parse_rejects(content["rejects"])})  # fmt: skip
    if len(record.pictures) != record.shard.samples or not all(type(text) is str for text in record.pictures.values()):
        raise ValueError(f"{len(record.pictures)} pictures for {record.shard.samples} samples")
    if not are_counts(record.demographics):
        raise ValueError(f"invalid counts {record.demographics}")
    return record


def parse_rejects(content: Any) -> list[Reject]:
    """Restore rejected rows from JSON. Raises one of PARSE_ERRORS if they are malformed."""
    return [(str(key), str(path), str(reason)) for key, path, reason in content]


def read_record(folder: Path, stem: str) -> ShardRecord | None:
    """Read the record of a finished shard. Returns None if it is missing or unusable, so that the shard is rebuilt."""
    try:
        return parse_record(json.loads((folder / UNFINISHED / f"{stem}.json").read_text()))
    except (FileNotFoundError, *PARSE_ERRORS):  # written by another version, or truncated by a full disk
        return None


def begin_build(out: Path, settings: dict[str, Any], software: dict[str, str]) -> None:
    """Store settings and software of a build in `out`. Raises InputError if another build is unfinished there."""
    path, now = out / UNFINISHED / _SETTINGS, {"settings": settings, "software": software}
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            difference = first_difference({**stored["settings"], **stored["software"]}, {**settings, **software})
        except PARSE_ERRORS:
            difference = f"{path} can't be read"
        if difference:
            raise InputError(f"{out}: contains an unfinished build with other settings ({difference}); "
                             f"choose another folder or remove this one")
    else:
        write_bytes(path, json.dumps(now, allow_nan=False).encode(), shared=True)  # array tasks start together


def first_difference(there: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Describe the first setting in which two builds differ, for an error message; None if they are equal."""
    for name in {**there, **now}:
        if there.get(name) != now.get(name):
            old, new = ("not set" if one.get(name) is None else repr(one[name]) for one in (there, now))
            return f"{name} {old} there, {new} now"
    return None
