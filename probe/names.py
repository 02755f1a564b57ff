"""Names that users choose: of encoders, findings and paths; kept apart from the names of our own rows and columns."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from shard.errors import InputError

MEAN = "Mean"  # the column over all tasks, where no finding is called so
# What labels of rows add to an encoder's name: "A (collapsed)", "A (… assumed)", "A − B".
_ADDED = re.compile(r"\((?:.*, )?collapsed(?:, .*)?\)$|\(.*assumed\)$|\s−\s")
MAJORITY, GUESSING = "Majority class", "Guessing (share of positives)"  # rows of tables


def split_spec(spec: str) -> tuple[str, Path]:
    """An encoder as it was asked for → (its name or "", its path).

    A path may hold "=", as in epoch=9-step=1000.ckpt, and so may a name. The whole text is taken if it is an existing
    path; else it is NAME=PATH, split at the first "=" with an existing path behind it. Else the path does not exist.
    PATH may be PATH::KEY, see split_key.
    """
    splits = [(spec[:place].strip(), spec[place + 1 :]) for place in range(len(spec)) if spec[place] == "="]
    for name, text in [("", spec), *splits]:
        path = Path(text).expanduser()
        if text and _exists(path):
            return name, path
    # No such path exists. A "/" before the first "=" belongs to a path, not to a name.
    name, text = splits[0] if splits and "/" not in splits[0][0] else ("", spec)
    return name, Path(text).expanduser()


def split_key(path: Path) -> tuple[Path, str]:
    """PATH::KEY → the file, and the key of a network in it; "" where none is given. A path that exists has none."""
    before, mark, key = str(path).rpartition("::")
    return (path, "") if path.exists() or not mark else (Path(before), key)


def absolute_spec(spec: str) -> str:
    """The same encoder, asked for from any folder."""
    name, path = split_spec(spec)
    return f"{name}={path.absolute()}" if name else str(path.absolute())


def check_name(name: str, ours: Collection[str]) -> None:
    """Raise InputError where an encoder's name could be read as one of ours, or is not one line of text."""
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise InputError(f"{name!r}: not an encoder's name, which is one line of text; name it: NAME=PATH")
    for taken in ours:
        rest = _plain(name).removeprefix(_plain(taken))
        # Row labels add to a name: "Scratch, 10", "ImageNet (…)", "Scratch − Thumbnail".
        if rest != _plain(name) and re.match(r"\s*([(,−]|$)", rest):
            raise InputError(f"an encoder called {name} would be read as the report's own {taken}; give it another "
                             "name: NAME=PATH")  # fmt: skip
    if found := _ADDED.search(_plain(name)):
        raise InputError(f"an encoder called {name}: {found[0].strip()} is what a report itself adds to names; give it "
                         "another name: NAME=PATH")  # fmt: skip


def name_mean(findings: Collection[str]) -> str:
    """What the mean over tasks is called beside these findings: "Mean", or else a name that none of them has."""
    taken = {_plain(finding) for finding in findings}
    names = (MEAN, "Mean over tasks", *(f"Mean over tasks ({number})" for number in range(2, len(taken) + 3)))
    return next(name for name in names if _plain(name) not in taken)


def split_tasks(text: str, findings: Sequence[str]) -> tuple[str, ...]:
    """The findings that a text such as "A,B" lists; one that holds a comma is known whole, or quoted as in a CSV.

    A finding's exact name comes first, then a list whose every name is a finding, then the longest names that fit. What
    is no finding is returned as it stands, for the caller to refuse.
    """
    if text in findings:
        return (text,)
    try:
        listed = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error:  # a line break in a name
        listed = []
    if listed and set(listed) <= set(findings):
        return tuple(listed)
    if (bare := text.strip("()[]")) != text and set(inner := split_tasks(bare, findings)) <= set(findings):
        return inner
    pieces, tasks = text.split(","), []
    while pieces:
        joined = [",".join(pieces[:count]).strip() for count in range(len(pieces), 0, -1)]
        count, name = next(((len(pieces) - place, name) for place, name in enumerate(joined) if name in findings),
                           (1, joined[-1]))  # fmt: skip
        tasks += [name] if name else []
        pieces = pieces[count:]
    return tuple(tasks)


def join_tasks(tasks: Sequence[str]) -> str:
    """The list that split_tasks reads as these tasks."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(tasks)
    return text.getvalue()


def _exists(path: Path) -> bool:
    try:
        return split_key(path)[0].exists()
    except OSError:  # a name that is too long for a file
        return False


def _plain(name: str) -> str:
    """A name as a reader takes it in: without regard to case, width, zero-width characters and runs of blanks."""
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join(visible.casefold().split())
