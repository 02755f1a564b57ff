"""A sample's key, as tars and indexes can hold it."""

from __future__ import annotations

import hashlib
import re

LONGEST_KEY = 90  # a tar's header holds names of 100 bytes, the ending included


def make_key(name: str) -> str:
    """A sample's key from its path: letters, digits, _ and -, at most 90 of them.

    Readers cut keys at the first dot, and indexes at blanks. Where a name is too long or has other characters than
    those of a path, a hash of it keeps names apart that would become the same. (a/b and a_b do become the same: their
    rows are rejected.)
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", name.strip("/"))
    if 0 < len(key) <= LONGEST_KEY and not re.search(r"[^A-Za-z0-9_./ -]", name):
        return key
    return f"{key[: LONGEST_KEY - 13] or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
