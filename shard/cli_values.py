"""Read the values of flags: from the text of a command line or of a file of settings, as the type of each requires."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shard.address import Place, is_address, parse_place
from shard.errors import InputError
from shard.flags import SETTINGS, Option, flag_name
from shard.settings_file import join, read_settings


def parse(option: Option, text: str) -> Any:
    """Read the text of one flag as its type requires."""
    return _parse_as(option.hint, flag_name(option.name), text)


def parse_file(file: Path, options: Sequence[Option]) -> dict[str, Any]:
    """Return the values of a file of settings, by option. Raises InputError for a name or a value that no flag has."""
    by_name = {option.name: option for option in options if option.name != SETTINGS}
    values: dict[str, Any] = {}
    for name, value in read_settings(file).items():
        if name not in by_name:
            raise InputError(f"{file}: unknown setting {name}{suggest(name, by_name)}")
        option = by_name[name]
        try:
            if option.kind is inspect.Parameter.VAR_POSITIONAL:
                values[name] = tuple(parse(option, text) for text in ([value] if isinstance(value, str) else value))
            else:
                values[name] = parse(option, value if isinstance(value, str) else join(value))
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    return values


def _parse_as(hint: Any, flag: str, text: str) -> Any:
    shown = f"{flag}={text}"
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise InputError(f"{shown}: not one of {', '.join(choices)}{suggest(text, choices)}")
        return text
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return tuple(_parse_as(kind, flag, word.strip()) for word in text.strip("()[]").split(",") if word.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{shown}: must be true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise InputError(f"{shown}: must be {'a whole number' if hint is int else 'a number'}") from None
    if hint is Path and is_address(text):
        raise InputError(f"{shown}: must be on this machine; only shards are read from an address")
    if text == "" or (text == "True" and hint in (Path, Place)):  # fire passes True for a flag without a value
        raise InputError(f"{flag}: needs a value, as in {flag}=VALUE")
    try:
        if hint == Place:
            return parse_place(text)
        return Path(text).expanduser() if hint is Path else hint(text)
    except RuntimeError:  # no HOME, and no entry in passwd
        raise InputError(f"{shown}: there is no home directory for ~; give the full path") from None


def suggest(word: str, known: Iterable[str], dashes: str = "") -> str:
    """Return " (did you mean …?)" with the known word closest to `word`, or "" if none is close."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {dashes}{match[0].replace('_', '-') if dashes else match[0]}?)" if match else ""
