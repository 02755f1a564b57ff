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
        today = f"{datetime.datetime.now(tz=datetime.UTC):%d %B %Y}"
        PAGE.write_text("\n".join([
            "# Mutated inputs", "",
            f"Written by `make fuzz` on version {VERSION}, {today}, seed {SEED}.", "",
            "Each input is a valid file or command line with random changes: bytes that are flipped, deleted, repeated",
            "or zeroed, a truncation, or other values in its fields. It was either refused with one line, or read. A",
            "test fails on any other outcome, such as a traceback. `FUZZ_SEED=1 make fuzz` tries other inputs.", "",
            "| kind | tried | refused | read |", "| --- | --- | --- | --- |", *ROWS, ""]))  # fmt: skip
