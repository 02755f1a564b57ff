"""merge: the records of all parts of a build → one manifest over their shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from shard.errors import InputError
from shard.manifest import NAME, Manifest, Shard, check_sizes, read_manifest
from shard.read import label_frame
from shard.table import SPLITS


def merge(out: Path) -> None:
    """Join the parts that a job array wrote into OUT under one manifest.

    Raises InputError where a part is missing or comes from a build with other settings or another table.
    """
    if (out / NAME).exists():
        read_manifest(out)
        print(f"{out}: merged already; nothing to do")
        return
    records = [_read_part(file) for file in sorted(out.glob("part-*.json"))]
    if not records:
        raise InputError(f"{out}: no part-*.json in it; run: python -m shard build SRC {out} --part=I --parts=N")
    missing = sorted(set(range(records[0]["parts"])) - {record["part"] for record in records})
    if missing:
        raise InputError(f"{out}: part {missing[0]} of {records[0]['parts']} is missing ({len(missing)} in all); "
                         f"run: python -m shard build SRC {out} --part={missing[0]} --parts={records[0]['parts']}")
    for record in records:
        for name in ("settings", "parts"):
            if record[name] != records[0][name]:
                raise InputError(f"{out}: part {record['part']} has other {name} ({record[name]}) than part "
                                 f"{records[0]['part']} ({records[0][name]}); remove its record and build it anew")
    finish(out, records)


def _read_part(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not a part's record ({error}); remove it and build that part again") from None
    return record


def finish(out: Path, records: list[dict[str, Any]]) -> None:
    """Write rejects.csv and manifest.json over the records of all parts, and say what was made.

    Raises InputError where not one training image was readable.
    """
    findings = tuple(records[0]["findings"])
    shards = [Shard(**shard) for record in records for shard in record["shards"]]
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.tar))
    rejects = sorted(tuple(row) for record in records for row in record["rejects"])
    kept, rows = sum(shard.samples for shard in shards), records[0]["settings"]["rows"]
    assert kept + len(rejects) == rows, (kept, len(rejects), rows)
    train = [shard for shard in shards if shard.split == "train"]
    if not train:
        raise InputError(f"{rejects[0][1]}: {rejects[0][2]}; not one of {rows} rows gave a training image: "
                         "check that SRC holds the images themselves")
    check_sizes(out, tuple(shards))
    pd.DataFrame(rejects, columns=["key", "path", "reason"]).to_csv(out / "rejects.csv", index=False)
    pixels = sum(shard.pixels for shard in train)
    mean = sum(shard.pixel_sum for shard in train) / pixels
    square = sum(shard.pixel_square_sum for shard in train) / pixels
    labels = label_frame(out, shards, findings)
    manifest = Manifest(
        settings=records[0]["settings"], findings=findings, counts=_count_images(labels),
        labels=_count_labels(labels, findings), rejected=len(rejects), pixel_mean=round(mean / 255, 6),
        pixel_std=round((square - mean**2) ** 0.5 / 255, 6), shards=tuple(shards),
    )  # fmt: skip
    manifest.write(out)
    counts = ", ".join(f"{split} {count['images']}" for split, count in manifest.counts.items())
    print(f"{out}: {kept} images in {len(shards)} shards ({counts}), {len(rejects)} rejected"
          + (f", see {out / 'rejects.csv'}" if rejects else ""))


def _count_images(labels: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {split: {"images": len(rows), "patients": int(rows["patient"].nunique())}
            for split in SPLITS if len(rows := labels[labels["split"] == split])}  # fmt: skip


def _count_labels(labels: pd.DataFrame, findings: tuple[str, ...]) -> dict[str, dict[str, dict[str, int]]]:
    def count(values: pd.Series) -> dict[str, int]:
        counted = {str(label): int((values == label).sum()) for label in (1, 0, -1)}
        return {**counted, "blank": int(values.isna().sum())}

    return {split: {finding: count(rows[finding]) for finding in findings}
            for split in SPLITS if len(rows := labels[labels["split"] == split])}  # fmt: skip
