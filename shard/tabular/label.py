"""Labels of a finding: 1 present, 0 absent, -1 uncertain, or blank (not mentioned), from a column's cells."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from shard.tabular.words import fold, places_of

_BLANK = ("", "nan", "na", "n/a", "<na>", "none", "null")
_VALUES = (1, 0, -1)


def read_labels(cells: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The cells' labels, float32 with NaN for blank, and which cells are none: neither 1, 0, -1 nor blank."""
    places, texts = places_of(cells)
    known = [_read(text) for text in texts]
    labels = np.array([np.nan if label is None else label for label in known], np.float32)
    wrong = np.array([label is None for label in known], bool)
    return pd.Series(labels[places], cells.index), pd.Series(wrong[places], cells.index)


def _read(text: str) -> float | None:
    folded = fold(text).replace("\u2212", "-")  # the minus of typesetting
    if folded in _BLANK:
        return float("nan")
    try:
        label = float(re.sub(r"(?<=\d),(?=0*$)", ".", folded))  # 1,0 where a spreadsheet has decimal commas
    except ValueError:
        return None
    return label + 0.0 if label in _VALUES else None  # -0 is 0
