"""The flags that describe a source folder and its table, for all commands that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shard.flags import Flag
from shard.formats import Votes
from shard.table import Dataset

GROUP = "source"

Source = Annotated[Path, Flag("Folder of the radiographs.")]
DatasetFlag = Annotated[Dataset, Flag("Archive in SRC. auto recognises it by the columns of its tables, csv reads your "
                                      "own --table, folder reads every image file.", GROUP)]  # fmt: skip
TableFlag = Annotated[Path | None, Flag("CSV to read instead of the archive's own table.", GROUP, metavar="FILE")]
FindingsFlag = Annotated[str | None, Flag("Columns of --table that are findings.", GROUP, metavar="A,B,…",
                                          default="columns of 1, 0, -1 and blanks")]  # fmt: skip
VotesFlag = Annotated[Votes | None, Flag("How the labels of several readers of an image become one.", GROUP,
                                         default="majority, if the table has several readers")]  # fmt: skip
PatientFrom = Annotated[str | None, Flag("Where --dataset=folder finds the patient if no DICOM tag names one: in the "
                                         "name of the parent folder, or in the one group of a regular expression on "
                                         "the path.", GROUP, metavar="parent|REGEX")]  # fmt: skip
MaxRejects = Annotated[float, Flag("Largest fraction of rows without a usable image.", "images", 0, 1)]
AllowOutside = Annotated[bool, Flag("Accept table paths that lead out of SRC.", GROUP)]
