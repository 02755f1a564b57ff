"""Tables for people, as CSV: what a table or a file name holds is data in a spreadsheet too, never a formula."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection"), and the mark that undoes it.
_FORMULA, _MARK = tuple("=+-@\t\n"), "'"


def to_csv(frame: pd.DataFrame) -> bytes:
    """The frame as CSV, without its index; a text that would be a formula has an apostrophe before it."""
    safe = frame.rename(columns=_safe)
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        safe[_safe(name)] = frame[name].astype("object").map(_safe)
    text = io.StringIO()
    safe.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue().encode()


def from_cell(text: str) -> str:
    """What a cell that to_csv wrote stands for."""
    return text[1:] if text.startswith(_MARK) and text[1:].startswith((*_FORMULA, _MARK)) else text


def _safe(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which ends a line for some readers, and is not quoted by all writers
    return _MARK + text if text.startswith((*_FORMULA, _MARK)) else text
