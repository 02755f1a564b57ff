"""Seeded mutations of all that is read: each ends in what was meant, in a named refusal, and never in anything else.

FUZZ is the number of inputs a target, FUZZ_SEED another campaign; make fuzz has 1,200 of each, make test a few.
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
    """How many to try: FUZZ of them, or a few where it is not set."""
    return INPUTS or few


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes flipped, cut out, doubled, blanked or put in, mostly near the front, where headers are."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(min(rng.integers(0, len(content)), rng.integers(0, len(content))))
        length = int(rng.choice([1, 2, 8, 60, 2000]))
        span = bytes(content[place : place + length])
        match rng.integers(0, 6):
            case 0:
                content[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[place : place + length] = rng.bytes(length)
            case 2:
                del content[place : place + length]
            case 3:
                content[place:place] = span
            case 4:
                content[place : place + length] = bytes(len(span))
            case 5:
                del content[place + length :]
        if not content:
            return b""
    return bytes(content)


def places_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value within nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places_in(inner, (*above, key))


def mutate_values(value: Any, rng: np.random.Generator) -> Any:
    """A copy of nested dicts and lists in which one to three values are odd ones, gone, or those of a neighbour."""
    changed = _copy(value)
    for _ in range(rng.integers(1, 4)):
        places = list(places_in(changed))
        if not places:
            return changed
        *way, last = places[rng.integers(0, len(places))]
        holder = changed
        for key in way:
            holder = holder[key]
        match rng.integers(0, 4):
            case 0 if isinstance(holder, dict) or len(holder) > 1:
                del holder[last]
            case 1:
                other = places[rng.integers(0, len(places))]
                taken = changed
                for key in other:
                    try:
                        taken = taken[key]
                    except (KeyError, IndexError, TypeError):
                        break
                holder[last] = _copy(taken)
            case _:
                holder[last] = _copy(ODD[rng.integers(0, len(ODD))])
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def attempt(use: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """The one line in which an input is refused, blank where it is not, and what came of it; no other exception."""
    try:
        return "", use(*args, **kwargs)
    except InputError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) <= LONGEST + 3, line
        return line, None


def report_counts(target: str, tried: int, refused: int) -> None:
    """Print a line of the campaign's table, where there is one."""
    if INPUTS:
        print(f"| {target} | {tried:,} | {refused:,} | {tried - refused:,} |")
