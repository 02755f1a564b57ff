"""Fuzz tests with seeded mutations of all input formats. Each input must be read correctly or raise InputError.

FUZZ sets the number of inputs a target: 1,200 in make fuzz, a few in make test. FUZZ_SEED selects another campaign.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from shard.errors import LONGEST, InputError

SEED = int(os.environ.get("FUZZ_SEED", "0"))
INPUTS = int(os.environ.get("FUZZ", "0"))
ODD: tuple[Any, ...] = (None, True, -1, 0, 1, 2**31, 2**70, -0.5, 1e308, float("nan"), float("inf"), "", "x", "\x00",
                        "../x", "/etc/passwd", "é" * 300, "'; --", [], {}, [[]], {"": None}, ["a"] * 50)  # fmt: skip


def inputs(few: int) -> int:
    """Return the number of inputs to try: FUZZ, or `few` if it is not set."""
    return INPUTS or few


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Apply one to four mutations: flip, randomize, delete, duplicate or zero bytes, or truncate.

    Favors the front, where headers are.
    """
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        offset = int(min(rng.integers(0, len(content)), rng.integers(0, len(content))))
        length = int(rng.choice([1, 2, 8, 60, 2000]))
        span = bytes(content[offset : offset + length])
        match rng.integers(0, 6):
            case 0:
                content[offset] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[offset : offset + length] = rng.bytes(length)
            case 2:
                del content[offset : offset + length]
            case 3:
                content[offset:offset] = span
            case 4:
                content[offset : offset + length] = bytes(len(span))
            case 5:
                del content[offset + length :]
        if not content:
            return b""
    return bytes(content)


def iter_paths(value: Any, parent: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path, a tuple of keys and indices, of each value within nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*parent, key)
        yield from iter_paths(inner, (*parent, key))


def mutate_values(value: Any, rng: np.random.Generator) -> Any:
    """Return a copy of nested dicts and lists with one to three values deleted, or replaced by odd or other values."""
    changed = _copy(value)
    for _ in range(rng.integers(1, 4)):
        paths = list(iter_paths(changed))
        if not paths:
            return changed
        *path, last = paths[rng.integers(0, len(paths))]
        parent = changed
        for key in path:
            parent = parent[key]
        match rng.integers(0, 4):
            case 0 if isinstance(parent, dict) or len(parent) > 1:
                del parent[last]
            case 1:
                other = changed
                for key in paths[rng.integers(0, len(paths))]:
                    try:
                        other = other[key]
                    except (KeyError, IndexError, TypeError):
                        break
                parent[last] = _copy(other)
            case _:
                parent[last] = _copy(ODD[rng.integers(0, len(ODD))])
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def attempt(use: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """Call `use`. Return the one-line message of its InputError, or "", and its result. Other exceptions propagate."""
    try:
        return "", use(*args, **kwargs)
    except InputError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) <= LONGEST + 3, line
        return line, None


ROWS: list[str] = []  # of the campaign's table


def report_counts(target: str, tried: int, refused: int) -> None:
    """Print a row of the campaign's table, if FUZZ is set. conftest.py writes them to docs/fuzz.md."""
    if INPUTS:
        ROWS.append(f"| {target} | {tried:,} | {refused:,} | {tried - refused:,} |")
        print(ROWS[-1])
