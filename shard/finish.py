"""Finish a build: combine the records of all shards into rejects.csv, duplicates.csv and manifest.json."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shard.conflicts import SAME_KEY, Reject
from shard.duplicates import Policy, Summary, as_json, resolve_duplicates
from shard.errors import InputError
from shard.files import TEMPORARY, write_bytes
from shard.formats import SPLITS
from shard.manifest import Manifest, Shard, quick_faults
from shard.note import counted
from shard.record import UNFINISHED, ShardRecord
from shard.tabular.demographics import Counts, add_counts
from shard.tabular.sheet import to_csv

REJECTS = "rejects.csv"


def clear_away(out: Path) -> None:
    """Remove the files that only an unfinished build needs. If interrupted, the next build completes it."""
    for leftover in (*out.glob(f".*{TEMPORARY}"), *out.glob("part-*.json")):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # a network file system may keep a lock file for a while


def part_name(part: int, parts: int) -> str:
    """Return the file name of a part's record."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def union_software(parts: list[dict[str, Any]]) -> dict[str, str]:
    """Combine the library versions of all parts, name → version."""
    return {name: version for part in parts for name, version in part["software"].items()}


def finish(
    out: Path, parts: list[dict[str, Any]], max_rejects: float, duplicates: Policy, training: bool = True
) -> None:
    """Write rejects.csv, duplicates.csv and manifest.json for all parts, clean up, and print a summary.

    parts: each with settings, software, findings, shards (ShardRecord), rejects (of the table itself) and notes.
    training: whether there must be a training image.
    Raises InputError if too many rows were rejected. Finished shards stay, so that the next build continues from them.
    """
    rows = parts[0]["settings"]["rows"]
    records = _sorted_records(parts)
    rejects = sorted([reject for part in parts for reject in part["rejects"]]
                     + [reject for record in records for reject in record.rejects])  # fmt: skip
    _write_rejects(out, rejects)
    check_max_rejects(rejects, rows, max_rejects, place=str(out / REJECTS))
    records, dropped, summary = resolve_duplicates(out, records, duplicates)
    rejects = sorted([*rejects, *dropped])
    records = [record for record in records if record.shard.samples]
    kept = sum(record.shard.samples for record in records)
    assert kept + len(rejects) == rows, f"{kept} kept + {len(rejects)} rejected ≠ {rows} rows"
    _write_rejects(out, rejects)
    if not any(record.shard.split == "train" or not training for record in records):
        key, path, reason = rejects[0]
        kind = "a training" if training else "an"
        raise InputError(f"{out / REJECTS}: none of the {rows} rows yielded {kind} image ({path or key}: {reason})"
                         "; check that SRC contains the images themselves")
    for fault in quick_faults(out, [record.shard for record in records]):
        raise InputError(f"{fault}; run the {'part that wrote it' if len(parts) > 1 else 'same build'} again")
    manifest = _make_manifest(parts, records, len(rejects), summary)
    manifest.write(out)
    clear_away(out)
    _print_summary(out, manifest, summary)


def _sorted_records(parts: list[dict[str, Any]]) -> list[ShardRecord]:
    """Return the records of all parts in the order of the shards."""
    records: list[ShardRecord] = [record for part in parts for record in part["shards"]]
    return sorted(records, key=lambda record: (SPLITS.index(record.shard.split), record.shard.tar))


def _write_rejects(out: Path, rejects: list[Reject]) -> None:
    write_bytes(out / REJECTS, to_csv(pd.DataFrame(rejects, columns=["key", "path", "reason"])))


def _make_manifest(
    parts: list[dict[str, Any]], records: list[ShardRecord], rejected: int, duplicates: Summary
) -> Manifest:  # fmt: skip
    first = parts[0]
    shards = [record.shard for record in records]
    mean, std = _pixel_statistics([shard for shard in shards if shard.split == "train"] or shards)
    return Manifest(
        settings=first["settings"], software=union_software(parts), findings=tuple(first["findings"]),
        counts=_count_images(records), labels=_sum_labels(records), rejected=rejected, pixel_mean=mean, pixel_std=std,
        shards=tuple(shards), notes=tuple(first["notes"]),
        demographics=_sum_demographics(records), duplicates=as_json(duplicates), tables=tuple(first.get("tables", ())),
    )  # fmt: skip


