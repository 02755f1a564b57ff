"""Progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

QUIET_S = 30.0  # seconds between lines where nobody watches; what is done sooner says nothing


class Progress:
    """How far a job is: images (or another `unit`) done of `total`, rate, time left and, where there are any, rejects.

    A context manager. On a terminal it draws a bar on stderr; elsewhere, as in a Slurm log, it prints a line of its
    own every 30 seconds. total: None where nobody knows yet; then it says the rate alone.
    """

    def __init__(self, label: str, total: int | None, unit: str = "images") -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._begun = self._spoken = time.monotonic()
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def show(self, done: int, rejected: int = 0) -> None:
        """Say that `done` images are done, `rejected` of them rejected."""
        self._bar.set_postfix({"rejected": rejected} if rejected else None, refresh=False)
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._bar.disable and now - self._spoken >= QUIET_S:
            self._spoken = now
            print(self._line(done, rejected, now - self._begun), file=sys.stderr, flush=True)

    def _line(self, done: int, rejected: int, elapsed: float) -> str:
        rate = done / elapsed
        if self._total is None:
            return f"{self._label}: {done} {self._unit}, {rate:.0f}/s"
        left = tqdm.format_interval((self._total - done) / rate) if rate else "?"
        also = f", {rejected} rejected" if rejected else ""
        return f"{self._label}: {done} of {self._total} {self._unit}, {rate:.0f}/s, {left} left{also}"
