"""Names that users choose for encoders, findings and paths, kept distinct from the report's own rows and columns."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from shard.errors import InputError
from shard.settings_file import join
from train.weights.source import Source, is_arch, parse_source, path_exists

MEAN = "Mean"  # the column over all tasks, unless a finding has this name
# What row labels append to an encoder's name: "A (collapsed)", "A − B".
_ADDED = re.compile(r"\((?:.*, )?collapsed(?:, .*)?\)$|\s−\s")
MAJORITY, GUESSING = "Majority class", "Guessing (share of positives)"  # rows of tables


def split_spec(spec: str) -> tuple[str, Source]:
    """Split NAME=SOURCE or SOURCE into the encoder's name, "" if none is given, and where its weights are.

    Paths may contain "=", as in epoch=9-step=1000.ckpt, and so may names. If the whole text is an existing path, there
    is no name. Otherwise it is split at the first "=" that an existing path follows, and an architecture before that,
    as in NAME=timm/ARCH=PATH, is no part of the name. Without an existing path, it is split where a source other than a
    path follows, timm/ARCH or hf-hub:ORG/NAME, or else at the first "=". PATH may be PATH::KEY (split_key).
    """
    splits = [("", spec), *((spec[:place], spec[place + 1 :]) for place in range(len(spec)) if spec[place] == "=")]
    for prefix, text in splits:
        path = Path(text).expanduser()
        if text and path_exists(path):
            name, _, arch = prefix.rpartition("=")
            return (name.strip(), Source(arch, path)) if is_arch(arch) else (prefix.strip(), Source("", path))
    for prefix, text in splits:
        if (source := parse_source(text)).arch:
            return prefix.strip(), source
    # A "/" before the first "=" belongs to a path, not to a name.
    name, text = splits[1] if len(splits) > 1 and "/" not in splits[1][0] else ("", spec)
    return name.strip(), parse_source(text)


def absolute_spec(spec: str) -> str:
    """Make an encoder's path absolute, so that it is valid from any folder."""
    name, source = split_spec(spec)
    return f"{name}={source.absolute()}" if name else str(source.absolute())


def check_exists(source: Source, spec: str) -> None:
    """Raise InputError if the path of an encoder does not exist. spec: the argument that named it."""
    if source.path is not None and not path_exists(source.path):
        asked = f" (given as {spec})" if str(source.path) != spec else ""
        raise InputError(f"{source.path}: no such run or file of weights{asked}; a run is the --out of python -m train")


def check_name(name: str, reserved: Collection[str]) -> None:
    """Raise InputError if an encoder's name could be read as a reserved one, or is not one line of text."""
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise InputError(f"{name!r}: an encoder's name must be one line of text; name it: NAME=PATH")
    for taken in reserved:
        rest = _plain(name).removeprefix(_plain(taken))
        # Suffixes that row labels append to a name: "Scratch, 10", "ImageNet (…)", "Scratch − Thumbnail".
        if rest != _plain(name) and re.match(r"\s*([(,−]|$)", rest):
            raise InputError(f"an encoder called {name} would be read as the report's own {taken}; give it another "
                             "name: NAME=PATH")  # fmt: skip
    if found := _ADDED.search(_plain(name)):
        raise InputError(f"an encoder called {name}: {found[0].strip()} is a mark that reports add to names; give it "
                         "another name: NAME=PATH")  # fmt: skip


def name_mean(findings: Collection[str]) -> str:
    """Name the column of the mean over tasks: "Mean", or a name that none of these findings has."""
    taken = {_plain(finding) for finding in findings}
    names = (MEAN, "Mean over tasks", *(f"Mean over tasks ({number})" for number in range(2, len(taken) + 3)))
    return next(name for name in names if _plain(name) not in taken)


def split_tasks(text: str, findings: Sequence[str]) -> tuple[str, ...]:
    """Split a list such as "A,B" into findings; those with a comma are recognised, or quoted as in CSV.

    The first of these decides: the text is a finding; all items are findings; the longest findings that match. Items
    that are no finding are returned unchanged, for the caller to reject.
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
    """Join tasks into one string; the inverse of split_tasks."""
    return join(tasks)


def _plain(name: str) -> str:
    """Normalise a name as readers perceive it: without case, width, zero-width characters and repeated blanks."""
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join(visible.casefold().split())
