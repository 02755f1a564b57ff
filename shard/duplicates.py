"""Find images with equal pixels in two splits or under two patients, list them in duplicates.csv, and drop copies."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xxhash

from shard.conflicts import Reject
from shard.errors import InputError
from shard.files import atomic_write, sha256_of, write_bytes
from shard.kernels.sums import sum_pixels
from shard.record import ShardRecord
from shard.tabular.demographics import count_demographics
from shard.tabular.sheet import to_csv
from shard.tar import TarWriter

DUPLICATES = "duplicates.csv"
Policy = Literal["drop", "keep", "error"]
_PRIORITY = ("test", "valid", "train")  # drop keeps the copy of the first of these splits


@dataclass(frozen=True)
class Summary:
    """The number of pictures that several images share, the number of these images, and what the build did with them.

    across_splits: the pictures that are in more than one split. dropped: the images that were excluded.
    """

    policy: Policy
    pictures: int = 0
    images: int = 0
    across_splits: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        done = (f"{self.dropped} of them excluded" if self.policy == "drop"
                else "all kept (--duplicates=drop excludes copies)")  # fmt: skip
        return (f"{self.images} images show {self.pictures} picture{'s' * (self.pictures != 1)} under two patients or "
                f"in two splits ({self.across_splits} in two splits), {done}; see {DUPLICATES}")  # fmt: skip


class Picture(NamedTuple):
    """An image in a record: a hash of its pixels, its contribution to the shard's sums, its patient and its path."""

    digest: str
    pixels: int
    pixel_sum: int
    pixel_square_sum: int
    not_encoded: int
    patient: str
    path: str

    def pack(self) -> str:
        """Pack the fields into one string: a record has one for each image, and strings take less memory."""
        return "\t".join(map(str, self))


class Copy(NamedTuple):
    """One of several images with the same picture."""

    digest: str
    split: str
    key: str
    patient: str
    path: str
    tar: str


def describe_picture(grey: npt.NDArray[np.uint8], not_encoded: bool, patient: str, path: str) -> Picture:
    """Describe an image by its pixels in the shard, [H, W] uint8.

    Images with equal decoded pixels have equal hashes, whatever their file names, formats and metadata.
    """
    digest = xxhash.xxh3_128(f"{grey.shape}".encode())
    digest.update(np.ascontiguousarray(grey).data)
    pixel_sum, pixel_square_sum = sum_pixels(grey)
    return Picture(digest.hexdigest(), grey.size, pixel_sum, pixel_square_sum, int(not_encoded),
                   patient.replace("\t", " "), path.replace("\t", " "))  # fmt: skip


def unpack(text: str) -> Picture:
    """Restore a picture from Picture.pack's string. Raises ValueError if the string is not one."""
    digest, pixels, total, squares, not_encoded, patient, path = text.split("\t")
    return Picture(digest, int(pixels), int(total), int(squares), int(not_encoded), patient, path)


def resolve_duplicates(
    out: Path, records: list[ShardRecord], policy: Policy
) -> tuple[list[ShardRecord], list[Reject], Summary]:
    """Find pictures under two patients or in two splits, list them in duplicates.csv, and apply the policy.

    Repeats of a picture for one patient in one split are not leaks and stay. With "drop", the build keeps the copy in
    test before valid before train, so that official test sets stay complete, and within a split that of the first key.
    Other copies of the same patient in the same split also stay. The result does not depend on workers or parts.
    Returns the updated records, the dropped images as rejects, and a summary.

    Raises InputError that names the first such picture if the policy is "error".
    """
    groups = _find_groups(records)
    if not groups:
        return records, [], Summary(policy)
    dropped = [(kept, copy) for kept, copy in _leaks(groups) if policy == "drop"]
    _write_list(out, groups, {copy.key for _, copy in dropped})
    if policy == "error":
        first, other = next(_leaks(groups))
        raise InputError(
            f"{out / DUPLICATES}: {len(groups)} pictures occur under two patients or in two splits, such as "
            f"{first.key} ({first.patient}, {first.split}) and {other.key} ({other.patient}, {other.split}); fix the "
            "table, or exclude copies with --duplicates=drop, or keep them with --duplicates=keep")
    keys_by_tar = defaultdict[str, set[str]](set)
    for _, copy in dropped:
        keys_by_tar[copy.tar].add(copy.key)
    records = [_drop_samples(out, record, keys_by_tar[record.shard.tar]) if record.shard.tar in keys_by_tar else record
               for record in records]  # fmt: skip
    rejects = [(copy.key, copy.path, f"the same picture as {kept.key} ({kept.patient}, {kept.split})")
               for kept, copy in dropped]  # fmt: skip
    across = sum(len({copy.split for copy in group}) > 1 for group in groups)
    return records, rejects, Summary(policy, len(groups), sum(map(len, groups)), across, len(dropped))


