"""Settings as a TOML file: what --settings reads, and what a run or a report leaves to be repeated by."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from shard.errors import InputError
from shard.files import write_bytes


def write_settings(path: Path, settings: Mapping[str, Any], command: str, notes: Sequence[str] = ()) -> None:
    """Write settings, plain values by name, so that `command` with --settings=PATH repeats them.

    None is left out, and so is a path that is not Unicode, which TOML can't express. notes: further comments.
    """
    given, comments = dict[str, Any](), [f"{command} --settings=FILE repeats this; flags override the file.", *notes]
    for name, value in settings.items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            comments.append(f"{name} is left out: it is not Unicode")
        else:
            given |= {} if value is None else {name: value}
    text = "".join(f"# {' '.join(comment.split())}\n" for comment in comments) + tomli_w.dumps(given)
    write_bytes(path, text.encode(), shared=True)  # other tasks of a job array may write it too


def read_settings(path: Path) -> dict[str, str | list[str]]:
    """Read a file of settings: name → its text, as a flag would have it; a list for a list.

    Names may have dashes or underscores. Raises InputError if the file can't be read or has a value that no flag has.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--settings={path}: {error.strerror}; give a file such as run.toml in a run's "
                         "folder") from None  # fmt: skip
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error}); settings are lines such as lr = 5e-4 or "
                         'preset = "patient"') from None  # fmt: skip
    read: dict[str, str | list[str]] = {}
    for name, value in content.items():
        if name.replace("-", "_") in read:
            raise InputError(f"{path}: {name} is given twice; keep one")
        read[name.replace("-", "_")] = [_text(path, name, one) for one in value] if isinstance(value, list) else _text(
            path, name, value)  # fmt: skip
    return read


def _text(path: Path, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise InputError(f"{path}: {name} = {value}: must be a text, a number, true, false or a list of texts")


def join(values: Sequence[str]) -> str:
    """Join a list to the value of a flag: by commas, and values that contain one in double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
