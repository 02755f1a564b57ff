"""Join two tables by ids, and note the rows without a counterpart: labels that are lost must not look like blanks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.note import Note


def join(
    csv: Path, rows: pd.DataFrame, other_csv: Path, other: pd.DataFrame, on: list[str], require_all: bool = False
) -> tuple[pd.DataFrame, list[Note]]:
    """Left-join `other` to `rows`, with notes about rows of either table without a counterpart.

    on: id columns of dtype str, normalised, unique in `other`. Cells of missing rows are NaN. Raises InputError if most
    rows have no counterpart or, with require_all, one has none: then the tables don't belong together.
    """
    own, others = _join_ids(rows, on), _join_ids(other, on)
    assert others.is_unique, f"{other_csv}: the ids of a table to join must be unique"
    lost, unused = ~own.isin(others), ~others.isin(own)
    name, missing = "/".join(on), int(lost.sum())
    example = others[unused].min() if unused.any() else others.min()
    if missing and (require_all or is_majority(missing, len(rows))):
        raise InputError(f"{other_csv}: no row for {name} {own[lost].iloc[0]!r} ({missing} are missing, of {len(rows)} "
                         f"in {csv.name}; it has {example!r}); replace it with the original file, or use the ids of "
                         f"{csv.name}")  # fmt: skip
    notes = []
    if missing:
        notes.append(Note(f"{other_csv.name}: no row for the {name} of {missing} of {len(rows)} rows of {csv.name}: "
                          "blank there", f"{own[lost].min()}; it has {example}"))  # fmt: skip
    if unused.any():
        notes.append(Note(f"{other_csv.name}: {int(unused.sum())} of its {len(other)} rows match no row of "
                          f"{csv.name}", f"{example}; that has {own.min()}"))  # fmt: skip
    return rows.merge(other, "left", on), notes


def is_majority(count: int, total: int) -> bool:
    """Whether `count` is over half of `total`: if so many rows lack a counterpart, the tables don't belong together."""
    return 2 * count > total


def _join_ids(rows: pd.DataFrame, on: list[str]) -> pd.Series:
    ids: pd.Series = rows[on[0]]
    for name in on[1:]:
        ids = ids + "/" + rows[name]
    return ids
