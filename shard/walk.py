"""Walk a folder: every file under it once, in a fixed order, and a count of what was left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

Tally = dict[str, tuple[int, str]]  # reason → how many, the first one

# Folders that file servers, Macs and Windows add: thumbnails, bins, snapshots.
_SYSTEM = {"@eadir", "__macosx", "$recycle.bin", "#recycle", "#snapshot", "system volume information", "lost+found"}
HIDDEN = "hidden or system files and folders"
UNREADABLE = "folders that can't be read"
BROKEN_LINKS = "links that lead nowhere"
LOOPS = "links to folders that are read already or lie around it"
SAME_FILE = "links to files that are taken already"
IRREGULAR = "pipes, sockets and devices"
BAD_NAMES = "names that are not UTF-8 (rename them)"
TROUBLES = (UNREADABLE, BROKEN_LINKS, BAD_NAMES)  # behind which there may be images that are wanted


def add(tally: Tally, reason: str, example: str, count: int = 1) -> None:
    """Count `count` more of a reason; the first example stays."""
    before, first = tally.get(reason, (0, example))
    tally[reason] = before + count, first


def walk(src: Path, left_out: Tally) -> Iterator[str]:
    """Yield the path, relative to `src`, of each regular file under it: the files of a folder, then its folders.

    Names are in ascending order. Links are followed, but no folder or file is taken twice and no loop entered. Hidden
    files and folders, and whatever can't be read, are counted in `left_out`. Holds the names of one folder at a time.
    """
    walker = _Walker(src, left_out)
    while walker.waiting:
        yield from walker.read_next()


class _Walker:
    """Which folders are still to be read, and what was reached through links."""

    def __init__(self, src: Path, left_out: Tally) -> None:
        self._src, self._left_out = src, left_out
        self._home = os.path.realpath(src)
        self._roots = {self._home}  # and the targets of links to folders
        self._linked: set[tuple[int, int]] = set()  # device and inode of the files that links led to
        self.waiting = [("", self._home)]  # prefix of the paths within, real path

    def read_next(self) -> Iterator[str]:
        """Yield the files of the next folder that waits, and queue the folders in it."""
        prefix, real = self.waiting.pop()
        files, links, folders = self._list(prefix)
        taken = sorted(files + [name for name in links if self._is_new_file(prefix + name)])
        for name in taken:
            yield prefix + name
        inside = [(name, real.rstrip("/") + "/" + name) for name in folders]
        inside = [(name, place) for name, place in inside if place not in self._roots]
        for name in links:
            if target := self._new_folder(prefix + name):
                inside.append((name, target))
        self.waiting += [(f"{prefix}{name}/", place) for name, place in sorted(inside, reverse=True)]

    def _list(self, prefix: str) -> tuple[list[str], list[str], list[str]]:
        """Names of the files, links and folders in a folder; strings, not entries: it may hold a million."""
        files: list[str] = []
        links: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self._src / prefix) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        add(self._left_out, HIDDEN, prefix + entry.name)
                    elif not _is_text(entry.name):
                        add(self._left_out, BAD_NAMES, ascii(prefix + entry.name))
                    elif entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    else:
                        add(self._left_out, IRREGULAR, prefix + entry.name)
        except OSError as error:
            add(self._left_out, UNREADABLE, f"{prefix or self._src} ({error.strerror})")
        return files, sorted(links), folders

    def _is_new_file(self, path: str) -> bool:
        """Whether a link leads to a regular file that is reached in no other way."""
        try:
            status = (self._src / path).stat()
        except OSError:
            add(self._left_out, BROKEN_LINKS, path)
            return False
        if stat.S_ISDIR(status.st_mode):
            return False
        if not stat.S_ISREG(status.st_mode):
            add(self._left_out, IRREGULAR, path)
            return False
        place = status.st_dev, status.st_ino
        if place in self._linked or self._is_walked(os.path.realpath(self._src / path)):
            add(self._left_out, SAME_FILE, path)
            return False
        self._linked.add(place)
        return True

    def _new_folder(self, path: str) -> str | None:
        """The real path of the folder that a link leads to; None where it is none, or is walked in any case."""
        if not (self._src / path).is_dir():
            return None
        target = os.path.realpath(self._src / path)
        if self._is_walked(target) or _is_within(self._home, target):
            add(self._left_out, LOOPS, path)
            return None
        self._roots.add(target)
        return target

    def _is_walked(self, real: str) -> bool:
        """Whether a real path lies in a folder that is walked, and in no hidden folder of it."""
        for root in self._roots:
            if real == root:
                return True
            if _is_within(real, root) and not any(map(_is_hidden, Path(real).relative_to(root).parts)):
                return True
        return False


def _is_within(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip("/") + "/")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _is_text(name: str) -> bool:
    """Whether a name is valid text: others come with lone surrogates, which no JSON, CSV or tar can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