def _pixel_statistics(shards: Sequence[Shard]) -> tuple[float, float]:
    """Compute mean and standard deviation of the pixels, in grey levels divided by 255."""
    pixels = sum(shard.pixels for shard in shards)
    mean = sum(shard.pixel_sum for shard in shards) / pixels
    mean_square = sum(shard.pixel_square_sum for shard in shards) / pixels
    return round(mean / 255, 6), round(max(0.0, mean_square - mean**2) ** 0.5 / 255, 6)


def _print_summary(out: Path, manifest: Manifest, duplicates: Summary) -> None:
    images = sum(shard.samples for shard in manifest.shards)
    if not_encoded := sum(shard.not_encoded for shard in manifest.shards):
        print(f"{out}: {not_encoded} of {images} images are copies of the source JPEGs without metadata; "
              "--quality applies to the others")  # fmt: skip
    counts = ", ".join(f"{split} {count['images']}" for split, count in manifest.counts.items())
    print(f"{out}: {images} images in {counted(len(manifest.shards), 'shard', 'shards')} ({counts}), "
          f"{manifest.rejected} of {manifest.settings['rows']} rows rejected"
          + (f", see {out / REJECTS}" if manifest.rejected else "")
          + (f"; {duplicates}" if duplicates.pictures else "") + (
              f"; {counted(len(manifest.notes), 'note', 'notes')} on the table: python -m shard info {out}"
              if manifest.notes else ""))


def check_max_rejects(rejects: Sequence[Reject], rows: int, max_rejects: float, place: str) -> None:
    """Raise InputError if more than max_rejects (a fraction of all rows) were rejected. place: named by the message."""
    if len(rejects) > max_rejects * rows:
        (reason, count), *_ = Counter(reason for _, _, reason in rejects).most_common(1)
        example = next(path or key for key, path, why in rejects if why == reason)
        votes = "" if SAME_KEY not in reason else (
            ", combine the labels of several readers with --votes=majority")  # fmt: skip
        raise InputError(
            f"{place}: {len(rejects)} of {rows} rows rejected ({len(rejects) / rows:.1%}; --max-rejects allows "
            f"{max_rejects:.1%}), most often: {reason} ({count}, such as {example}); fix the source{votes}, or run "
            f"again with --max-rejects={-(-1000 * len(rejects) // rows) / 1000}")


def _count_images(records: list[ShardRecord]) -> dict[str, dict[str, int]]:
    """Count images and patients by split."""
    counts = {}
    for split in SPLITS:
        own = [record for record in records if record.shard.split == split]
        if own:
            patients = set().union(*(record.patients for record in own))
            counts[split] = {"images": sum(record.shard.samples for record in own), "patients": len(patients)}
    return counts


def _sum_demographics(records: list[ShardRecord]) -> dict[str, Counts]:
    """Sum the counts by split; {} if an older version, which did not count, built one of the parts."""
    if not all(record.demographics for record in records):
        return {}
    return {split: add_counts(record.demographics for record in records if record.shard.split == split)
            for split in SPLITS if any(record.shard.split == split for record in records)}  # fmt: skip


def _sum_labels(records: list[ShardRecord]) -> dict[str, dict[str, dict[str, int]]]:
    """Count labels: split → finding → label → images."""
    sums: dict[str, dict[str, dict[str, int]]] = {}
    for record in records:
        own = sums.setdefault(record.shard.split, {name: Counter() for name in record.labels})
        for name, counts in record.labels.items():
            for label, count in counts.items():
                own[name][label] = own[name].get(label, 0) + count
    return {split: {name: dict(counts) for name, counts in own.items()} for split, own in sums.items()}
