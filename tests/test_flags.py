"""Flags: every flag of every command has its help, range and default from one place, and docs/flags.md lists them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from bench.flags import PAGE, PROGRAMS, all_commands, flags_page
from probe.settings import Settings, from_plain
from shard.cli import BoundCommand, bind
from shard.cli_help import help_lines, is_example, paragraphs_of
from shard.errors import InputError
from shard.flags import Command, Option, flag_name, options_of
from tests.conftest import ROOT, Shards
from train.__main__ import COMMANDS
from train.config import Config
from train.recipe import train_command

# Their range depends on another value, so another check covers them.
NO_FIXED_RANGE = {"part", "parts", "partners", "gpu_rate"}
ALL = list(all_commands())
FLAGS = [pytest.param(name, command, option, id=f"{name} {option.name}")
         for name, command in ALL for option in options_of(command)]  # fmt: skip
NUMBERS = [case for case in FLAGS if case.values[2].flag.low is not None]


def words_of(option: Option, value: Any) -> list[str]:
    """Return an option and its value as they are typed."""
    return [str(value)] if option.positional else [f"{flag_name(option.name)}={value}"]


def parsed(name: str, command: Command, *more: str) -> BoundCommand:
    """Return a command line with placeholders for everything required, bound."""
    given = {word.split("=")[0] for word in more}
    words = [word for option in options_of(command) if option.required and flag_name(option.name) not in given
             for word in words_of(option, "runs" if option.hint in (str, Path) else 1)]  # fmt: skip
    call = bind(name, command, [*words, *more])
    assert isinstance(call, BoundCommand)
    return call


def help_of(name: str, command: Command, option: Option) -> str:
    """Return what --help says about an option, in one line."""
    shown = option.name.upper() if option.positional else flag_name(option.name)
    page = "\n".join(help_lines(name, command))
    (text,) = re.findall(rf"^  {shown}(?![\w-])[^ \n]*\s+(.*(?:\n {{28}}.*)*)", page, re.M)
    return " ".join(text.split())


def test_every_program_is_listed() -> None:
    files = [file for package in ("shard", "pipeline", "train", "probe", "bench")
             for file in (ROOT / package).glob("**/*.py")]  # fmt: skip
    programs = {program for file in files for program in re.findall(r'^    run\("(.*?)"', file.read_text(), re.M)}
    assert len(programs) > 10
    assert set(PROGRAMS) == programs


@pytest.mark.parametrize(("name", "command", "option"), FLAGS)
def test_every_flag_has_a_line_of_help(name: str, command: Command, option: Option) -> None:
    assert re.fullmatch(r"[A-Za-z].{4,}\.", option.flag.help)
    assert option.flag.group
    assert help_of(name, command, option).startswith(option.flag.help)


@pytest.mark.parametrize(("name", "command"), ALL)
def test_help_is_grouped_and_fits_100_columns(name: str, command: Command) -> None:
    lines = help_lines(name, command)
    assert max(map(len, lines)) <= 100
    flags = [option for option in options_of(command) if not option.positional]
    assert len(flags) < 10 or all(option.flag.group != "options" for option in flags)


@pytest.mark.parametrize(("name", "command", "option"), FLAGS)
def test_the_default_in_help_is_the_default(name: str, command: Command, option: Option) -> None:
    (shown,) = re.findall(r"\((?:default: )?([^()]*)\)$", help_of(name, command, option)) or [""]
    shown = shown.split("; preset")[0]
    if option.required or option.flag.default:
        assert option.positional or shown == (option.flag.default or "required")
    elif (option.hint is bool and option.default is False) or option.default is None or option.default in ("", ()):
        assert shown == ""
    else:
        assert parsed(name, command, f"{flag_name(option.name)}={shown}").given[option.name] == option.default


@pytest.mark.parametrize(("name", "command", "option"), FLAGS)
def test_numbers_have_a_range(name: str, command: Command, option: Option) -> None:
    kind = get_args(option.hint)[0] if get_origin(option.hint) is tuple else option.hint
    assert (kind in (int, float)) == (option.flag.low is not None or option.name in NO_FIXED_RANGE)


@pytest.mark.parametrize(("name", "command", "option"), NUMBERS)
def test_a_number_outside_its_range_is_refused_in_one_line(
    name: str, command: Command, option: Option, shards: Shards
) -> None:
    low, high = option.flag.low, option.flag.high
    assert low is not None and high is not None and low < high
    if name == "python -m train" and option.name == "batch_size":  # the shards are too few for it
        high = None
    for wrong in (low - 1, high and high + 1):
        if wrong is None:
            continue
        more = [f"{flag_name(option.name)}={wrong}"]
        more += [f"--shards={shards.folder}"] if name == "python -m train" else []
        more += ["--out=report"] if name == "python -m probe report" else []
        message = rf"{flag_name(option.name)}={wrong}(\.0)?: must be a number from {low} to {option.flag.high}$"
        with pytest.raises(InputError, match=message):
            parsed(name, command, *more)()


@pytest.mark.parametrize(("name", "command"), ALL)
def test_examples_in_help_are_understood(
    name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard.cli_values.read_settings", lambda path: {"shards": "shards", "out": "out"})
    examples = [line for text in paragraphs_of(command) if is_example(text) for line in text.splitlines()]
    assert examples
    for line in examples:
        module = shlex.split(line)[2]
        bind(f"python -m {module}", PROGRAMS[f"python -m {module}"], shlex.split(line)[3:])


def test_docs_list_the_flags_as_they_are() -> None:
    assert (ROOT / PAGE).read_text() == flags_page(), "docs/flags.md is out of date; run: make docs"


def test_a_saved_configuration_is_read_back_by_its_command(shards: Shards, tmp_path: Path) -> None:
    config = Config(shards=shards.folder, out=tmp_path, preset="patient", flip=0.25, blur=0.0, dali=True, seed=7,
                    lr=1e-3, batch_size=16, sync_batchnorm=False, accept=("lr", "code"), device="cpu",
                    precision="fp32")  # fmt: skip
    call = bind("python -m train", COMMANDS, shlex.split(train_command(config.plain()))[3:])
    assert isinstance(call, BoundCommand)
    assert call.arguments().arguments["config"] == config


def test_saved_settings_of_a_report_are_read_back(tmp_path: Path) -> None:
    settings = Settings(encoders=("A=run",), shards=tmp_path, out=tmp_path / "out", tasks=("Edema", "A, left"), draws=3,
                        shots=("5", "all"), imagenet_weights=tmp_path / "w.pth")  # fmt: skip
    assert from_plain(settings.plain()) == replace(settings, encoders=(f"A={Path('run').absolute()}",))
