"""Walk a folder: yield every file once, in a fixed order, and count what is skipped."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")
Tally = dict[Key, tuple[int, str]]  # reason → count, first example


class Reason(NamedTuple):
    """Why a file is skipped or worth a note, as a noun phrase: in the singular, and in the plural."""

    one: str
    many: str


# Folders that file servers, Macs and Windows add: thumbnails, trash, snapshots.
_SYSTEM = {"@eadir", "__macosx", "$recycle.bin", "#recycle", "#snapshot", "system volume information", "lost+found"}
HIDDEN = Reason("hidden or system file or folder", "hidden or system files and folders")
UNREADABLE = Reason("folder that can't be read", "folders that can't be read")
BROKEN_LINKS = Reason("broken link", "broken links")
LOOPS = Reason("link to a folder that is already read or that contains SRC",
               "links to folders that are already read or that contain SRC")  # fmt: skip
SAME_FILE = Reason("link to a file that is already read", "links to files that are already read")
IRREGULAR = Reason("pipe, socket or device", "pipes, sockets and devices")
BAD_NAMES = Reason("name that is not UTF-8 (rename it)", "names that are not UTF-8 (rename them)")
TROUBLES = (UNREADABLE, BROKEN_LINKS, BAD_NAMES)  # these may hide images of the data set


def add(tally: Tally[Key], reason: Key, example: str, count: int = 1) -> None:
    """Add `count` to a reason's count. The first example is kept."""
    before, first = tally.get(reason, (0, example))
    tally[reason] = before + count, first


def walk(src: Path, skipped: Tally[Reason]) -> Iterator[str]:
    """Yield the path, relative to `src`, of each regular file under it: the files of a folder, then its folders.

    Names are in ascending order. Links are followed, but no file or folder is visited twice, and link loops are
    skipped. Hidden files and folders, and whatever can't be read, are counted in `skipped`. Keeps the names of only one
    folder in memory.
    """
    walker = _Walker(src, skipped)
    while walker.waiting:
        yield from walker.read_next()


class _Walker:
    """The folders that are still to be read, and the files and folders that links led to."""

    def __init__(self, src: Path, skipped: Tally[Reason]) -> None:
        self._src, self._skipped = src, skipped
        self._home = os.path.realpath(src)
        self._roots = {self._home}  # and the targets of links to folders
        self._linked: set[tuple[int, int]] = set()  # device and inode of the files that links led to
        self.waiting = [("", self._home)]  # prefix of the paths within, real path

    def read_next(self) -> Iterator[str]:
        """Yield the files of the next waiting folder, and queue its subfolders."""
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
        """List the names of files, links and folders in a folder, as strings: it may contain a million."""
        files: list[str] = []
        links: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self._src / prefix) as entries:
                for entry in entries:
                    if _is_hidden(entry.name):
                        add(self._skipped, HIDDEN, prefix + entry.name)
                    elif not _is_text(entry.name):
                        add(self._skipped, BAD_NAMES, ascii(prefix + entry.name))
                    elif entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    else:
                        add(self._skipped, IRREGULAR, prefix + entry.name)
        except OSError as error:
            add(self._skipped, UNREADABLE, f"{prefix or self._src} ({error.strerror})")
        return files, sorted(links), folders

    def _is_new_file(self, path: str) -> bool:
        """Whether a link leads to a regular file that is not reached otherwise."""
        try:
            status = (self._src / path).stat()
        except OSError:
            add(self._skipped, BROKEN_LINKS, path)
            return False
        if stat.S_ISDIR(status.st_mode):
            return False
        if not stat.S_ISREG(status.st_mode):
            add(self._skipped, IRREGULAR, path)
            return False
        place = status.st_dev, status.st_ino
        if place in self._linked or self._is_walked(os.path.realpath(self._src / path)):
            add(self._skipped, SAME_FILE, path)
            return False
        self._linked.add(place)
        return True

    def _new_folder(self, path: str) -> str | None:
        """The real path of a link's target; None if the target is not a folder or is walked anyway."""
        if not (self._src / path).is_dir():
            return None
        target = os.path.realpath(self._src / path)
        if self._is_walked(target) or _is_within(self._home, target):
            add(self._skipped, LOOPS, path)
            return None
        self._roots.add(target)
        return target

    def _is_walked(self, real: str) -> bool:
        """Whether a real path is inside a walked folder, but not inside a hidden folder of it."""
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
    """Whether a name is valid text: other names contain lone surrogates, which JSON, CSV and tar can't store."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
