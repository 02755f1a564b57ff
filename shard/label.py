"""Labels of a finding: 1 present, 0 absent, -1 uncertain, or blank (not mentioned), from a column's cells."""

from __future__ import annotations

import pandas as pd

from shard.words import fold

_BLANK = ("", "nan", "na", "n/a", "<na>", "none", "null")
_VALUES = (1, 0, -1)


def read_labels(cells: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The cells' labels, float32 with NaN for blank, and which cells are none: neither 1, 0, -1 nor blank."""
    text = cells.astype("str").fillna("")
    known = {one: _read(one) for one in text.unique()}
    wrong = {one: label is None for one, label in known.items()}
    labels = {one: float("nan") if label is None else label for one, label in known.items()}
    return text.map(labels).astype("float32"), text.map(wrong).astype(bool)


def _read(text: str) -> float | None:
    folded = fold(text).replace("\u2212", "-")  # the minus of typesetting
    if folded in _BLANK:
        return float("nan")
    try:
        label = float(folded)
    except ValueError:
        return None
    return label if label in _VALUES else None
