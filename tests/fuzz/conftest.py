"""At the end of make fuzz, write docs/fuzz.md."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from shard.version import VERSION
from tests.fuzz import INPUTS, ROWS, SEED

PAGE = Path(__file__).parents[2] / "docs/fuzz.md"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table if the whole campaign ran and no test failed."""
    if INPUTS and ROWS and exitstatus == 0 and not session.config.option.keyword:
        PAGE.write_text("\n".join([
            "# Mutated inputs", "",
            f"Written by `make fuzz` on version {VERSION}, {datetime.datetime.now(tz=datetime.UTC):%d %B %Y}, seed {SEED}.",
            "Each input is a valid file or command line with random changes: flipped, deleted, repeated or zeroed bytes, a",
            "truncation, or other values in its fields. It was either refused with one line that names it, or read as what it",
            "says. No input led to a traceback, to a file outside its folder, or to output under a final name that is",
            "incomplete. `FUZZ_SEED=1 make fuzz` tries others.", "",
            "| kind | tried | refused | read |", "| --- | --- | --- | --- |", *ROWS, ""]))  # fmt: skip
