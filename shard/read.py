"""Shards back to samples: index lines, raw members, labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.manifest import Manifest, Shard
from shard.tar import INDEX_VERSION


@dataclass(frozen=True)
class Sample:
    """Where one sample lies in its tar: extension → (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


def read_index(index: Path) -> list[Sample]:
    """The samples of a tar, in order, from its DALI index (v1.2: extension, offset, size, name of each member).

    Raises InputError where it is not one.
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
                raise ValueError(f"{line[:60]!r} is no place in a file")
            samples.append(Sample(words[3].split(".")[0], members))
    except (ValueError, IndexError) as error:
        raise InputError(f"{index}: not an index {INDEX_VERSION} ({error}); copy it again or rebuild it") from None
    return samples


def read_members(tar: Path, samples: list[Sample], extension: str) -> Iterator[bytes]:
    """The bytes of one member of each sample, in order. Raises InputError where the tar has none there."""
    with tar.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        for sample in samples:
            offset, size = sample.members.get(extension, (0, end + 1))
            if offset + size > end:
                raise InputError(f"{tar}, image {sample.key}: its .{extension} is not in it; put back the shards as "
                                 "they were built (python -m shard verify says which)")  # fmt: skip
            file.seek(offset)
            yield file.read(size)


def read_labels(folder: Path, manifest: Manifest, splits: tuple[str, ...]) -> pd.DataFrame:
    """One row an image in the order of the shards: key, patient, split, view, sex, age, findings (1, 0, -1, NaN).

    sex: F, M or blank; age: years or NaN. Shards of before they were kept have neither.
    """
    shards = [shard for split in splits for shard in manifest.of_split(split)]
    return label_frame(folder, shards, manifest.findings)


def label_frame(folder: Path, shards: list[Shard], findings: tuple[str, ...]) -> pd.DataFrame:
    """The labels of the given shards, read from their tars."""
    rows = []
    for shard in shards:
        samples = read_index(folder / shard.index)
        key = ""
        try:
            for sample, text in zip(samples, read_members(folder / shard.tar, samples, "json"), strict=True):
                key = sample.key
                content = json.loads(text)
                rows.append({"key": key, **{name: content[name] for name in ("patient", "split", "view")}, "sex":
                             content.get("sex", ""), "age": content.get("age"), **content["labels"]})  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder / shard.tar}, image {key}: its labels can't be read ({error}); put back the "
                             "shards as they were built (python -m shard verify says which)") from None
    frame: pd.DataFrame = pd.DataFrame(rows, columns=["key", "patient", "split", "view", "sex", "age", *findings])
    for name in ("age", *findings):
        frame[name] = frame[name].astype("float64")
    return frame
