"""The same picture in two splits or under two patients: find it, list it in duplicates.csv, and leave copies out."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xxhash

from shard.errors import InputError
from shard.files import atomic_write, sha256_of, write_bytes
from shard.record import ShardRecord
from shard.table import Reject
from shard.tabular.demographics import count_demographics
from shard.tabular.sheet import to_csv
from shard.tar import TarWriter

DUPLICATES = "duplicates.csv"
Policy = Literal["drop", "keep", "error"]
_KEPT_FIRST = ("test", "valid", "train")


@dataclass(frozen=True)
class Summary:
    """How many pictures are there more than once, in how many images, and what was done about them.

    across_splits: those that are in more than one split. dropped: images left out. policy: drop, keep or error.
    """

    policy: Policy
    pictures: int = 0
    images: int = 0
    across_splits: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        done = (f"{self.dropped} of them left out" if self.policy == "drop"
                else "all kept (--duplicates=drop leaves copies out)")  # fmt: skip
        return (f"{self.images} images show {self.pictures} picture{'s' * (self.pictures != 1)} under two patients or "
                f"in two splits ({self.across_splits} in two splits), {done}; see {DUPLICATES}")  # fmt: skip


class Picture(NamedTuple):
    """What a record keeps of an image in a shard: a hash of its pixels, its part of the shard's sums, whose it is."""

    digest: str
    pixels: int
    pixel_sum: int
    pixel_square_sum: int
    not_encoded: int
    patient: str
    path: str

    def pack(self) -> str:
        """One text, which takes less memory than seven values: there is one for each image of an archive."""
        return "\t".join(map(str, self))


class Copy(NamedTuple):
    """One image of a picture that is there more than once."""

    digest: str
    split: str
    key: str
    patient: str
    path: str
    tar: str


def describe_picture(
    grey: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], not_encoded: bool, patient: str, path: str
) -> Picture:
    """Describe an image by its pixels as they go into the shard, [H, W] uint8, and their histogram, [256].

    Two sources of equal decoded pixels have equal hashes, whatever their files are called and hold besides.
    """
    levels = np.arange(256)
    digest = xxhash.xxh3_128_hexdigest(f"{grey.shape}".encode() + np.ascontiguousarray(grey).tobytes())
    return Picture(digest, int(counts.sum()), int(counts @ levels), int(counts @ levels**2), int(not_encoded),
                   patient.replace("\t", " "), path.replace("\t", " "))  # fmt: skip


def unpack(text: str) -> Picture:
    """A picture from what pack() made of it. Raises ValueError if it is something else."""
    digest, pixels, total, squares, not_encoded, patient, path = text.split("\t")
    return Picture(digest, int(pixels), int(total), int(squares), int(not_encoded), patient, path)


def settle_duplicates(
    out: Path, records: list[ShardRecord], policy: Policy
) -> tuple[list[ShardRecord], list[Reject], Summary]:
    """Find pictures that are there more than once, list them in duplicates.csv, and do about them what `policy` says.

    A picture twice for one patient in one split is no leak and stays. Of others drop keeps one copy: that of the test
    split before that of valid, and that before that of train, so that official test sets stay whole; of several in one
    split that of the first key; and further copies of the same patient in the same split. So the result does not depend
    on workers or parts. Returns the records of the shards as they are now, the images left out as rejects, and counts.

    Raises InputError with the first such picture where the policy is error.
    """
    groups = _find(records)
    if not groups:
        return records, [], Summary(policy)
    dropped = [(group[0], copy) for group in groups for copy in group
               if policy == "drop" and (copy.patient, copy.split) != (group[0].patient, group[0].split)]  # fmt: skip
    gone = {copy.key for _, copy in dropped}
    rows = [{"picture": copy.digest, "key": copy.key, "path": copy.path, "patient": copy.patient, "split": copy.split,
             "kept": "no" if copy.key in gone else "yes"} for group in groups for copy in group]  # fmt: skip
    write_bytes(out / DUPLICATES, to_csv(pd.DataFrame(rows)))
    across = sum(len({copy.split for copy in group}) > 1 for group in groups)
    summary = Summary(policy, len(groups), len(rows), across, len(dropped))
    if policy == "error":
        first, other = next((group[0], copy) for group in groups for copy in group
                            if (copy.patient, copy.split) != (group[0].patient, group[0].split))  # fmt: skip
        raise InputError(
            f"{out / DUPLICATES}: {len(groups)} pictures are there under two patients or in two splits, such as "
            f"{first.key} ({first.patient}, {first.split}) and {other.key} ({other.patient}, {other.split}); mend the "
            "table, or leave copies out with --duplicates=drop, or keep them with --duplicates=keep")
    of_shard = defaultdict[str, set[str]](set)
    for _, copy in dropped:
        of_shard[copy.tar].add(copy.key)
    settled = [_leave_out(out, record, of_shard[record.shard.tar]) if record.shard.tar in of_shard else record
               for record in records]  # fmt: skip
    rejects = [(copy.key, copy.path, f"the same picture as {first.key} ({first.patient}, {first.split})")
               for first, copy in dropped]  # fmt: skip
    return settled, rejects, summary


