"""Parts of a file of features: batches of consecutive images whose finished features are kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.manifest import Manifest
from shard.record import first_difference

SETTINGS = "begun.json"
IMAGES = 1024  # in a part, if a batch has no more: a few megabytes, and seconds to minutes of work


class Part(NamedTuple):
    """Images first to last - 1 of a split: whole batches, so that a resumed job has those of one that never stopped."""

    split: str
    first: int
    last: int

    @property
    def images(self) -> int:
        """The number of images."""
        return self.last - self.first

    @property
    def key(self) -> str:
        """The name under which probe.features.save_features keeps the features."""
        return f"{self.split}-{self.first:09d}"


def list_parts(manifest: Manifest, splits: Sequence[str], batch_size: int) -> list[Part]:
    """List the parts of some splits, in the order of their images."""
    step = batch_size * max(1, IMAGES // batch_size)
    return [Part(split, first, min(first + step, manifest.images(split)))
            for split in splits for first in range(0, manifest.images(split), step)]  # fmt: skip


def begin_parts(folder: Path, identity: dict[str, Any]) -> None:
    """Create the folder of parts, or check that those in it were computed from the same weights, images and settings.

    identity: all that decides the features, as JSON values by name. Raises InputError if it has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists():
        try:
            difference = first_difference(json.loads(path.read_text()), identity)
        except PARSE_ERRORS:
            difference = f"{path} can't be read"
        if difference:
            raise InputError(f"{folder}: has unfinished features of another command ({difference}); choose another "
                             "--out, or remove this folder to start again")  # fmt: skip
    else:
        write_bytes(path, json.dumps(identity, allow_nan=False).encode())
