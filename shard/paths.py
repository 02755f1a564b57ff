r"""Paths of a table in one spelling, so that one file is one file: a//b.jpg, ./a/b.jpg and a\b.jpg are a/b.jpg."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pandas as pd

from shard.note import Note, counted

OUTSIDE = r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)"  # /data/a.jpg, C:\a.jpg, train/../../a.jpg
_ODD = r"\\|//|(?:^|/)\.(?:/|$)"


def one_spelling(path: str) -> str:
    """A path with single slashes between its parts and without parts that are a dot."""
    parts = [part for part in re.split(r"[/\\]+", path) if part != "."]
    return "/".join(parts) if any(parts) else path


def in_one_spelling(paths: pd.Series, src: Path | None = None) -> tuple[pd.Series, list[Note]]:
    """Paths in one spelling, and a note where that changed one.

    src: the folder they start from, to ask its file system: a backslash that is part of a file's name stays, and
    spellings that only differ in case, in the form of a letter, by .. or by being absolute become the shortest of them
    where they lead to one file.
    """
    odd = paths[paths.str.contains(_ODD)].unique()
    literal = src is not None and _has_backslashes(src, [path for path in odd if "\\" in path])
    kept = {path for path in odd if "\\" in path and (literal or re.search(OUTSIDE, path))}
    spelt = {path: one_spelling(path) for path in odd if path not in kept}
    same: pd.Series = paths.map(spelt).fillna(paths) if spelt else paths
    if src is not None and (merged := {**_same_files(same, src), **_other_letters(same, src)}):
        same = same.map(merged).fillna(same)
    if not (changed := same != paths).any():
        return paths, []
    first = paths[changed].min()
    rows = counted(int(changed.sum()), "row has", "rows have")
    note = Note(f"{rows} a path in another spelling than the one it is read in",
                f"{first!a} as {same[paths == first].iloc[0]!a}")  # fmt: skip
    return same, [note]


def _has_backslashes(src: Path, paths: list[str], tried: int = 200) -> bool:
    """Whether files have names with a backslash, as far as some of them tell."""
    return os.sep == "/" and any((src / path).exists() for path in paths[:: max(1, len(paths) // tried)])


def _same_files(paths: pd.Series, src: Path) -> dict[str, str]:
    """Spellings that lead to a file which another spelling leads to → the shortest that does.

    Only spellings that are alike but for case, the form of letters, .. and the folder before them are looked at.
    """
    here = os.path.abspath(src)  # noqa: PTH100 - links are not followed
    unique = pd.Series(paths.unique())
    alike = unique.str.casefold()
    turned = unique.str.contains(r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)")
    alike[turned] = [os.path.normpath(f"{here}/{path}" if path[:1] != "/" else path).removeprefix(f"{here}/").casefold()
                     for path in unique[turned]]  # fmt: skip
    far = [place for place, path in enumerate(alike) if not path.isascii()]
    alike.iloc[far] = [unicodedata.normalize("NFC", path) for path in alike.iloc[far]]
    merged = dict[str, str]()
    for _, group in unique[alike.duplicated(keep=False)].groupby(alike):
        spellings = sorted(group, key=lambda path: (len(path), path))
        for place, path in enumerate(spellings):
            first = next((other for other in spellings[:place] if _is_one_file(src / other, src / path)), None)
            if first is not None:
                merged[path] = merged.get(first, first)
    return merged


def _other_letters(paths: pd.Series, src: Path) -> dict[str, str]:
    """Paths that are there with their letters composed otherwise, as another system wrote them → the paths there."""
    found = {}
    for path in paths[~paths.map(str.isascii)].unique():
        forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
        there = [form for form in (path, *forms) if os.path.lexists(src / form)]
        if there and there[0] != path:
            found[path] = there[0]
    return found


def _is_one_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False
