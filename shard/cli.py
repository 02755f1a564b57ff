"""run(commands): a strict command line for every `__main__`.

Fire calls a function before it reports an unknown flag, and passes `--dali=false` on as a truthy string. Here fire only
parses. The command runs once all names and values are checked.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import shlex
import signal
import sys
import threading
import typing
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fire

from shard.address import hide_secrets
from shard.cli_help import print_commands, print_help, print_version
from shard.cli_values import parse, parse_file, suggest
from shard.errors import InputError
from shard.flags import REQUIRED, SETTINGS, Command, Commands, Option, flag_name, options_of

HELP = ("-h", "--help")


def run(name: str, commands: Commands, argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv` names, or exit with one line on stderr and a non-zero status.

    name: how the user started the program, such as "python -m shard". Messages begin with it.
    commands: one function, or functions by sub-command. "" is the command that runs if none is named.
    Exit status: 0 done, 1 unusable input, 2 unreadable command line, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or log without é, as in a C locale, gets \xe9
            stream.reconfigure(errors="backslashreplace")
    try:
        call = bind(name, commands, list(arguments))
    except InputError as error:
        sys.exit(_print_error(name, error, 2))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers send SIGTERM: handle it like Ctrl-C
    try:
        call()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: None)  # the work is done: too late to be interrupted
    except InputError as error:
        sys.exit(_print_error(name, error, 1))
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        sys.stdout = None  # or Python prints an error when it exits
        sys.exit(141)
    except OSError as error:  # a full disk, no permission to write, a file instead of a folder
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        sys.exit(_print_error(name, InputError(f"{place}{reason}; fix that and run the same command again"), 1))
    except RuntimeError as error:
        if "home directory" not in str(error):  # Path.expanduser without HOME and without an entry in passwd
            raise
        message = "~: no home directory (HOME is not set); give the full path"
        sys.exit(_print_error(name, InputError(message), 1))
    except KeyboardInterrupt:
        message = f"interrupted; to resume: {shlex.join([*name.split(), *arguments])}"
        sys.exit(_print_error(name, InputError(message), 130))


def bind(name: str, commands: Commands, argv: list[str]) -> Callable[[], None]:
    """Return the call that `argv` asks for, with checked and typed arguments, without running it."""
    command: Command
    if argv[:1] == ["--version"]:
        return print_version
    if isinstance(commands, Mapping) and "" in commands and (not argv or argv[0].startswith("-")):
        command, others = commands[""], [word for word in commands if word]
    elif isinstance(commands, Mapping):
        if not argv or argv[0] in (*HELP, "help"):
            return functools.partial(print_commands, name, commands)
        chosen = argv.pop(0)
        if chosen not in commands:
            raise InputError(f"unknown command {chosen!r}{suggest(chosen, commands)}; "
                             f"one of: {', '.join(filter(None, commands))}")
        name, command, others = f"{name} {chosen}", commands[chosen], []
    else:
        command, others = commands, []
    if not set(HELP).isdisjoint(argv):
        return functools.partial(print_help, name, command, others)
    options = options_of(command)
    _check_flags(name, options, argv)
    if not any(re.match(rf"--{SETTINGS}(=|$)", word) for word in argv):
        return BoundCommand(command, _parse_with_fire(name, options, argv))
    # What the file gives is not required here.
    given = _parse_with_fire(name, [replace(option, default=None) for option in options], argv)
    file = given.pop(SETTINGS)
    given = {**parse_file(file, options), **given}
    required = [option.name for option in options if option.required and not option.positional]
    if missing := [flag_name(name) for name in required if name not in given]:
        raise InputError(f"missing required flags: {', '.join(missing)}; give them or add them to {file}")
    return BoundCommand(command, given)


@dataclass(frozen=True)
class BoundCommand:
    """A command and the values that the command line gave for its options, by name. Calling it runs the command."""

    command: Command
    given: Mapping[str, Any]

    def __call__(self) -> None:
        """Run the command."""
        bound = self.arguments()
        self.command(*bound.args, **bound.kwargs)

    def arguments(self) -> inspect.BoundArguments:
        """Return the command's arguments, dataclasses built. Raises InputError if a dataclass refuses its values."""
        signature, options = inspect.signature(self.command), options_of(self.command)
        values = {**self._preset(options), **self.given}
        arguments = {option.name: values[option.name] for option in options
                     if not option.holder and option.name in values}  # fmt: skip
        hints = typing.get_type_hints(self.command)
        for holder in dict.fromkeys(option.holder for option in options if option.holder):
            fields = {option.name: values[option.name] for option in options
                      if option.holder == holder and option.name in values}  # fmt: skip
            arguments[holder] = getattr(hints[holder], "from_flags", hints[holder])(**fields)
        bound = signature.bind_partial()
        bound.arguments.update((name, arguments[name]) for name in signature.parameters if name in arguments)
        return bound

    def _preset(self, options: Iterable[Option]) -> dict[str, Any]:
        """Return the defaults that the chosen preset overrides; {} if the command has no presets."""
        preset: dict[str, Any] = {}
        for option in options:
            if option.flag.presets:
                preset |= option.flag.presets[self.given.get(option.name, option.default)]
        return preset


