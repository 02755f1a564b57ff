"""Sample keys that are valid in tars and DALI indexes."""

from __future__ import annotations

import hashlib
import re

LONGEST_KEY = 90  # a tar header has room for names of 100 bytes, including the suffix


def make_key(name: str) -> str:
    """Make a sample key from a path: at most 90 letters, digits, _ and -.

    Readers of tars cut keys at the first dot, readers of indexes at blanks. A hash is appended if the name is too long
    or has characters that paths rarely have, so that different names keep different keys. ("a/b" and "a_b" do get the
    same key; their rows are rejected.)
    """
    key = replace_invalid(name)
    if 0 < len(key) <= LONGEST_KEY and not re.search(r"[^A-Za-z0-9_./ -]", name):
        return key
    return f"{key[: LONGEST_KEY - 13] or 'image'}-{short_hash(name)}"


def replace_invalid(name: str) -> str:
    """Replace each run of characters that a key can't have by an underscore."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name.strip("/"))


def short_hash(name: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a name."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]
