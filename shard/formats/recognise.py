"""Recognise the format of a folder or table by column names: a file called train.csv need not be CheXpert's."""

from __future__ import annotations

import csv as csv_module
import shlex
import zlib
from pathlib import Path

from shard.errors import InputError
from shard.formats.archives import archive_tables
from shard.formats.registry import FORMATS, FolderFormat, TableFormat
from shard.note import listed
from shard.tabular.dialect import sniff, tables_in


def recognise_table(csv: Path) -> str | None:
    """Return the name of the TableFormat that a table has, or None."""
    known = ((name, known) for name, known in FORMATS.items() if isinstance(known, TableFormat))
    return next((name for name, known in known if known.recognises(csv)), None)


def recognise(src: Path) -> str:
    """Return the name of the format that a folder has. Raises InputError if there is none, or more than one."""
    tables = archive_tables(src)
    found = [name for name, known in FORMATS.items()
             if (known.recognises(src) if isinstance(known, FolderFormat) else any(map(known.recognises, tables)))]
    if "chexpert" in found and "chexlocalize" in found:  # CheXpert with its test labels
        found.remove("chexlocalize")
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{src}: contains tables of {' and of '.join(found)}; choose one, for example with "
                         f"--dataset={found[0]}")  # fmt: skip
    raise _unknown(src)


def _unknown(src: Path) -> InputError:
    tables = tables_in(src)
    if not tables:
        return InputError(f"{src}: neither train.csv (CheXpert) nor Data_Entry_2017*.csv (NIH) nor "
                          "mimic-cxr-*-metadata.csv.gz (MIMIC-CXR-JPG) is in it, nor any other table; name your own "
                          "with --dataset=csv --table=PATH, or read all images, without labels, with --dataset=folder")
    more = f", and there are {len(tables) - 1} more tables" if len(tables) > 1 else ""
    return InputError(f"{src}: no table in it has the columns of a known archive ({', '.join(FORMATS)}); "
                      f"{_describe(tables[0])}{more}; read it as your own table, with columns path and "
                      f"patient: --dataset=csv --table={shlex.quote(str(tables[0]))}; or read all images, "
                      "without labels: --dataset=folder")


def _describe(table: Path) -> str:
    """The column names of a table, for a message."""
    try:
        dialect = sniff(table, head_only=True)
    except (OSError, EOFError, ValueError, zlib.error, csv_module.Error) as error:
        return f"{table.name}: not a readable CSV ({' '.join(str(error).split()) or type(error).__name__})"
    return f"{table.name} has {listed(dialect.header)} ({dialect})"