def _check_flags(name: str, options: Sequence[Option], argv: list[str]) -> None:
    known = [option.name for option in options if option.kind is not inspect.Parameter.VAR_POSITIONAL]
    if "--" in argv:  # fire would ignore what follows
        raise InputError(f"{' '.join(argv[argv.index('--'):])}: unknown flags; see: {name} --help")
    switches = {option.name for option in options if option.hint is bool}
    seen = set()
    for word in argv:
        if not re.match(r"--?[A-Za-z]", word):
            continue
        flag = word.lstrip("-").split("=")[0].replace("-", "_")
        if flag not in known and flag.startswith("no") and flag[2:] in switches:
            flag = flag[2:]
        if not word.startswith("--") or flag not in known:
            raise InputError(f"unknown flag {word}{suggest(flag, known, '--')}; see: {name} --help")
        if flag in seen:
            raise InputError(f"{flag_name(flag)} is given twice; keep one")
        seen.add(flag)


class _Parsed:
    """The values that fire parsed, in a private attribute: fire looks words up among the public ones."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values


def _parse_with_fire(name: str, options: Sequence[Option], argv: list[str]) -> dict[str, Any]:
    """Return the values that `argv` gives, by option."""
    signature = inspect.Signature([
        inspect.Parameter(option.name, option.kind, default=REQUIRED if option.required or option.positional else None)
        for option in sorted(options, key=lambda option: option.kind)
    ])  # fmt: skip

    def remember(*args: Any, **kwargs: Any) -> _Parsed:
        return _Parsed(signature.bind(*args, **kwargs).arguments)

    readers = {option.name: functools.partial(parse, option) for option in options}
    target: Any = fire.decorators.SetParseFns(**readers)(remember)
    for option in options:
        if option.kind is inspect.Parameter.VAR_POSITIONAL:  # Fire does not name these positional arguments
            target = fire.decorators.SetParseFn(readers[option.name])(target)
    target.__signature__ = signature
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed = fire.Fire(target, command=argv, name=name, serialize=lambda _: None)
    except fire.core.FireExit as stop:
        reason = stop.trace.elements[-1].ErrorAsStr()
        raise InputError(f"{reason[0].lower()}{reason[1:]}; see: {name} --help") from None
    return typing.cast("_Parsed", parsed)._values


def _print_error(name: str, error: InputError, status: int) -> int:
    # A path or a value may contain control characters, which a terminal would interpret.
    text = hide_secrets(str(error))
    line = "".join(f"\\x{ord(letter):02x}" if unicodedata.category(letter) == "Cc" else letter for letter in text)
    print(f"{name}: error: {line}", file=sys.stderr)
    return status
