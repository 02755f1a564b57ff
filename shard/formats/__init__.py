"""Data-set formats: one module each, all with a function that reads a folder or a table into Rows."""

from shard.formats.archives import ARCHIVES, archive_of, read_archive
from shard.formats.chexpert import CHEXPERT_FINDINGS, TASKS, read_chexpert
from shard.formats.folder import read_folder
from shard.formats.mimic import read_mimic
from shard.formats.nih import NIH_FINDINGS, NIH_OPACITIES, read_nih
from shard.formats.plain import read_plain
from shard.formats.recognise import FOLDERS, recognise
from shard.formats.rows import SPLITS, Format, Rows, hashed_splits
from shard.tabular.votes import Votes, has_readers, vote_rows

__all__ = [
    "ARCHIVES", "CHEXPERT_FINDINGS", "FOLDERS", "NIH_FINDINGS", "NIH_OPACITIES", "SPLITS", "TASKS", "Format", "Rows",
    "Votes", "archive_of", "has_readers", "hashed_splits", "read_archive", "read_chexpert", "read_folder", "read_mimic",
    "read_nih", "read_plain", "recognise", "vote_rows",
]  # fmt: skip
