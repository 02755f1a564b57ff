"""Archives that are known by the columns of one table, in SRC, a folder below, or wherever --table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shard.errors import InputError
from shard.formats.brax import is_brax, read_brax
from shard.formats.chexlocalize import is_chexlocalize, read_chexlocalize
from shard.formats.chexpert_plus import is_chexpert_plus, read_chexpert_plus
from shard.formats.padchest import is_padchest, read_padchest
from shard.formats.rows import Rows
from shard.formats.rsna import is_rsna, read_rsna
from shard.formats.vindr import is_vindr, read_vindr
from shard.tabular.columns import fold
from shard.tabular.csv_file import tables_in
from shard.tabular.votes import Votes

BELOW = ("annotations", "CheXpert", "label", "labels")  # folders of SRC in which tables are looked for, too


class Archive(NamedTuple):
    """An archive: its name in --dataset, whether a table is its, how its images in SRC are read by that table, and
    which of several such tables is the one to read, as the beginning of its name."""

    name: str
    owns: Callable[[Path], bool]
    read: Callable[[Path, Path, Votes, int], Rows]
    first: str = ""


# A new archive is a line here, and a module beside this one.
ARCHIVES = (
    Archive("padchest", is_padchest, lambda src, csv, votes, workers: read_padchest(src, csv)),
    Archive("vindr", is_vindr, read_vindr, "imagelabelstrain"),
    Archive("rsna", is_rsna, lambda src, csv, votes, workers: read_rsna(src, csv, workers), "stage2trainlabels"),
    Archive("brax", is_brax, lambda src, csv, votes, workers: read_brax(src, csv)),
    Archive("chexpert-plus", is_chexpert_plus, lambda src, csv, votes, workers: read_chexpert_plus(src, csv)),
    Archive("chexlocalize", is_chexlocalize, lambda src, csv, votes, workers: read_chexlocalize(src, csv), "vallabels"),
)


def archive_of(table: Path) -> str | None:
    """The name of the archive that a table is of; None where it is of none."""
    return next((archive.name for archive in ARCHIVES if archive.owns(table)), None)


def archives_in(src: Path) -> list[str]:
    """The names of the archives that the tables of a folder are of."""
    tables = _tables(src)
    return [archive.name for archive in ARCHIVES if any(map(archive.owns, tables))]


def read_archive(name: str, src: Path, table: Path | None, votes: Votes, workers: int) -> Rows:
    """The images of an archive. table: None for the one that lies in `src` or in a folder below.

    Raises InputError where there is no such table, or more than one.
    """
    (archive,) = (archive for archive in ARCHIVES if archive.name == name)
    if table is not None:
        if not archive.owns(table):
            raise InputError(f"--table={table}: does not have the columns of {name}'s table; leave --dataset={name} "
                             "out, or give its own table")  # fmt: skip
        return archive.read(src, table, votes, workers)
    tables = [table for table in _tables(src) if archive.owns(table)]
    preferred = [table for table in tables if archive.first and fold(table.name).startswith(archive.first)] or tables
    if not preferred:
        raise InputError(f"{src}: no table of {name} is in it, nor in {' or '.join(BELOW)} there; name it with "
                         "--table=FILE")  # fmt: skip
    if len(preferred) > 1:
        raise InputError(f"{src}: has {' and '.join(table.name for table in preferred)}; name the one to read with "
                         "--table=FILE")  # fmt: skip
    return archive.read(src, preferred[0], votes, workers)


def _tables(src: Path) -> list[Path]:
    folders = [src, *(src / name for name in BELOW if (src / name).is_dir())]
    return [table for folder in folders for table in tables_in(folder)]
