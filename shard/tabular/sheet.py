"""Write CSV tables in which a spreadsheet finds no formulas, whatever the cells contain."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

# Characters that start a formula in a spreadsheet, and the prefix that prevents it. Source: OWASP, "CSV Injection".
_FORMULA, _PREFIX = tuple("=+-@\t\n"), "'"


def to_csv(frame: pd.DataFrame) -> bytes:
    """Encode a frame as CSV, without its index. Text that would be a formula gets an apostrophe as prefix."""
    safe = frame.rename(columns=_safe)
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        safe[_safe(name)] = frame[name].astype("object").map(_safe)
    text = io.StringIO()
    safe.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue().encode()


def from_cell(text: str) -> str:
    """Return the original text of a cell that to_csv wrote."""
    return text[1:] if text.startswith(_PREFIX) and text[1:].startswith((*_FORMULA, _PREFIX)) else text


def _safe(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # it ends a line for some readers, and not all writers quote it
    return _PREFIX + text if text.startswith((*_FORMULA, _PREFIX)) else text
