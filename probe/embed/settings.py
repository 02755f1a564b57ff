"""The settings of python -m probe embed: its flags, checked once, and the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from probe.settings import Settings
from shard.address import Place, absolute_place
from shard.errors import InputError
from shard.flags import Flag, check_ranges, flag_in, flag_name
from shard.source_flags import (
    AllowOutside,
    DatasetFlag,
    FindingsFlag,
    MaxRejects,
    PatientFrom,
    TableFlag,
    VotesFlag,
)
from train.config import Device

Dtype = Literal["float32", "float16"]
SUFFIX = ".parquet"
# Fields that apply only if the images are not shards yet.
SOURCE_FLAGS = ("dataset", "table", "findings", "votes", "patient_from", "allow_outside", "max_rejects", "shards_out")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What is embedded, and where it is written. The fields are the flags of `python -m probe embed`."""

    out: Annotated[Path, Flag("Parquet file to write.", "data", metavar="FILE")]
    splits: Annotated[tuple[str, ...], Flag("Splits to embed.", "data", metavar="A,B,…", default="all")] = ()
    dtype: Annotated[Dtype, Flag("Type of the features in the file; they are computed in float32.", "data")] = "float32"
    size: Annotated[int, flag_in(Settings, "size")] = 0
    input: Annotated[str, flag_in(Settings, "input")] = ""
    batch_size: Annotated[int, flag_in(Settings, "batch_size")] = 128
    device: Annotated[Device, flag_in(Settings, "device")] = "auto"
    workers: Annotated[int, flag_in(Settings, "workers", help="Loader threads, and processes that write shards; 0 "
                                                              "starts one per core.")] = 0  # fmt: skip
    dataset: DatasetFlag = "auto"
    table: TableFlag = None
    findings: FindingsFlag = None
    votes: VotesFlag = None
    patient_from: PatientFrom = None
    allow_outside: AllowOutside = False
    max_rejects: MaxRejects = 0.01
    shards_out: Annotated[Path | None, Flag("Folder to keep the images of SRC in, as shards.", "source", metavar="DIR",
                                            default="OUT with the suffix .shards")] = None  # fmt: skip

    def __post_init__(self) -> None:
        check_ranges(EmbedSettings, vars(self))
        if self.out.suffix != SUFFIX:
            raise InputError(f"--out={self.out}: must end in {SUFFIX}, the format that is written; give "
                             f"--out={self.out.with_suffix(SUFFIX)}")  # fmt: skip
        if self.out.is_dir():
            raise InputError(f"--out={self.out}: is a folder; give a file in it, such as "
                             f"--out={self.out / ('features' + SUFFIX)}")  # fmt: skip

    @property
    def parts(self) -> Path:
        """The folder next to the output in which finished features are kept until all are computed."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def shards(self) -> Path:
        """The folder in which the images of a source are kept as shards."""
        return self.shards_out or self.out.with_suffix(".shards")

    def check_source_flags(self, src: Place) -> None:
        """Raise InputError if a flag is given that describes a source, as `src` has shards."""
        for name, text in self._given().items():
            if name in SOURCE_FLAGS:
                raise InputError(f"{flag_name(name)}={text}: only applies to a folder of images, but {src} has shards, "
                                 "which are read as they are; omit it")  # fmt: skip

    def command(self, encoder: str, src: Place) -> str:
        """The command that writes this file, with absolute paths and each setting that is not the default."""
        shown = [f"{flag_name(name)}={text}" for name, text in self._given().items()]
        return shlex.join(["python", "-m", "probe", "embed", encoder, absolute_place(src), *shown])

    def _given(self) -> dict[str, str]:
        given = {field.name: getattr(self, field.name) for field in fields(self)
                 if getattr(self, field.name) != field.default}  # fmt: skip
        return {name: ",".join(value) if isinstance(value, tuple) else str(value.absolute()) if isinstance(value, Path)
                else str(value) for name, value in given.items()}  # fmt: skip
