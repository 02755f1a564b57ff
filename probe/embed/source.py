"""The source of python -m probe embed: a folder of radiographs, read as the sharder reads it and kept as shards."""

from __future__ import annotations

from pathlib import Path

from probe.embed.settings import EmbedSettings
from shard.errors import InputError
from shard.manifest import MANIFEST
from shard.record import UNFINISHED
from shard.table import Table, read_table
from shard.tabular.dialect import tables_in
from shard.write import build_table

SIZE = 256  # pixels, the default of python -m shard build: its shards have the same fingerprint and features


def is_shards(folder: Path) -> bool:
    """Whether a folder has shards, finished or not, and no source."""
    return any(next(folder.glob(pattern), None) for pattern in (MANIFEST, f"{UNFINISHED}/*.json", "part-*-of-*.json"))


def read_source(src: Path, settings: EmbedSettings) -> Table:
    """Read the table of a source; without any table, every image file under it. Raises InputError as the sharder does.

    Also raises InputError if the output exists but the shards it was computed from do not.
    """
    if settings.out.exists() and not (settings.shards / MANIFEST).exists():
        raise InputError(f"{settings.out}: exists, but {settings.shards}, with the images that it was computed from, "
                         "does not; to compute it again, remove it or choose another --out")  # fmt: skip
    dataset = settings.dataset
    if dataset == "auto" and settings.table is None and src.is_dir() and not tables_in(src):
        dataset = "folder"
    return read_table(src, dataset, settings.table, settings.allow_outside, settings.patient_from, settings.workers,
                      settings.findings, settings.votes, training=False)  # fmt: skip


def write_shards(table: Table, src: Path, size: int, settings: EmbedSettings) -> None:
    """Write the images of a source as shards, at the encoder's size or, if that is smaller, at the sharder's default.

    A stopped build is resumed, and a finished one is kept: rejects.csv in it lists the images that can't be read.
    """
    build_table(table, src, settings.shards, settings.table, size=max(size, SIZE), max_rejects=settings.max_rejects,
                workers=settings.workers, training=False)  # fmt: skip
    print(f"{settings.shards}: the images as shards, for other encoders and reports; may be removed")
