"""merge: the records of all parts of a build → rejects.csv and one manifest over their shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from shard.demographics import Counts, add_counts
from shard.duplicates import Policy, as_json, settle_duplicates
from shard.errors import NOT_OURS, InputError
from shard.files import TEMPORARY, write_bytes
from shard.formats import SPLITS
from shard.manifest import MANIFEST, Manifest, quick_faults, read_manifest
from shard.record import UNFINISHED, ShardRecord, first_difference, parse_record, parse_rejects
from shard.sheet import to_csv
from shard.table import SAME_KEY, Reject

REJECTS = "rejects.csv"


def merge(out: Path, *, max_rejects: float = 0.01, duplicates: Policy | None = None) -> None:
    """Join the parts that a job array wrote into OUT under one manifest.

    --max-rejects: how many rows may be left out, as a share of all. --duplicates: what becomes of pictures in two
    splits or under two patients; without it, what the builds were told.

    Raises InputError where a part is missing or comes from a build with other settings or another table, and where
    more than --max-rejects were rejected.
    """
    if (out / MANIFEST).exists():
        read_manifest(out)
        clear_away(out)
        print(f"{out}: merged already; nothing to do")
        return
    parts = [_read_part(file) for file in sorted(out.glob("part-*.json"))]
    if not parts:
        raise InputError(f"{out}: no part-*.json in it; run: python -m shard build SRC {out} --part=I --parts=N")
    first = parts[0]
    software = _union_software(parts)  # a part without DICOM files names no readers of theirs
    for part in parts:
        difference = first_difference(*({**one["settings"], **software, **one["software"], "parts": one["parts"]}
                                        for one in (first, part)))  # fmt: skip
        if difference:
            raise InputError(f"{out}: {part_name(part['part'], part['parts'])} is of another build than "
                             f"{part_name(first['part'], first['parts'])} ({difference}); "
                             "remove the one that is wrong and build that part anew")
    missing = sorted(set(range(first["parts"])) - {part["part"] for part in parts})
    if missing:
        raise InputError(f"{out}: part {missing[0]} of {first['parts']} is missing ({len(missing)} in all); "
                         f"run: python -m shard build SRC {out} --part={missing[0]} --parts={first['parts']}")
    finish(out, parts, max_rejects, duplicates or first["duplicates"])


def clear_away(out: Path) -> None:
    """Remove what only an unfinished build needs; a build killed in here is cleared away by the next."""
    for leftover in (*out.glob(f".*{TEMPORARY}"), *out.glob("part-*.json")):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # a network file system may keep a lock's file a while


def part_name(part: int, parts: int) -> str:
    """The file name of a part's record."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def _union_software(parts: list[dict[str, Any]]) -> dict[str, str]:
    return {name: version for part in parts for name, version in part["software"].items()}


def _read_part(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        records = [parse_record(record) for record in content["shards"]]
        notes = tuple(map(str, content.get("notes", ())))  # a part of before there were notes has none
        return {**content, "shards": records, "rejects": parse_rejects(content["rejects"]), "notes": notes}
    except NOT_OURS as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file}: not a part's record ({reason}); remove it and build that part again") from None


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
        settings=first["settings"], software=_union_software(parts), findings=tuple(first["findings"]),
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
