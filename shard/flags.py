"""Flags: the help, group and range of every setting, written once next to its name, type and default.

A command is a function. Its parameters are its flags: `size: Annotated[int, Flag("Image size in pixels.")] = 256`. A
parameter whose type is a dataclass stands for all fields of that dataclass. The command line, --help, docs/flags.md
and the range checks all read these.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Union

from shard.address import Place
from shard.errors import InputError

Command = Callable[..., None]
Commands = Command | Mapping[str, Command]  # by sub-command
Parameters = ParamSpec("Parameters")
REQUIRED = inspect.Parameter.empty
SETTINGS = "settings"  # the flag of commands with @takes_settings


@dataclass(frozen=True)
class Flag:
    """What the command line needs to know about a setting, besides its name, type and default.

    help: one plain sentence. group: the heading under which --help lists the flag.
    low, high: the smallest and largest number allowed, for a number or for each number of a tuple.
    metavar: placeholder for the value in --help, by default one for its type.
    default: what --help shows as the default if code computes it. It makes a required field optional as a flag.
    presets: for each choice of this flag, the defaults of other flags: {"patient": {"temperature": 0.2}}.
    positional: a tuple field that takes the positional arguments of the command line.
    text: pass the value on as text, whatever the type of the field. The class then needs a `from_flags` to read it.
    """

    help: str
    group: str = "options"
    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    metavar: str = ""
    default: str = ""
    presets: Mapping[str, Mapping[str, Any]] | None = None
    positional: bool = False
    text: bool = False


# Flags of several commands.
SHARDS = Flag("Folder of shards, written by python -m shard build, or its address: s3://, gs:// or https://.", "data",
              metavar="DIR")  # fmt: skip
WORKERS = Flag("Worker processes; 0 starts one per core.", low=0, high=4096)
PART = Flag("Part of the work to do, counted from 0.", "running", metavar="K", default="set by a Slurm job array")
PARTS = Flag("Number of parts; join them with the merge command.", "running", metavar="N",
             default="set by a Slurm job array")  # fmt: skip
ROUNDS = Flag("Rounds of measurements; figures are medians over them.", low=1, high=10**4)
JSON = Flag("JSON file to write the figures to.", metavar="FILE")


@dataclass(frozen=True)
class Option:
    """One flag or positional argument of a command.

    hint: its type, without Annotated and None. default: REQUIRED if there is none.
    by_preset: preset name → the default under that preset.
    holder: the parameter of the command whose dataclass has this field, or "" for a parameter of the command itself.
    """

    name: str
    hint: Any
    default: Any
    kind: Any
    flag: Flag
    by_preset: Mapping[str, Any] = field(default_factory=dict)
    holder: str = ""

    @property
    def required(self) -> bool:
        """Whether the command line must give it."""
        return self.default is REQUIRED and not self.flag.default

    @property
    def positional(self) -> bool:
        """Whether the option is positional, without a flag name."""
        return self.kind is inspect.Parameter.VAR_POSITIONAL or (
            self.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and self.required
        )


def takes_settings(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorate a command to read flags from a file, too: --settings=FILE."""
    command.__dict__["takes_settings"] = True
    return command


@functools.cache
def options_of(owner: Callable[..., Any]) -> tuple[Option, ...]:
    """Return the flags and arguments of a command, or the fields of a dataclass, in order."""
    hints = typing.get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        return tuple(_field_options(owner, hints))
    options: list[Option] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            options += [replace(option, holder=name) for option in options_of(hints[name])]
        else:
            hint, flag = _split_hint(hints[name])
            options.append(Option(name, hint, parameter.default, parameter.kind, flag))
    if getattr(owner, "takes_settings", False):
        flag = Flag("TOML file with any of these flags, which flags on the command line override; a run leaves one, "
                    "run.toml, and a report report.toml.", "data", metavar="FILE")  # fmt: skip
        options.append(Option(SETTINGS, Path, None, inspect.Parameter.KEYWORD_ONLY, flag))
    return tuple(options)


def flag_in(owner: Callable[..., Any], name: str, **changes: Any) -> Flag:
    """Return the Flag of one setting of a command or dataclass, with changes, to use it for another command too."""
    (flag,) = (option.flag for option in options_of(owner) if option.name == name)
    return replace(flag, **changes)


def flag_name(name: str) -> str:
    """Return the flag that sets `name`: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def check_numbers(**settings: tuple[float, float, float]) -> None:
    """Raise InputError for the first setting outside its range, given as name=(value, lowest, highest)."""
    for name, (value, low, high) in settings.items():
        if not low <= value <= high:  # also rejects NaN
            raise InputError(f"{flag_name(name)}={value}: must be a number from {low} to {high}")


def check_ranges(owner: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise InputError for the first value outside the range of its Flag in `owner`, a command or a dataclass."""
    for option in options_of(owner):
        value, low, high = values.get(option.name), option.flag.low, option.flag.high
        if value is not None and low is not None and high is not None:
            for number in value if isinstance(value, tuple) else (value,):
                check_numbers(**{option.name: (number, low, high)})


def validate_call(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorate a command to check the ranges of its flags before it runs, also when Python code calls it."""
    signature = inspect.signature(command)

    @functools.wraps(command)
    def validated(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        check_ranges(command, signature.bind(*args, **kwargs).arguments)
        command(*args, **kwargs)

    return validated


def _field_options(owner: Any, hints: Mapping[str, Any]) -> Iterator[Option]:
    split = {each.name: _split_hint(hints[each.name]) for each in dataclasses.fields(owner)}
    presets = [flag.presets for _, flag in split.values() if flag.presets]
    for each in dataclasses.fields(owner):
        hint, flag = split[each.name]
        kind = inspect.Parameter.VAR_POSITIONAL if flag.positional else inspect.Parameter.KEYWORD_ONLY
        if flag.positional:
            (hint, *_) = typing.get_args(hint)
        default = REQUIRED if each.default is dataclasses.MISSING else each.default
        by_preset = {choice: defaults[each.name] for preset in presets for choice, defaults in preset.items()
                     if each.name in defaults}  # fmt: skip
        yield Option(each.name, str if flag.text else hint, default, kind, flag, by_preset)


def _split_hint(hint: Any) -> tuple[Any, Flag]:
    """Split Annotated[int | None, Flag(…)] into int and the Flag. The last Flag counts if there are several."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        # Python 3.10 itself wraps Annotated in Optional if the default is None.
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if set(kinds) == set(typing.get_args(Place)):
            return Place, Flag("")
        (hint,) = kinds
        return _split_hint(hint)
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        flags = [extra for extra in extras if isinstance(extra, Flag)]
        inner, flag = _split_hint(hint)
        return inner, flags[-1] if flags else flag
    return hint, Flag("")
