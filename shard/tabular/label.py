"""Read the labels of a finding: 1 present, 0 absent, -1 uncertain, blank not mentioned."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from shard.tabular.words import factorize, fold

_BLANK = ("", "nan", "na", "n/a", "<na>", "none", "null")
_VALUES = (1, 0, -1)


def read_labels(cells: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the labels of cells, float32 with NaN for blank, and which cells are wrong: not 1, 0, -1 or blank."""
    codes, texts = factorize(cells)
    values = [_read_label(text) for text in texts]
    labels = np.array([np.nan if label is None else label for label in values], np.float32)
    wrong = np.array([label is None for label in values], bool)
    return pd.Series(labels[codes], cells.index), pd.Series(wrong[codes], cells.index)


def _read_label(text: str) -> float | None:
    folded = fold(text).replace("\u2212", "-")  # the typographic minus sign
    if folded in _BLANK:
        return float("nan")
    try:
        label = float(re.sub(r"(?<=\d),(?=0*$)", ".", folded))  # 1,0: a decimal comma
    except ValueError:
        return None
    return label + 0.0 if label in _VALUES else None  # -0 becomes 0
