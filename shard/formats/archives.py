"""Find and read an archive in a registered format: --dataset=NAME."""

from __future__ import annotations

from pathlib import Path

from shard.errors import InputError
from shard.formats.registry import FORMATS, FolderFormat, TableFormat
from shard.formats.rows import Rows
from shard.formats.votes import Votes
from shard.tabular.columns import fold_name
from shard.tabular.dialect import tables_in

TABLE_FOLDERS = ("annotations", "CheXpert", "label", "labels")  # subfolders of SRC that are searched for tables, too


def archive_tables(src: Path) -> list[Path]:
    """List the tables in a folder and in its TABLE_FOLDERS."""
    folders = [src, *(src / name for name in TABLE_FOLDERS if (src / name).is_dir())]
    return [table for folder in folders for table in tables_in(folder)]


def read_archive(name: str, src: Path, table: Path | None, votes: Votes, workers: int) -> Rows:
    """Read the archive in folder `src`, in the format registered as `name`.

    table: the table of a TableFormat; None searches `src` for it. votes: how several readers' labels are combined.
    Raises InputError if there is no such table, or more than one.
    """
    chosen = FORMATS[name]
    if isinstance(chosen, FolderFormat):
        return chosen.read(src)
    table = _find_table(name, chosen, src) if table is None else _check_table(name, chosen, table)
    given = {"votes": votes, "workers": workers}
    return chosen.read(src, table, **{option: given[option] for option in chosen.options})


def _check_table(name: str, chosen: TableFormat, table: Path) -> Path:
    if not chosen.recognises(table):
        raise InputError(f"--table={table}: is not a table of {name}; omit --dataset={name}, or pass "
                         f"{name}'s own table")  # fmt: skip
    return table


def _find_table(name: str, chosen: TableFormat, src: Path) -> Path:
    tables = [table for table in archive_tables(src) if chosen.recognises(table)]
    main = [table for table in tables if chosen.main_table and fold_name(table.name).startswith(chosen.main_table)]
    found = main or tables
    if not found:
        raise InputError(f"{src}: contains no table of {name}, nor do its subfolders {', '.join(TABLE_FOLDERS)}; name "
                         "the table with --table=FILE")  # fmt: skip
    if len(found) > 1:
        raise InputError(f"{src}: contains {' and '.join(table.name for table in found)}; name the one to read with "
                         "--table=FILE")  # fmt: skip
    return found[0]
