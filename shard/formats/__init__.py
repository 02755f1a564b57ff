"""Data-set formats: one module each, registered in registry.FORMATS, which also says how to add one."""

from shard.formats.archives import read_archive
from shard.formats.chexpert import TASKS, read_chexpert
from shard.formats.folder import read_folder
from shard.formats.mimic import read_mimic
from shard.formats.nih import NIH_OPACITIES, read_nih
from shard.formats.plain import read_plain
from shard.formats.recognise import recognise, recognise_table
from shard.formats.registry import FORMATS, FolderFormat, TableFormat
from shard.formats.rows import SPLITS, Rows, hashed_splits
from shard.formats.votes import Votes, has_readers, vote_rows
from shard.tabular.finding_names import CHEXPERT_FINDINGS, NIH_FINDINGS

__all__ = [
    "CHEXPERT_FINDINGS", "FORMATS", "NIH_FINDINGS", "NIH_OPACITIES", "SPLITS", "TASKS", "FolderFormat", "Rows",
    "TableFormat", "Votes", "has_readers", "hashed_splits", "read_archive", "read_chexpert", "read_folder",
    "read_mimic", "read_nih", "read_plain", "recognise", "recognise_table", "vote_rows",
]  # fmt: skip