def _find(records: Iterable[ShardRecord]) -> list[list[Copy]]:
    """The copies of each picture that is in two splits or under two patients, those to keep first, by the first key."""
    counts = Counter(text.partition("\t")[0] for record in records for text in record.pictures.values())
    twice = {digest for digest, count in counts.items() if count > 1}
    copies = defaultdict[str, list[Copy]](list)
    for record in records if twice else ():
        for key, text in record.pictures.items():
            if (digest := text.partition("\t")[0]) in twice:
                picture = unpack(text)
                copies[digest].append(Copy(digest, record.shard.split, key, picture.patient, picture.path,
                                           record.shard.tar))  # fmt: skip
    groups = [sorted(group, key=lambda copy: (_KEPT_FIRST.index(copy.split), copy.key)) for group in copies.values()
              if len({(copy.patient, copy.split) for copy in group}) > 1]  # fmt: skip
    return sorted(groups, key=lambda group: group[0].key)


def _leave_out(out: Path, record: ShardRecord, keys: set[str]) -> ShardRecord:
    """Write a shard again without some of its images; its bytes are as if they had never been in it.

    Reads the tar's own headers, not its index: a build that was killed in here may have written only one of the two.
    Where it had written both, nothing is left out a second time.
    """
    shard = record.shard
    tar, index = out / shard.tar, out / shard.index
    kept = len(record.pictures) - len(keys)
    described = _copy_others(tar, index, keys) if kept else []
    if not kept:
        tar.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
    gone = [unpack(record.pictures[key]) for key in keys]
    labels = {finding: {name: sum(sample["labels"][finding] == label for sample in described)
                        for name, label in (("1", 1), ("0", 0), ("-1", -1), ("blank", None))}
              for finding in record.labels}  # fmt: skip
    return replace(
        record, labels=labels, patients=sorted({sample["patient"] for sample in described}),
        demographics=count_demographics((sample["sex"], sample["age"], sample["view"]) for sample in described),
        pictures={key: text for key, text in record.pictures.items() if key not in keys},
        shard=replace(
            shard, samples=kept, tar_bytes=tar.stat().st_size if kept else 0,
            index_bytes=index.stat().st_size if kept else 0, tar_sha256=sha256_of(tar) if kept else "",
            index_sha256=sha256_of(index) if kept else "",
            **{name: getattr(shard, name) - sum(getattr(picture, name) for picture in gone)
               for name in ("pixels", "pixel_sum", "pixel_square_sum", "not_encoded")},
        ),
    )  # fmt: skip


def _copy_others(tar: Path, index: Path, keys: set[str]) -> list[dict[str, Any]]:
    """Write a tar and its index again without the samples `keys`; returns the JSON of the others."""
    described, members = list[dict[str, Any]](), dict[str, bytes]()
    with tarfile.open(tar, "r:") as archive, atomic_write(tar) as file, TarWriter(file) as writer:
        for member in archive:
            key, _, ending = member.name.partition(".")
            if key in keys:
                continue
            reader = archive.extractfile(member)
            assert reader is not None  # the sharder writes nothing but regular files
            members[ending] = reader.read()
            if len(members) == 2:  # the image and its JSON
                writer.add(key, members)
                described.append(json.loads(members["json"]))
                members = {}
    write_bytes(index, writer.index())
    return described


def as_json(summary: Summary) -> dict[str, Any]:
    """What the manifest says of them; {} where there are none, so that the policy decided nothing."""
    return asdict(summary) if summary.pictures else {}
