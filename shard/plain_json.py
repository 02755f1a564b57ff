"""JSON that every reader takes: RFC 8259 has no NaN and no Infinity, which Python's json writes and reads."""

from __future__ import annotations

import math
from typing import Any, NoReturn


def without_nan(value: Any) -> Any:
    """A value of dicts, lists and numbers with None, JSON's null, for each number that is not finite."""
    if isinstance(value, dict):
        return {name: without_nan(of) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_constant(name: str) -> NoReturn:
    """For json.loads(text, parse_constant=…): raise ValueError at NaN, Infinity or -Infinity."""
    raise ValueError(f"{name} is in it, which is no JSON")