def _find_groups(records: Iterable[ShardRecord]) -> list[list[Copy]]:
    """Group the copies of each picture that is in two splits or under two patients.

    The copy to keep is the first of its group. Groups are sorted by its key.
    """
    counts = Counter(text.partition("\t")[0] for record in records for text in record.pictures.values())
    repeated = {digest for digest, count in counts.items() if count > 1}
    copies = defaultdict[str, list[Copy]](list)
    for record in records if repeated else ():
        for key, text in record.pictures.items():
            if (digest := text.partition("\t")[0]) in repeated:
                picture = unpack(text)
                copies[digest].append(Copy(digest, record.shard.split, key, picture.patient, picture.path,
                                           record.shard.tar))  # fmt: skip
    groups = [sorted(group, key=lambda copy: (_PRIORITY.index(copy.split), copy.key)) for group in copies.values()
              if len({(copy.patient, copy.split) for copy in group}) > 1]  # fmt: skip
    return sorted(groups, key=lambda group: group[0].key)


def _leaks(groups: list[list[Copy]]) -> Iterator[tuple[Copy, Copy]]:
    """Yield (copy to keep, other copy) for each copy whose patient or split differs from the copy to keep."""
    for kept, *others in groups:
        yield from ((kept, copy) for copy in others if (copy.patient, copy.split) != (kept.patient, kept.split))


def _write_list(out: Path, groups: list[list[Copy]], dropped: set[str]) -> None:
    """Write duplicates.csv. dropped: keys."""
    rows = [{"picture": copy.digest, "key": copy.key, "path": copy.path, "patient": copy.patient, "split": copy.split,
             "kept": "no" if copy.key in dropped else "yes"} for group in groups for copy in group]  # fmt: skip
    write_bytes(out / DUPLICATES, to_csv(pd.DataFrame(rows)))


def _drop_samples(out: Path, record: ShardRecord, keys: set[str]) -> ShardRecord:
    """Rewrite a shard without some of its samples, to the bytes of a build without their rows.

    Reads the headers of the tar, not the index, because a killed build may have replaced only one of the two files. If
    it replaced both, the keys are already gone and nothing else is dropped.
    """
    shard = record.shard
    tar, index = out / shard.tar, out / shard.index
    kept = len(record.pictures) - len(keys)
    described, (image_xxh3, labels_xxh3) = _copy_samples(tar, index, keys) if kept else ([], ("", ""))
    if not kept:
        tar.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
    dropped = [unpack(record.pictures[key]) for key in keys]
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
            image_xxh3=image_xxh3, labels_xxh3=labels_xxh3,
            **{name: getattr(shard, name) - sum(getattr(picture, name) for picture in dropped)
               for name in ("pixels", "pixel_sum", "pixel_square_sum", "not_encoded")},
        ),
    )  # fmt: skip


def _copy_samples(tar: Path, index: Path, excluded: set[str]) -> tuple[list[dict[str, Any]], tuple[str, str]]:
    """Rewrite a tar and its index without the excluded keys. Returns the JSON of the rest, and TarWriter.hashes."""
    described, members = list[dict[str, Any]](), dict[str, bytes]()
    with tarfile.open(tar, "r:") as archive, atomic_write(tar) as file, TarWriter(file) as writer:
        for member in archive:
            key, _, ending = member.name.partition(".")
            if key in excluded:
                continue
            reader = archive.extractfile(member)
            assert reader is not None  # the sharder writes regular files only
            members[ending] = reader.read()
            if len(members) == 2:  # the image and its JSON
                writer.add(key, members)
                described.append(json.loads(members["json"]))
                members = {}
    write_bytes(index, writer.index())
    return described, writer.hashes()


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the summary for the manifest; {} if there are no duplicates, so that the policy had no effect."""
    return asdict(summary) if summary.pictures else {}
