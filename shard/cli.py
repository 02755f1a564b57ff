"""run(commands): strict fire for every `__main__`: bind, check names and types, and only then run.

Fire calls a function before it reports an unknown flag, and passes `--dali=false` on as a truthy string.
Here fire only parses: it is handed functions that do nothing but remember their arguments.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import re
import shlex
import signal
import sys
import threading
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire

from shard.errors import InputError

Command = Callable[..., None]


def run(name: str, commands: Command | Mapping[str, Command], argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv` asks for, or end with one line on stderr and a non-zero status.

    name: how the user started us, such as "python -m shard"; used in messages.
    commands: one function, or sub-commands by name, "" for what runs where none is named. Their type hints say what a
    flag may hold.
    Exit status: 0 done, 1 the input can't be used, 2 the command line can't be read, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or log that knows no é, as in a C locale, gets \xe9
            stream.reconfigure(errors="backslashreplace")
    try:
        call = bind(name, commands, arguments)
    except InputError as error:
        sys.exit(_complain(name, error, 2))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a scheduler ends a job: like Ctrl-C
    try:
        call()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: None)  # all is done: nothing is left to be ended
    except InputError as error:
        sys.exit(_complain(name, error, 1))
    except BrokenPipeError:  # who reads what we print has had enough, as head(1) does
        sys.stdout = None  # or Python complains at its exit
        sys.exit(141)
    except OSError as error:  # a full disk, a folder one may not write to, a file where a folder is wanted
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        sys.exit(_complain(name, InputError(f"{place}{reason}; mend that and run the same command again"), 1))
    except RuntimeError as error:
        if "home directory" not in str(error):  # Path.expanduser's, without HOME and without an entry in passwd
            raise
        sys.exit(_complain(name, InputError("~: there is no home here (HOME is not set); give the whole path"), 1))
    except KeyboardInterrupt:
        again = shlex.join([*name.split(), *(sys.argv[1:] if argv is None else argv)])
        sys.exit(_complain(name, InputError(f"interrupted; to go on: {again}"), 130))


def flag_of(name: str) -> str:
    """A setting as its flag: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def check_numbers(**settings: tuple[float, float, float]) -> None:
    """Raise InputError for the first setting that is out of its bounds: name=(value, lowest, highest)."""
    for name, (value, low, high) in settings.items():
        if not low <= value <= high:  # NaN is not either
            raise InputError(f"{flag_of(name)}={value}: wants a number from {low} to {high}")


def bind(name: str, commands: Command | Mapping[str, Command], argv: list[str]) -> Callable[[], None]:
    """Return the call that `argv` asks for, its arguments checked and typed, without making it."""
    if isinstance(commands, Mapping) and "" in commands and (not argv or argv[0].startswith("-")):
        others = [word for word in commands if word]
        if {"-h", "--help"} & set(argv):
            return functools.partial(_print_help, name, commands[""], others)
        command = commands[""]
    elif isinstance(commands, Mapping):
        if not argv or argv[0] in ("-h", "--help", "help"):
            return functools.partial(_print_commands, name, commands)
        chosen = argv.pop(0)
        if chosen not in commands:
            raise InputError(f"unknown command {chosen!r}{_closest(chosen, commands)}; "
                             f"one of: {', '.join(filter(None, commands))}")
        name, command = f"{name} {chosen}", commands[chosen]
    else:
        command = commands
    if {"-h", "--help"} & set(argv):
        return functools.partial(_print_help, name, command)
    _check_flags(name, command, argv)
    return _bind_with_fire(name, command, argv)


def _check_flags(name: str, command: Command, argv: list[str]) -> None:
    known = [flag for flag, parameter in inspect.signature(command).parameters.items()
             if parameter.kind is not parameter.VAR_POSITIONAL]  # fmt: skip
    seen = set()
    for word in argv:
        if not re.match(r"--?[A-Za-z]", word):
            continue
        flag = word.lstrip("-").split("=")[0].replace("-", "_")
        if flag not in known and flag.startswith("no") and flag[2:] in known:
            flag = flag[2:]
        if not word.startswith("--") or flag not in known:
            raise InputError(f"unknown flag {word}{_closest(flag, known, '--')}; see: {name} --help")
        if flag in seen:
            raise InputError(f"{flag_of(flag)} is given twice; keep one")
        seen.add(flag)


