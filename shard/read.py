"""Read shards: indexes, members and labels."""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from xxhash import xxh3_64_hexdigest

from shard.ahead import fetch_ahead
from shard.cache import discard, open_tar
from shard.errors import PARSE_ERRORS, InputError
from shard.manifest import Manifest, Shard
from shard.progress import Progress
from shard.tar import INDEX_VERSION

CURE = "put back the shards as they were built (see python -m shard verify), then run the same command"


@dataclass(frozen=True)
class Sample:
    """The location of a sample in its tar: file extension → (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


def read_index(index: Path) -> list[Sample]:
    """Read the samples of a tar, in order, from its DALI index (v1.2: extension, offset, size and name of each member).

    Raises InputError if the file is not such an index.
    """
    try:
        header, *lines = index.read_text().splitlines()
        version, count = header.split()
        if version != INDEX_VERSION or int(count) != len(lines):
            raise ValueError(f"header {header!r} over {len(lines)} lines")
        samples = []
        for line in lines:
            words = line.split()
            members = {words[i]: (int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)}
            if not all(0 <= number < 2**62 for place in members.values() for number in place):
                raise ValueError(f"{line[:60]!r} has an invalid offset or size")
            samples.append(Sample(words[3].split(".")[0], members))
    except (ValueError, IndexError) as error:
        raise InputError(f"{index}: not an index {INDEX_VERSION} ({error}); copy it again or rebuild it") from None
    return samples


def read_members(folder: Path, shard: Shard, samples: list[Sample], ending: str) -> Iterator[bytes]:
    """Read one member of each sample, in order. Raises InputError if the tar ends before it or can't be fetched."""
    tar = folder / shard.tar
    with open_tar(folder, shard) as file:
        end = os.fstat(file.fileno()).st_size
        for sample in samples:
            offset, size = sample.members.get(ending, (0, end + 1))
            if offset + size > end:
                raise InputError(f"{tar}, image {sample.key}: its .{ending} is missing; {CURE}")
            file.seek(offset)
            yield file.read(size)


def read_labels(folder: Path, manifest: Manifest, splits: tuple[str, ...]) -> pd.DataFrame:
    """Read the labels of splits, one row per image in the order of the shards.

    Columns: key, patient, split, view, sex (F, M or blank), age (years or NaN) and the findings (1, 0, -1 or NaN).
    Shards of older versions have neither sex nor age.
    """
    shards = [shard for split in splits for shard in manifest.of_split(split)]
    return label_frame(folder, shards, manifest.findings)


def label_frame(folder: Path, shards: list[Shard], findings: tuple[str, ...]) -> pd.DataFrame:
    """Read the labels of the given shards from their tars, in the columns of read_labels."""
    with Progress("reading labels", sum(shard.samples for shard in shards)) as progress:
        return as_label_frame(progress.counted(iter_label_rows(folder, shards, findings)), findings)


def iter_label_rows(folder: Path, shards: Iterable[Shard], findings: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the labels of each image of the given shards, in order, without keeping them in memory."""
    for shard in fetch_ahead(folder, shards):
        samples = read_index(folder / shard.index)
        key = ""
        try:
            for sample, text in zip(samples, _read_label_texts(folder, shard, samples), strict=True):
                key = sample.key
                yield {"key": key, **_label_row(json.loads(text), findings)}
        except (OSError, *PARSE_ERRORS) as error:
            raise InputError(f"{folder / shard.tar}, image {key}: its labels can't be read ({error}); {CURE}") from None


def _read_label_texts(folder: Path, shard: Shard, samples: list[Sample]) -> list[bytes]:
    """Read the JSON of all samples of a shard, and compare its hash; a tar in the cache is fetched once more."""
    for attempt in range(2):
        texts = list(read_members(folder, shard, samples, "json"))
        if shard.labels_xxh3 in ("", xxh3_64_hexdigest(b"".join(texts))):
            return texts
        if attempt or not discard(folder, shard):
            raise InputError(f"{folder / shard.tar}: its labels have changed since it was written; {CURE}")
    raise AssertionError("the second attempt returns or raises")


def as_label_frame(rows: Iterable[dict[str, Any]], findings: tuple[str, ...]) -> pd.DataFrame:
    """Make a frame, in the columns of read_labels, from rows that iter_label_rows yields."""
    texts: dict[str, list[str]] = {name: [] for name in ("key", "patient", "split", "view", "sex")}
    numbers = {name: array("d") for name in ("age", *findings)}  # a dict for each row would take four times the memory
    for row in rows:
        for name, cells in texts.items():
            cells.append(row[name])
        for name, values in numbers.items():
            values.append(math.nan if row[name] is None else row[name])
    frame: pd.DataFrame = pd.DataFrame({**texts, **{name: np.array(values) for name, values in numbers.items()}})
    return frame


def _label_row(content: Any, findings: tuple[str, ...]) -> dict[str, Any]:
    """Convert a sample's JSON to a row of labels. Raises one of PARSE_ERRORS if it is malformed."""
    labels = {name: content["labels"].get(name) for name in findings}
    if not all(label in (1, 0, -1, None) for label in labels.values()):
        raise ValueError(f"labels {labels}")
    age = content.get("age")
    texts = {**{name: content[name] for name in ("patient", "split", "view")}, "sex": content.get("sex", "")}
    return {**{name: sys.intern(text) for name, text in texts.items()},  # an archive has each of them many times
            "age": age if age is None else float(age), **labels}  # fmt: skip
