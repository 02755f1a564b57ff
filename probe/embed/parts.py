"""The folder in which finished features are kept until the file is written: OUT.parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from probe.feature_parts import Part
from shard.errors import PARSE_ERRORS, InputError
from shard.files import write_bytes
from shard.record import first_difference

SETTINGS = "begun.json"


def key_of(part: Part) -> str:
    """Return the name under which probe.features.save_features keeps the features of consecutive images."""
    return f"{part.split}-{part.numbers[0]:09d}"


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
