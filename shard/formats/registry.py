"""The registry of data-set formats: FORMATS is the one place where a format is added.

To add the format of an archive with one table (several tables: FolderFormat, see mimic.py):
1. Write shard/formats/NAME.py with is_NAME(csv) -> bool and read_NAME(src, csv) -> Rows, as in brax.py.
2. Add the line `"NAME": TableFormat(is_NAME, read_NAME)` to FORMATS.
`--dataset=NAME`, `--dataset=auto` and the help text follow from that line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shard.formats.brax import is_brax, read_brax
from shard.formats.chexlocalize import is_chexlocalize, read_chexlocalize
from shard.formats.chexpert import is_chexpert, read_chexpert
from shard.formats.chexpert_plus import is_chexpert_plus, read_chexpert_plus
from shard.formats.mimic import is_mimic, read_mimic
from shard.formats.nih import is_nih, read_nih
from shard.formats.padchest import is_padchest, read_padchest
from shard.formats.rows import Rows
from shard.formats.rsna import is_rsna, read_rsna
from shard.formats.vindr import is_vindr, read_vindr


class FolderFormat(NamedTuple):
    """A format with several tables.

    recognises: whether a folder has this format. read: read that folder.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Rows]


class TableFormat(NamedTuple):
    """A format with one table, which may have any name and lie outside the image folder.

    recognises: whether a CSV is the table of this format. read: read the images in a folder by that table:
    read(src, csv, **options). options: which of the keyword arguments votes and workers `read` takes. main_table: the
    start of the file name (see shard.tabular.columns.fold_name) to choose when several tables are recognised.
    """

    recognises: Callable[[Path], bool]
    read: Callable[..., Rows]
    options: tuple[str, ...] = ()
    main_table: str = ""


FORMATS: dict[str, FolderFormat | TableFormat] = {
    "chexpert": FolderFormat(is_chexpert, read_chexpert),
    "nih": FolderFormat(is_nih, read_nih),
    "mimic": FolderFormat(is_mimic, read_mimic),
    "padchest": TableFormat(is_padchest, read_padchest),
    "vindr": TableFormat(is_vindr, read_vindr, ("votes", "workers"), "imagelabelstrain"),
    "rsna": TableFormat(is_rsna, read_rsna, ("workers",), "stage2trainlabels"),
    "brax": TableFormat(is_brax, read_brax),
    "chexpert-plus": TableFormat(is_chexpert_plus, read_chexpert_plus),
    "chexlocalize": TableFormat(is_chexlocalize, read_chexlocalize, main_table="vallabels"),
}
