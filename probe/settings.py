"""The settings of a report: checked once, saved with its parts, and printed as the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from probe.fewshot import Blank, Shots, Uncertain
from probe.names import absolute_spec, join_tasks
from shard.cli import check_numbers, flag_of
from shard.errors import InputError
from train.config import Device

Protocol = Literal["ours", "paper"]
BASELINES = ("scratch", "thumbnail", "imagenet")
HEADLINE = 10  # shots, if they are among the requested ones
# Name → lowest, highest value.
LIMITS = {"draws": (1, 10**5), "finetune": (0, 10**5), "size": (0, 4096), "seed": (0, 2**31), "batch_size": (1, 10**6),
          "workers": (0, 4096)}  # fmt: skip
# Settings that change where and how fast results are computed, not the results.
KEEP_RESULTS = {"shards", "out", "cache", "batch_size", "workers"}
# Files, whose content decides and not their path.
FILES = {"encoders", "draws_file", "imagenet_weights"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report compares, and how; the flags of `python -m probe report` say the same.

    encoders: runs and files of weights, each maybe with a name before it, NAME=PATH. size: the images' side, 0 for what
    each encoder was trained at; input: how images are made for weights that don't say it (see inputs.read_flag).
    """

    encoders: tuple[str, ...]
    shards: Path
    out: Path
    baselines: tuple[str, ...] = BASELINES
    shots: tuple[str, ...] = ("1", "5", "10", "50", "all")
    draws: int = 50
    tasks: tuple[str, ...] = ()
    uncertain: Uncertain = "exclude"
    blank: Blank = "exclude"
    draws_file: Path | None = None
    protocol: Protocol = "ours"
    finetune: int = 0
    imagenet_weights: Path | None = None
    size: int = 0
    input: str = ""
    cache: Path | None = None
    seed: int = 0
    batch_size: int = 128
    device: Device = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        check_numbers(**{name: (getattr(self, name), *limits) for name, limits in LIMITS.items()})
        from probe.baselines import BASELINES as KNOWN  # imports PyTorch, which --help need not wait for

        for word in self.baselines:
            if word not in KNOWN:
                raise InputError(f"--baselines={word}: not one of {', '.join(KNOWN)}")
        if not self.all_shots:
            raise InputError("--shots: needs numbers of examples per class, or all, such as --shots=1,5,10,all")
        if self.headline == "all" and (self.finetune or self.protocol == "paper"):
            raise InputError("--shots=all: --finetune and --protocol=paper need a number of shots; add one, such as 10")

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

    def command(self) -> str:
        """The command that makes this report, with each setting that is not the default."""
        defaults = {field.name: _plain(field.default) for field in fields(self)}
        given = {name: value for name, value in self.plain().items()
                 if name != "encoders" and value != defaults[name]}  # fmt: skip
        if self.tasks:
            given["tasks"] = join_tasks(self.tasks)
        shown = [f"{flag_of(name)}={shlex.quote(','.join(value) if isinstance(value, list) else str(value))}"
                 for name, value in given.items()]  # fmt: skip
        return " ".join(["python -m probe report", *map(shlex.quote, self.plain()["encoders"]), *shown])


def from_plain(plain: dict[str, Any]) -> Settings:
    """Build the settings from the output of Settings.plain."""
    paths = ("shards", "out", "draws_file", "imagenet_weights", "cache")
    read = dict(plain)
    for name, value in plain.items():
        if isinstance(value, list):
            read[name] = tuple(value)
        elif name in paths and value is not None:
            read[name] = Path(value)
    return Settings(**read)


def _plain(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word) <= 10**6):
        raise InputError(f"--shots={word}: needs whole numbers from 1 to 1000000, or all, such as --shots=1,5,10,all")
    return int(word)
