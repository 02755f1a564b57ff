"""Print help and versions, and write Markdown tables of flags. Texts are in docstrings and Flag(...)s."""

from __future__ import annotations

import inspect
import platform
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shard.address import Place
from shard.flags import REQUIRED, Command, Flag, Option, flag_name, options_of
from shard.machine import commit, version_of
from shard.version import VERSION

WIDTH, COLUMN = 100, 28  # characters of a line, and before the help of a flag
ARGUMENTS = "arguments"
BAR = "\\|"  # a vertical bar inside a cell of a Markdown table
UNUSUAL = 10**5  # an upper limit of a range that only excludes typing errors
PLACEHOLDERS = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH", Place: "PLACE"}


def print_commands(name: str, commands: Mapping[str, Command]) -> None:
    """Print the sub-commands, each with the summary of its docstring."""
    print(f"usage: {name} COMMAND [FLAGS]\n")
    words = list(commands)
    for word, command in commands.items():
        twin = next(other for other in words if commands[other] is command)
        print(_hang(f"  {word}", summary_of(command) if twin == word else f"The same as {twin}.", 12))
    print(f"\nsee: {name} COMMAND --help")


def print_help(name: str, command: Command, others: Sequence[str] = ()) -> None:
    """Print usage, docstring and all flags by group. Fire's own page opens a pager and does not list the choices.

    others: other sub-commands to mention.
    """
    print("\n".join(help_lines(name, command, others)))


def print_version() -> None:
    """Print the version of this code and of what it runs on, as a report of a bug needs them."""
    packages = {"PyTorch": "torch", "DALI": "nvidia-dali-cuda120", "numpy": "numpy"}
    facts = [f"commit {commit()}", f"Python {platform.python_version()}",
             *(f"{name} {version_of(package)}" for name, package in packages.items())]  # fmt: skip
    print(f"cxr-simclr {VERSION} ({', '.join(facts)})")


def help_lines(name: str, command: Command, others: Sequence[str] = ()) -> list[str]:
    """Return the lines of the help page."""
    options = options_of(command)
    words = [word for option in options if option.required or option.positional for word in [_usage(option)]]
    flags = [] if all(option.required or option.positional for option in options) else ["[FLAGS]"]
    lines = [" ".join(["usage:", name, *words, *flags])]
    lines += [f"       {name} {other} --help" for other in others]
    for paragraph in paragraphs_of(command):
        lines += ["", *(textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False) if not is_example(paragraph) else
                        ["  " + line.strip() for line in paragraph.splitlines()])]  # fmt: skip
    for group, members in by_group(options).items():
        lines += ["", f"{group}:"]
        lines += [_hang("  " + _usage(option), f"{option.flag.help} {_note(option)}".rstrip()) for option in members]
    return "\n".join(lines).split("\n")


def table_of(name: str, command: Command) -> str:
    """Return a section of Markdown: the command's summary and a table of its flags."""
    rows, groups = [], by_group(options_of(command))
    for group, options in groups.items():
        if set(groups) - {ARGUMENTS, Flag.group}:
            rows.append(f"| **{group}** | | | |")
        for option in options:
            shown = option.name.upper() if option.positional else flag_name(option.name)
            cells = (f"`{shown}`", _values(option), _default_in_words(option), option.flag.help)
            rows.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    head = "| Flag | Value | Default | Meaning |\n|---|---|---|---|"
    return "\n".join([f"## {name}", "", summary_of(command), *(["", head, *rows] if rows else [])]) + "\n"


def summary_of(command: Command) -> str:
    """Return the first paragraph of a command's docstring, in one line."""
    return " ".join(paragraphs_of(command)[0].split())


def paragraphs_of(command: Command) -> list[str]:
    """Return the paragraphs of a docstring that are for users: all except the exceptions."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return [text for text in paragraphs if not text.startswith("Raises ")]


def is_example(paragraph: str) -> bool:
    """Return whether a paragraph of a docstring is a list of commands."""
    return all(line.strip().startswith("python -m ") for line in paragraph.splitlines())


def by_group(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Return the options by heading: arguments first, then groups in the order of their first flag."""
    groups: dict[str, list[Option]] = {ARGUMENTS: []}
    for option in options:
        groups.setdefault(ARGUMENTS if option.positional else option.flag.group, []).append(option)
    return {group: members for group, members in groups.items() if members}


def _usage(option: Option) -> str:
    """Return the option as users type it: SRC, ENCODERS…, --dali or --size=N."""
    if option.positional:
        return option.name.upper() + "…" * (option.kind is inspect.Parameter.VAR_POSITIONAL)
    if option.hint is bool and option.default is False:
        return flag_name(option.name)
    return f"{flag_name(option.name)}={option.flag.metavar or _placeholder(option.hint)}"


def _placeholder(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(typing.get_args(hint))
    return "A,B,…" if typing.get_origin(hint) is tuple else PLACEHOLDERS[hint]


def _values(option: Option) -> str:
    """Return the values that an option takes, for a table."""
    if typing.get_origin(option.hint) is typing.Literal:
        return ", ".join(typing.get_args(option.hint))
    kind, low, high = option.hint, option.flag.low, option.flag.high
    if low is not None and high is not None:
        return f"{low} to {high}" if high < UNUSUAL else f"from {low}"
    if typing.get_origin(kind) is tuple or "…" in option.flag.metavar:
        return "list"
    return {int: "whole number", float: "number", bool: "true, false", str: "text", Path: "path",
            Place: "path or address"}[kind]


def _note(option: Option) -> str:
    """Return the suffix of a flag's help: "required", or the default."""
    if option.positional:
        return ""
    default = _default_in_words(option)
    if not default or (option.hint is bool and option.default is False):
        return ""
    return f"({default})" if option.required else f"(default: {default})"


def _default_in_words(option: Option) -> str:
    if option.required:
        return "required"
    presets = [f"preset {preset}: {_show(value)}" for preset, value in option.by_preset.items()]
    return "; ".join(filter(None, [option.flag.default or _show(option.default), *presets]))


def _show(value: Any) -> str:
    if value is REQUIRED or value is None or value in ((), ""):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _hang(head: str, text: str, column: int = COLUMN) -> str:
    """Return `head` and, from the column on, the wrapped text; the text begins on a new line if head is too long."""
    blank = " " * column
    wrapped = textwrap.fill(text, WIDTH, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False,
                            break_long_words=False)  # fmt: skip
    return head.ljust(column) + wrapped[column:] if len(head) < column - 1 else f"{head}\n{wrapped}"
