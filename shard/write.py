"""build: a table and its images → tars, indexes, and the record of what is in them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from shard.errors import InputError
from shard.files import TEMPORARY, replacing, sha256_of, write_bytes
from shard.image import UnreadableImage, encode_jpeg, load_grey, to_square
from shard.machine import cores
from shard.manifest import NAME, Shard, read_manifest
from shard.merge import finish
from shard.phantom import is_phantom
from shard.read import INDEX_VERSION
from shard.table import SPLITS, Dataset, Table, read_table

Encoding = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class Plan:
    """One shard to write: its name without ending, its rows as (key, path, content of KEY.json), and how."""

    stem: str
    split: str
    rows: list[tuple[str, str, str]]
    src: Path
    out: Path
    size: int
    encoding: Encoding
    quality: int


def build(
    src: Path, out: Path, *, dataset: Dataset = "auto", table: Path | None = None, size: int = 256,
    encoding: Encoding = "jpeg", quality: int = 95, shard_size: int = 1000, seed: int = 0, workers: int = 0,
    part: int = 0, parts: int = 1,
) -> None:  # fmt: skip
    """Write the radiographs of folder SRC as shuffled tar shards with DALI indexes and a manifest into OUT.

    Images become grey, their short side SIZE pixels (never enlarged): KEY.jpg or, with --encoding=raw, KEY.raw,
    SIZE x SIZE bytes, the centre of the image, black where it is smaller. Beside each lies KEY.json.
    Files that hold no image are left out and listed in rejects.csv. --shard-size counts samples, --workers
    processes (0: one a core). With --parts=N, run parts 0 to N-1 anywhere, then: python -m shard merge OUT.
    """
    for name, value, low, high in (
        ("size", size, 16, 4096), ("quality", quality, 1, 100), ("shard-size", shard_size, 1, 10**7),
        ("parts", parts, 1, 10**5), ("part", part, 0, parts - 1), ("workers", workers, 0, 4096),
        ("seed", seed, 0, 2**63),
    ):  # fmt: skip
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: wants a number from {low} to {high}")
    content = read_table(src, dataset, table)
    settings = {
        "dataset": content.dataset, "size": size, "encoding": encoding, "quality": quality, "shard_size": shard_size,
        "seed": seed, "rows": len(content.rows), "table": _table_hash(content), "synthetic": is_phantom(src),
    }  # fmt: skip
    if _is_built(out, settings):
        print(f"{out}: these shards are built already; nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f".*{TEMPORARY}") if parts == 1 else ():
        leftover.unlink()
    plans = [Plan(*item, src, out, size, encoding, quality) for item in plan_shards(content, shard_size, seed)]
    shards, rejects = [], []
    for shard, rejected in _write_all(plans[part::parts], workers or cores()):
        shards += [shard] if shard.samples else []
        rejects += rejected
    record = {"settings": settings, "findings": content.findings, "part": part, "parts": parts,
              "shards": [asdict(shard) for shard in shards], "rejects": rejects}  # fmt: skip
    if parts == 1:
        finish(out, [record])
    else:
        write_bytes(out / f"part-{part:05d}-of-{parts:05d}.json", json.dumps(record).encode())
        print(f"{out}: part {part} of {parts} done; when all are: python -m shard merge {out}")


def plan_shards(table: Table, shard_size: int, seed: int) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Yield (stem, split, rows) of every shard: each split shuffled whole, so that a reader need only buffer.

    The order depends on the seed and the keys alone, not on the order of the table.
    """
    for split in SPLITS:
        rows = table.rows[table.rows["split"] == split].sort_values("key")
        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(rows))
        samples = [_describe(row, table.findings) for row in rows.iloc[order].to_dict("records")]
        for number, start in enumerate(range(0, len(samples), shard_size)):
            yield f"{split}-{number:06d}", split, samples[start : start + shard_size]


def _describe(row: dict[str, Any], findings: tuple[str, ...]) -> tuple[str, str, str]:
    labels = {finding: None if pd.isna(row[finding]) else int(row[finding]) for finding in findings}
    content = {"patient": row["patient"], "split": row["split"], "view": row["view"], "labels": labels}
    return row["key"], row["path"], json.dumps(content)


