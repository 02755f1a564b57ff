"""The settings of a report: checked once, saved with its parts, and printed as the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from probe.fewshot import Blank, Shots, Uncertain
from probe.names import absolute_spec, check_exists, join_tasks, split_spec, split_tasks
from shard.address import Address, Place, absolute_place, parse_place
from shard.cache import CACHE_GB, CacheFlags, open_shards
from shard.errors import InputError
from shard.flags import SHARDS, Flag, check_ranges, flag_name
from shard.manifest import parse_manifest
from train.config import Device

Protocol = Literal["ours", "paper"]
HEADLINE = 10  # shots, if they are among the requested ones
# Settings that change where and how fast results are computed, not the results, except in the last bits.
KEEP_RESULTS = {"shards", "out", "cache", "batch_size", "cache_gb", "workers"}
# Files, whose content decides and not their path.
FILES = {"encoders", "draws_file", "imagenet_weights"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report compares, and how. The fields are the flags of `python -m probe report`."""

    encoders: Annotated[tuple[str, ...], Flag("Runs (newest checkpoint), checkpoints, files of weights, folders of "
                                              "timm or transformers. NAME=PATH names one, timm/ARCH=PATH gives its "
                                              "architecture, PATH::KEY selects one of several networks in a file; "
                                              "timm/ARCH and hf-hub:ORG/NAME are downloaded.", positional=True)]
    shards: Annotated[Place, SHARDS]
    out: Annotated[Path, Flag("Folder for the report.", "data", metavar="DIR",
                              default="RUN/report if there is one run")]
    baselines: Annotated[tuple[str, ...], Flag("Baselines to compare with: random weights, the image's own pixels, "
                                               "ImageNet's weights.", "comparison", metavar="NAME,…")] = (
        "scratch", "thumbnail", "imagenet")  # fmt: skip
    shots: Annotated[tuple[str, ...], Flag("Examples of each class to learn from; all takes the labelled training "
                                           "images, up to --all-limit.", "few-shot",
                                           metavar="K,…,all")] = ("1", "5", "10", "50")
    fractions: Annotated[tuple[float, ...], Flag("Also learn from these shares of the labelled training images, chosen "
                                                 "by patient.", "few-shot", 0, 1, metavar="SHARE,…",
                                                 default="none")] = ()
    all_limit: Annotated[int, Flag("Most training images per task for --shots=all and --fractions.", "few-shot",
                                   2, 10**9)] = 20_000
    target_auroc: Annotated[tuple[float, ...], Flag("AUROCs of which the report says how many labels they take.",
                                                    "few-shot", 0.5, 1, metavar="A,…")] = (0.7, 0.8, 0.9)
    draws: Annotated[int, Flag("Support sets per task.", "few-shot", 1, 10**5)] = 50
    tasks: Annotated[tuple[str, ...], Flag("Findings to predict. Put a name that contains a comma in double quotes.",
                                           "data", metavar="A,B,…", default="those of the published table",
                                           text=True)] = ()
    uncertain: Annotated[Uncertain, Flag("What uncertain labels (-1) count as; exclude omits them.",
                                         "data")] = "exclude"
    blank: Annotated[Blank, Flag("What blank labels count as; exclude omits them.", "data")] = "exclude"
    draws_file: Annotated[Path | None, Flag("draws.csv of another report, to use the same support sets.", "few-shot",
                                            metavar="FILE")] = None
    maps: Annotated[int, Flag("Test images per task to show with an occlusion map, in turn with and without the "
                              "finding; 0 shows none.", "comparison", 0, 100)] = 2
    protocol: Annotated[Protocol, Flag("Protocol to put first in the report; it shows both.", "comparison")] = "ours"
    finetune: Annotated[int, Flag("Also fine-tune all weights, on the first N support sets.", "few-shot",
                                  0, 10**5)] = 0
    imagenet_weights: Annotated[Path | None, Flag("ImageNet weights to compare with.", "comparison", metavar="FILE",
                                                  default="downloaded from torchvision")] = None
    size: Annotated[int, Flag("Side of the images in pixels; 0 is the size each encoder was trained at.", "images",
                              0, 4096)] = 0
    input: Annotated[str, Flag("How images are normalised for weights that do not state it: NAME:imagenet, "
                               "NAME:torchxrayvision, or NAME:mean=M,std=S with size=N, range=LOW/HIGH and "
                               "interpolation=bilinear|bicubic as needed.", "images", metavar="SPEC,…")] = ""
    cache: Annotated[Path | None, Flag("Folder to keep features in, and the shards of an address.", "running",
                                       metavar="DIR", default="OUT/features; for shards as in python -m train")] = None
    cache_gb: Annotated[float | None, replace(CACHE_GB, group="running")] = None
    seed: Annotated[int, Flag("Seed of support sets, bootstrap and random weights.", "few-shot", 0, 2**31)] = 0
    batch_size: Annotated[int, Flag("Images per batch.", "running", 1, 10**6)] = 128
    device: Annotated[Device, Flag("Device to compute features on; auto takes a GPU if there is one.",
                                   "running")] = "auto"
    workers: Annotated[int, Flag("Loader threads; 0 starts one per core.", "running", 0, 4096)] = 0

    @classmethod
    def from_flags(
        cls, *, shards: Place, encoders: tuple[str, ...] = (), out: Path | None = None, tasks: str = "", **given: Any
    ) -> Settings:
        """Build from the flags that were given. Raises InputError if `out` is missing and can't be derived."""
        if not encoders:
            raise InputError("no encoder; give a run, a checkpoint or a weight file")
        if out is None:
            _, first = split_spec(encoders[0])
            check_exists(first, encoders[0])
            if len(encoders) > 1 or first.arch or first.path is None or not first.path.is_dir():
                raise InputError("--out=DIR: needed unless the report is about a single run")
            out = first.path / "report"
        if tasks:
            folder = open_shards(shards, CacheFlags(cache=given.get("cache"), cache_gb=given.get("cache_gb")))
        listed = split_tasks(tasks, parse_manifest(folder).findings) if tasks else ()
        return cls(encoders=encoders, shards=shards, out=out, tasks=listed, **given)

    def __post_init__(self) -> None:
        check_ranges(Settings, vars(self))
        from probe.baselines import BASELINES  # imported here: it imports PyTorch, which takes a second

        for word in self.baselines:
            if word not in BASELINES:
                raise InputError(f"--baselines={word}: not one of {', '.join(BASELINES)}")
        if not self.all_shots:
            raise InputError("--shots: needs numbers of examples per class, or all, such as --shots=1,5,10,all")
        for share in self.fractions:
            if not 0 < share < 1:
                raise InputError(f"--fractions={share:g}: needs shares between 0 and 1, such as 0.01,0.1; --shots=all "
                                 "learns from all labels")  # fmt: skip
        if self.headline == "all" and (self.finetune or self.protocol == "paper"):
            raise InputError("--shots=all: --finetune and --protocol=paper need a number of shots; add one, such as 10")

    @property
    def folder(self) -> Path:
        """The folder to read shards from: that of --shards or, for an address, its copy in the cache."""
        return open_shards(self.shards, CacheFlags(cache=self.cache, cache_gb=self.cache_gb))

    @property
    def all_shots(self) -> tuple[Shots, ...]:
        """The numbers of shots, ascending, with "all" last."""
        numbers = sorted({_number(word) for word in self.shots if word != "all"})
        return (*numbers, *(("all",) if "all" in self.shots else ()))

    @property
    def headline(self) -> Shots:
        """The number of shots of the headline and of most tables: 10 if requested, otherwise the largest number."""
        numbers = [shots for shots in self.all_shots if shots != "all"]
        return HEADLINE if HEADLINE in numbers else numbers[-1] if numbers else "all"

    @property
    def most_shots(self) -> int:
        """The number of examples per class in a draw."""
        return max((shots for shots in self.all_shots if shots != "all"), default=1)

    @property
    def label_policy(self) -> str:
        """How uncertain and blank labels are treated, as a sentence."""
        policies = ["excluded" if policy == "exclude" else f"counted as {policy}"
                    for policy in (self.uncertain, self.blank)]  # fmt: skip
        return f"Uncertain (-1) labels are {policies[0]}, blank labels {policies[1]}."

    def plain(self) -> dict[str, Any]:
        """All settings as JSON values, with absolute paths, as they may be read from another folder."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {**plain, "encoders": [absolute_spec(spec) for spec in self.encoders]}

    def decisive(self) -> dict[str, Any]:
        """The settings that change results, except files."""
        return {name: value for name, value in self.plain().items() if name not in KEEP_RESULTS | FILES}

    def chosen(self) -> dict[str, Any]:
        """The settings that are not the defaults, as JSON values."""
        defaults = {field.name: _plain(field.default) for field in fields(self)}
        return {name: value for name, value in self.plain().items() if value != defaults[name]}

    def command(self) -> str:
        """The command that makes this report, with each setting that is not the default."""
        given = self.chosen()
        encoders = given.pop("encoders")
        if self.tasks:
            given["tasks"] = join_tasks(self.tasks)
        texts = {name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
                 for name, value in given.items()}  # fmt: skip
        shown = [f"{flag_name(name)}={shlex.quote(text)}" for name, text in texts.items()]
        return " ".join(["python -m probe report", *map(shlex.quote, encoders), *shown])


def from_plain(plain: dict[str, Any]) -> Settings:
    """Build the settings from the output of Settings.plain."""
    paths = ("out", "draws_file", "imagenet_weights", "cache")
    read = {**plain, "shards": parse_place(plain["shards"])}
    for name, value in plain.items():
        if isinstance(value, list):
            read[name] = tuple(value)
        elif name in paths and value is not None:
            read[name] = Path(value)
    return Settings(**read)


def _plain(value: Any) -> Any:
    if isinstance(value, (Path, Address)):
        return absolute_place(value)
    return list(value) if isinstance(value, tuple) else value


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word) <= 10**6):
        raise InputError(f"--shots={word}: needs whole numbers from 1 to 1000000, or all, such as --shots=1,5,10,all")
    return int(word)
