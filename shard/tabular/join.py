"""Join two tables by ids, and say what has no partner: labels that are not found must not look like blank ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shard.errors import InputError
from shard.note import Note

MOST = 0.5  # a share of the rows: where more are without a partner, the tables are not of each other


def join(
    csv: Path, rows: pd.DataFrame, other_csv: Path, other: pd.DataFrame, on: list[str], all_wanted: bool = False
) -> tuple[pd.DataFrame, list[Note]]:
    """The rows of a table, each with the cells of the other table's row that has the same ids, NaN where there is none;
    and notes of the rows on either side that have no partner, with an id.

    on: columns of dtype str, ids in one form, unique in `other`. Raises InputError where more than half of the rows
    find no partner or, with all_wanted, one does.
    """
    own, others = _ids(rows, on), _ids(other, on)
    assert others.is_unique, f"{other_csv}: ids of a table to join are unique"
    lost, unused = ~own.isin(others), ~others.isin(own)
    name, missing = "/".join(on), int(lost.sum())
    has = others[unused].min() if unused.any() else others.min()
    if missing and (all_wanted or missing > MOST * len(rows)):
        raise InputError(f"{other_csv}: no row for {name} {own[lost].iloc[0]!r} ({missing} are missing, of {len(rows)} "
                         f"in {csv.name}; one it has is {has!r}); replace it by the original, or make its ids those of "
                         f"{csv.name}")  # fmt: skip
    notes = []
    if missing:
        notes.append(Note(f"{other_csv.name}: no row for the {name} of {missing} of {len(rows)} rows of {csv.name}: "
                          "blank there", f"{own[lost].min()}; it has {has}"))  # fmt: skip
    if unused.any():
        notes.append(Note(f"{other_csv.name}: {int(unused.sum())} of its {len(other)} rows are of no row of "
                          f"{csv.name}", f"{has}; that has {own.min()}"))  # fmt: skip
    return rows.merge(other, "left", on), notes


def _ids(rows: pd.DataFrame, on: list[str]) -> pd.Series:
    ids: pd.Series = rows[on[0]]
    for name in on[1:]:
        ids = ids + "/" + rows[name]
    return ids