def _bind_with_fire(name: str, command: Command, argv: list[str]) -> Callable[[], None]:
    hints = typing.get_type_hints(command)
    parameters = inspect.signature(command).parameters
    parse_fns = {flag: functools.partial(_parse, flag, hints[flag]) for flag in parameters}

    @functools.wraps(command)
    def remember(*args: Any, **kwargs: Any) -> _Remembered:
        return _Remembered(functools.partial(command, *args, **kwargs))

    remember = fire.decorators.SetParseFns(**parse_fns)(remember)
    for flag, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:  # as many words as there are, which to fire have no name
            remember = fire.decorators.SetParseFn(parse_fns[flag])(remember)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            remembered = fire.Fire(remember, command=argv, name=name, serialize=lambda _: None)
    except fire.core.FireExit as stop:
        reason = stop.trace.elements[-1].ErrorAsStr()
        raise InputError(f"{reason[0].lower()}{reason[1:]}; see: {name} --help") from None
    return typing.cast("_Remembered", remembered)._call


class _Remembered:
    """Wraps a bound call, because fire calls every callable it is given back."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call


def _parse(flag: str, hint: Any, text: str) -> Any:
    """Read the words of one flag as its type hint says."""
    shown = f"{flag_of(flag)}={text}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise InputError(f"{shown}: not one of {', '.join(choices)}{_closest(text, choices)}")
        return text
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return tuple(_parse(flag, kind, word.strip()) for word in text.strip("()[]").split(",") if word.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{shown}: wants true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            wanted = "a whole number" if hint is int else "a number"
            raise InputError(f"{shown}: wants {wanted}") from None
    if text == "" or (text == "True" and hint is Path):  # fire's word for a flag without a value
        raise InputError(f"{flag_of(flag)}: wants a value, as in {flag_of(flag)}=VALUE")
    try:
        return Path(text).expanduser() if hint is Path else hint(text)
    except RuntimeError:  # no HOME, and no entry in passwd
        raise InputError(f"{shown}: there is no home for ~ here; give the whole path") from None


def _closest(word: str, known: typing.Iterable[str], dashes: str = "") -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {dashes}{match[0].replace('_', '-') if dashes else match[0]}?)" if match else ""


def _complain(name: str, error: InputError, status: int) -> int:
    # A path or a value may hold what a terminal obeys.
    said = "".join(f"\\x{ord(one):02x}" if unicodedata.category(one) == "Cc" else one
                   for one in str(error))  # fmt: skip
    print(f"{name}: error: {said}", file=sys.stderr)
    return status


def _print_commands(name: str, commands: Mapping[str, Command]) -> None:
    print(f"usage: {name} COMMAND [FLAGS]; {name} COMMAND --help says more\n")
    words = list(commands)
    for word, command in commands.items():
        twin = next(other for other in words if commands[other] is command)
        print(f"  {word:10} " + (_promise(command).splitlines()[0] if twin == word else f"The same as {twin}."))


def _print_help(name: str, command: Command, others: Sequence[str] = ()) -> None:
    """Our own page: fire's takes the terminal over with a pager and leaves the choices out."""
    hints = typing.get_type_hints(command)
    words, flags = [], []
    for flag, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"{flag.upper()}…")
        elif parameter.default is inspect.Parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            words.append(flag.upper())
        else:
            if parameter.default is inspect.Parameter.empty:
                words.append(f"{flag_of(flag)}=…")
            flags.append(f"  {flag_of(flag)}={_show_hint(hints[flag])}{_show_default(parameter.default)}")
    for other in others:
        print(f"usage: {name} {other} …; see {name} {other} --help")
    print("usage:", " ".join([name, *words, *(["[FLAGS]"] if flags else [])]) + f"\n\n{_promise(command)}")
    if flags:
        print("\n".join(["", "flags:", *flags]))


def _promise(command: Command) -> str:
    """What a docstring says to users: all but which exceptions it raises."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith("Raises "))


def _show_default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "  (required)"
    if value is None or value == ():
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" (default {shown.lower() if isinstance(value, bool) else shown})"


def _show_hint(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _show_hint(typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return "A,B,…"
    return {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}[hint]
