"""Which format a folder holds, by the columns of its tables: a train.csv is not CheXpert's for its name."""

from __future__ import annotations

import csv as csv_module
import shlex
import zlib
from pathlib import Path

from shard.errors import InputError
from shard.formats.archives import ARCHIVES, archives_in
from shard.formats.chexpert import is_chexpert, read_chexpert
from shard.formats.mimic import is_mimic, read_mimic
from shard.formats.nih import is_nih, read_nih
from shard.formats.rows import Format
from shard.note import listed
from shard.tabular.csv_file import form_of, tables_in

# A new format of folders is a line here, and a module beside this one.
FOLDERS = (
    Format("chexpert", is_chexpert, read_chexpert),
    Format("nih", is_nih, read_nih),
    Format("mimic", is_mimic, read_mimic),
)


def recognise(src: Path) -> str:
    """The name of the one format that a folder holds. Raises InputError where it is none, or more than one."""
    found = [*(folder.name for folder in FOLDERS if folder.recognises(src)), *archives_in(src)]
    if "chexpert" in found and "chexlocalize" in found:  # CheXpert with its test labels
        found.remove("chexlocalize")
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{src}: holds tables of {' and of '.join(found)}; say which to read, as with "
                         f"--dataset={found[0]}")  # fmt: skip
    tables = tables_in(src)
    if not tables:
        raise InputError(f"{src}: neither train.csv (CheXpert) nor Data_Entry_2017*.csv (NIH) nor "
                         "mimic-cxr-*-metadata.csv.gz (MIMIC-CXR-JPG) is in it, nor another table; name your own with "
                         "--dataset=csv --table=PATH, or take every image in it, without labels, by --dataset=folder")
    more = f", and {len(tables) - 1} more tables are there" if len(tables) > 1 else ""
    known = ", ".join(known.name for known in (*FOLDERS, *ARCHIVES))
    raise InputError(f"{src}: no table in it has the columns of an archive known here ({known}); "
                     f"{_describe(tables[0])}{more}; read it as a table of your own, with columns path and "
                     f"patient: --dataset=csv --table={shlex.quote(str(tables[0]))}; or take every image, "
                     "without labels: --dataset=folder")


def _describe(table: Path) -> str:
    """A table's columns, for a message."""
    try:
        form = form_of(table, head_only=True)
    except (OSError, EOFError, ValueError, zlib.error, csv_module.Error) as error:
        return f"{table.name}: not a readable CSV ({' '.join(str(error).split()) or type(error).__name__})"
    return f"{table.name} has {listed(form.header)} ({form})"
