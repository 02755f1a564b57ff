"""Standard JSON: unlike Python's json module, RFC 8259 allows neither NaN nor Infinity."""

from __future__ import annotations

import math
from typing import Any, NoReturn


def without_nan(value: Any) -> Any:
    """Replace each NaN or infinite number in nested dicts and lists by None, JSON's null."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN, Infinity or -Infinity, as json.loads(text, parse_constant=refuse_constant) needs."""
    raise ValueError(f"contains {name}, which is not valid JSON")
