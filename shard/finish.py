"""The end of a build: all its records → rejects.csv, duplicates.csv and manifest.json."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from shard.duplicates import Policy, as_json, settle_duplicates
from shard.errors import InputError
from shard.files import TEMPORARY, write_bytes
from shard.formats import SPLITS
from shard.manifest import Manifest, quick_faults
from shard.record import UNFINISHED, ShardRecord
from shard.table import SAME_KEY, Reject
from shard.tabular.demographics import Counts, add_counts
from shard.tabular.sheet import to_csv

REJECTS = "rejects.csv"


def clear_away(out: Path) -> None:
    """Remove what only an unfinished build needs; a build killed in here is cleared away by the next."""
    for leftover in (*out.glob(f".*{TEMPORARY}"), *out.glob("part-*.json")):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # a network file system may keep a lock's file a while


def part_name(part: int, parts: int) -> str:
    """The file name of a part's record."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def union_software(parts: list[dict[str, Any]]) -> dict[str, str]:
    """The versions of the libraries that made the parts, by name."""
    return {name: version for part in parts for name, version in part["software"].items()}


def finish(out: Path, parts: list[dict[str, Any]], max_rejects: float, duplicates: Policy) -> None:
    """Write rejects.csv, duplicates.csv and manifest.json over all parts, remove what only an unfinished build needs,
    and say what was made.

    parts: each with settings, software, findings, shards (ShardRecord), rejects (rows of the table itself), notes.
    Raises InputError where too much was rejected; what is finished stays, so that the next build only goes on.
    """
    first = parts[0]
    records: list[ShardRecord] = [record for part in parts for record in part["shards"]]
    records.sort(key=lambda record: (SPLITS.index(record.shard.split), record.shard.tar))
    rejects = sorted(
        [reject for part in parts for reject in part["rejects"]]
        + [reject for record in records for reject in record.rejects]
    )
    write_bytes(out / REJECTS, to_csv(pd.DataFrame(rejects, columns=["key", "path", "reason"])))
    rows = first["settings"]["rows"]
    check_max_rejects(rejects, rows, max_rejects, place=str(out / REJECTS))
    records, dropped, twice = settle_duplicates(out, records, duplicates)
    rejects = sorted([*rejects, *dropped])
    records = [record for record in records if record.shard.samples]
    shards = tuple(record.shard for record in records)
    kept = sum(shard.samples for shard in shards)
    assert kept + len(rejects) == rows, f"{kept} kept + {len(rejects)} rejected ≠ {rows} rows"
    write_bytes(out / REJECTS, to_csv(pd.DataFrame(rejects, columns=["key", "path", "reason"])))
    train = [shard for shard in shards if shard.split == "train"]
    if not train:
        key, path, reason = rejects[0]
        raise InputError(f"{out / REJECTS}: not one of {rows} rows gave a training image ({path or key}: {reason}); "
                         "check that SRC holds the images themselves")
    for fault in quick_faults(out, shards):
        raise InputError(f"{fault}; run the {'part that made it' if len(parts) > 1 else 'same build'} again")
    pixels = sum(shard.pixels for shard in train)
    mean = sum(shard.pixel_sum for shard in train) / pixels
    square = sum(shard.pixel_square_sum for shard in train) / pixels
    manifest = Manifest(
        settings=first["settings"], software=union_software(parts), findings=tuple(first["findings"]),
        counts=_count_images(records), labels=_sum_labels(records), rejected=len(rejects),
        pixel_mean=round(mean / 255, 6), pixel_std=round(max(0.0, square - mean**2) ** 0.5 / 255, 6), shards=shards,
        notes=tuple(first["notes"]), demographics=_sum_demographics(records),
        duplicates=as_json(twice),
        tables=tuple(first.get("tables", ())),
    )  # fmt: skip
    manifest.write(out)
    clear_away(out)
    counts = ", ".join(f"{split} {count['images']}" for split, count in manifest.counts.items())
    as_they_were = sum(shard.not_encoded for shard in shards)
    if as_they_were:
        print(f"{out}: {as_they_were} of {kept} images are their sources' JPEGs, without metadata; "
              "--quality is that of the others")  # fmt: skip
    print(f"{out}: {kept} images in {len(shards)} shards ({counts}), {len(rejects)} of {rows} rows rejected"
          + (f", see {out / REJECTS}" if rejects else "") + (f"; {twice}" if twice.pictures else "")
          + (f"; of the table: {shorten('; '.join(manifest.notes), 200, placeholder='…')}" if manifest.notes else ""))


def check_max_rejects(rejects: Sequence[Reject], rows: int, max_rejects: float, place: str) -> None:
    """Raise InputError where more of the rows were rejected than is allowed, a share from 0 to 1."""
    if not 0 <= max_rejects <= 1:
        raise InputError(f"--max-rejects={max_rejects}: wants a share of the rows, from 0 to 1")
    if len(rejects) > max_rejects * rows:
        (reason, count), *_ = Counter(reason for _, _, reason in rejects).most_common(1)
        name = next(path or key for key, path, why in rejects if why == reason)
        votes = "" if SAME_KEY not in reason else (
            ", have --votes=majority make one of several readers' labels of one image")  # fmt: skip
        raise InputError(
            f"{place}: {len(rejects)} of {rows} rows rejected ({len(rejects) / rows:.1%}; --max-rejects allows "
            f"{max_rejects:.1%}), most often: {reason} ({count}, such as {name}); mend the source{votes}, or run again "
            f"with --max-rejects={-(-1000 * len(rejects) // rows) / 1000}")


def _count_images(records: list[ShardRecord]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        own = [record for record in records if record.shard.split == split]
        if own:
            patients = set().union(*(record.patients for record in own))
            counts[split] = {"images": sum(record.shard.samples for record in own), "patients": len(patients)}
    return counts


def _sum_demographics(records: list[ShardRecord]) -> dict[str, Counts]:
    """Counts by split; none where a part was built before they were kept."""
    if not all(record.demographics for record in records):
        return {}
    return {split: add_counts(record.demographics for record in records if record.shard.split == split)
            for split in SPLITS if any(record.shard.split == split for record in records)}  # fmt: skip


def _sum_labels(records: list[ShardRecord]) -> dict[str, dict[str, dict[str, int]]]:
    sums: dict[str, dict[str, dict[str, int]]] = {}
    for record in records:
        own = sums.setdefault(record.shard.split, {name: Counter() for name in record.labels})
        for name, counts in record.labels.items():
            for label, count in counts.items():
                own[name][label] = own[name].get(label, 0) + count
    return {split: {name: dict(counts) for name, counts in own.items()} for split, own in sums.items()}
