r"""Normalise the paths of a table, so that a file has one path: a//b.jpg, ./a/b.jpg and a\b.jpg become a/b.jpg."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pandas as pd

from shard.note import Note, counted

OUTSIDE = r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)"  # /data/a.jpg, C:\a.jpg, train/../../a.jpg
_UNUSUAL = r"\\|//|(?:^|/)\.(?:/|$)"
_PROBES = 200  # paths that are looked up on disk to find out whether backslashes are part of file names


def normalise_path(path: str) -> str:
    """Return a path with single slashes between its parts and without "." parts."""
    parts = [part for part in re.split(r"[/\\]+", path) if part != "."]
    return "/".join(parts) if any(parts) else path


def normalise_paths(paths: pd.Series, src: Path | None = None) -> tuple[pd.Series, list[Note]]:
    """Normalise paths, with a note if that changed any.

    src: the folder that the paths are relative to. If given, its file system decides: backslashes that are part of file
    names stay, and of several spellings that lead to one file (letter case, Unicode form, "..", absolute paths), the
    shortest is used.
    """
    unusual = paths[paths.str.contains(_UNUSUAL)].unique()
    literal = src is not None and _has_backslashes(src, [path for path in unusual if "\\" in path])
    kept = {path for path in unusual if "\\" in path and (literal or re.search(OUTSIDE, path))}
    normalised = {path: normalise_path(path) for path in unusual if path not in kept}
    same: pd.Series = paths.map(normalised).fillna(paths) if normalised else paths
    if src is not None and (merged := {**_same_files(same, src), **_other_unicode_forms(same, src)}):
        same = same.map(merged).fillna(same)
    if not (changed := same != paths).any():
        return paths, []
    first = paths[changed].min()
    rows = counted(int(changed.sum()), "row has", "rows have")
    note = Note(f"{rows} a path that is normalised",
                f"{first!a} as {same[paths == first].iloc[0]!a}")  # fmt: skip
    return same, [note]


def _has_backslashes(src: Path, paths: list[str]) -> bool:
    """Whether any of _PROBES paths exists with its backslashes in the file name."""
    return os.sep == "/" and any((src / path).exists() for path in paths[:: max(1, len(paths) // _PROBES)])


def _same_files(paths: pd.Series, src: Path) -> dict[str, str]:
    """Map each path to the shortest other spelling that leads to the same file.

    Only spellings that differ in case, Unicode form, ".." or the leading folder are compared.
    """
    here = os.path.abspath(src)  # noqa: PTH100 - links are not followed
    unique = pd.Series(paths.unique())
    alike = unique.str.casefold()
    indirect = unique.str.contains(r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)")
    alike[indirect] = [os.path.normpath(f"{here}/{path}" if path[:1] != "/" else path).removeprefix(f"{here}/")
                       .casefold() for path in unique[indirect]]  # fmt: skip
    non_ascii = [index for index, path in enumerate(alike) if not path.isascii()]
    alike.iloc[non_ascii] = [unicodedata.normalize("NFC", path) for path in alike.iloc[non_ascii]]
    merged = dict[str, str]()
    for _, group in unique[alike.duplicated(keep=False)].groupby(alike):
        spellings = sorted(group, key=lambda path: (len(path), path))
        for count, path in enumerate(spellings):
            first = next((other for other in spellings[:count] if _is_same_file(src / other, src / path)), None)
            if first is not None:
                merged[path] = merged.get(first, first)
    return merged


def _other_unicode_forms(paths: pd.Series, src: Path) -> dict[str, str]:
    """Map paths that exist only in another Unicode form, as another system wrote them, to the existing path."""
    found = {}
    for path in paths[~paths.map(str.isascii)].unique():
        forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
        existing = [form for form in (path, *forms) if os.path.lexists(src / form)]
        if existing and existing[0] != path:
            found[path] = existing[0]
    return found


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False
