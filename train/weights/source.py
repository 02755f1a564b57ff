"""Where weights come from, as users write it: PATH, timm/ARCH=PATH, or a name that is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from train.timm_models import TIMM
from train.weights.choose_network import split_key
from train.weights.hub import HUB

ARCH = re.compile(r"(timm|torchvision)/[^=/]+")


class Source(NamedTuple):
    """Where weights come from; str() is what users write.

    arch: timm/NAME or torchvision/NAME, "" if it is to be found out. Without a path, what to download: timm/NAME or
    hf-hub:ORG/NAME. path: PATH or PATH::KEY.
    """

    arch: str
    path: Path | None

    def __str__(self) -> str:
        return "=".join(str(part) for part in self if part)

    @property
    def name(self) -> str:
        """A name for the encoder: that of the file, folder, architecture or repository."""
        if self.path is None:
            return re.split("[/:]", self.arch)[-1]
        file, _ = split_key(self.path)
        return file.stem if file.is_file() else file.resolve().name

    def absolute(self) -> Source:
        """Make the path absolute, so that it is valid from any folder."""
        return self if self.path is None else self._replace(path=self.path.absolute())


def parse_source(text: str) -> Source:
    """Parse PATH, timm/ARCH=PATH, torchvision/ARCH=PATH, timm/ARCH or hf-hub:ORG/NAME.

    A path that exists is a path, whatever its name.
    """
    path = Path(text).expanduser()
    if text and path_exists(path):
        return Source("", path)
    arch, equals, rest = text.partition("=")
    if equals and is_arch(arch):
        return Source(arch, Path(rest).expanduser())
    if text.startswith(HUB) or (text.startswith(TIMM) and is_arch(text)):
        return Source(text, None)
    return Source("", path)


def is_arch(text: str) -> bool:
    """Whether text before =PATH is an architecture and not the name of an encoder."""
    return bool(ARCH.fullmatch(text))


def is_tagged(arch: str) -> bool:
    """Whether an architecture names certain weights of timm, as timm/NAME.TAG."""
    return arch.startswith(TIMM) and "." in arch


def path_exists(path: Path) -> bool:
    """Whether PATH, or the file of PATH::KEY, exists."""
    try:
        return split_key(path)[0].exists()
    except OSError:  # too long for a file name
        return False