def _write_all(plans: list[Plan], workers: int) -> Iterator[tuple[Shard, list[tuple[str, str, str]]]]:
    """Write every planned shard, in order, on `workers` processes, with one progress bar over images."""
    total = sum(len(plan.rows) for plan in plans)
    # webdataset imports torch, which takes seconds: once in the fork server, not once in each worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shard.write", "webdataset"])
    done = context.Value("l", 0)
    with tqdm(total=total, desc="sharding", unit=" images", disable=None) as bar:
        if workers == 1 or len(plans) <= 1:
            _count_in(done)
            for plan in plans:
                yield write_shard(plan)
                bar.update(done.value - bar.n)
            return
        with ProcessPoolExecutor(min(workers, len(plans)), context, _count_in, (done,)) as pool:
            try:
                for pending in [pool.submit(write_shard, plan) for plan in plans]:
                    while not wait([pending], timeout=0.2).done:
                        bar.update(done.value - bar.n)
                    yield pending.result()
            except BrokenProcessPool:
                raise InputError(f"--workers={workers}: one was killed, likely for want of memory; lower it") from None
            finally:
                pool.shutdown(cancel_futures=True)
            bar.update(done.value - bar.n)


_done: Any = None  # images handled so far, shared by the processes of a build


def _count_in(done: Any) -> None:
    global _done
    _done = done


def write_shard(plan: Plan) -> tuple[Shard, list[tuple[str, str, str]]]:
    """Write one tar and its index; return their record and the rejected rows as (key, path, reason)."""
    tar, index = plan.out / f"{plan.stem}.tar", plan.out / f"{plan.stem}.idx"
    sums, samples, rejects = np.zeros(3, np.int64), 0, []
    import webdataset  # imports torch, which takes seconds that no other command should wait for

    # Time, owner and mode are pinned: the same input gives the same bytes.
    pinned = {"user": "cxr", "group": "cxr", "mode": 0o644, "mtime": 0}
    with replacing(tar) as file, webdataset.TarWriter(file, **pinned) as writer:
        for key, path, content in plan.rows:
            try:
                grey = load_grey(plan.src / path, plan.size)
            except UnreadableImage as error:
                rejects.append((key, path, str(error)))
            else:
                sample: dict[str, Any] = {"__key__": key, "json": content.encode()}
                if plan.encoding == "raw":
                    grey = to_square(grey, plan.size)
                    sample["raw"] = grey.tobytes()
                else:
                    sample["jpg"] = encode_jpeg(grey, plan.quality)
                writer.write(sample)
                wide = grey.astype(np.int64)
                sums += (wide.size, wide.sum(), np.square(wide).sum())
                samples += 1
            with _done.get_lock():
                _done.value += 1
    if not samples:
        tar.unlink()
        return Shard(tar.name, index.name, plan.split, 0, 0, 0, "", "", 0, 0, 0), rejects
    write_index(tar, index)
    shard = Shard(
        tar.name, index.name, plan.split, samples, tar.stat().st_size, index.stat().st_size,
        sha256_of(tar), sha256_of(index), *(int(value) for value in sums),
    )  # fmt: skip
    return shard, rejects


def write_index(tar: Path, index: Path) -> None:
    """Write DALI's index v1.2 of a tar: a line a sample, extension, offset, size and name of each member."""
    lines: dict[str, list[str]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, extension = member.name.split(".", 1)
            lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    text = "".join(" ".join(line) + "\n" for line in lines.values())
    write_bytes(index, f"{INDEX_VERSION} {len(lines)}\n{text}".encode())


def _table_hash(table: Table) -> str:
    text = table.rows.sort_values("key").to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_built(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds these very shards; another build's are never overwritten."""
    if not (out / NAME).exists():
        return False
    found = read_manifest(out).settings
    differing = [name for name in settings if found.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise InputError(f"{out}: holds shards of another build ({name} {found.get(name)!r}, now {settings[name]!r}); "
                         "choose another folder or remove this one")
    return True
