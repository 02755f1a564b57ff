"""Small images and tables for tests, and the notes of a table as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from shard.table import Table


def write_blank(path: Path) -> None:
    """Write a uniform grey image, for tests that never decode it. Creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 50), 128).save(path)


def write_gradient(path: Path, shift: int = 0, deep: bool = False) -> None:
    """Write a gradient of 50 × 40 pixels, which a build accepts. shift: makes images differ. deep: 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.roll(np.linspace(0, 1, 2000).reshape(40, 50), shift, 1)
    Image.fromarray((values * 4000).astype(np.uint16) if deep else (values * 255).astype(np.uint8)).save(path)


def write_table(folder: Path, text: str, *images: str) -> Path:
    """Write table.csv, and blank images next to it: by default a.png and b.png."""
    for image in images or ("a.png", "b.png"):
        write_blank(folder / image)
    table = folder / "table.csv"
    table.write_text(text)
    return table


def notes_of(table: Table) -> str:
    """The notes of a table, one per line."""
    return "\n".join(map(str, table.notes))
