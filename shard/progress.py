"""Progress, as a bar on a terminal or as a line every 30 seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

QUIET_S = 30.0  # between lines in a log; a shorter job prints none
DELAY_S = 1.0  # before a bar appears on a terminal; a shorter job shows none
Item = TypeVar("Item")


class Progress:
    """Shows on stderr how many images (or another `unit`) of `total` are done, the rate, the time left, and rejects.

    A context manager. Shows a bar on a terminal; elsewhere, as in a Slurm log, prints a line every 30 seconds.
    total: None if it is unknown; then only the count and the rate are shown. before: how many an earlier process did,
    which count as done but not for the rate.
    """

    def __init__(self, label: str, total: int | None, unit: str = "images", before: int = 0) -> None:
        self._label, self._total, self._unit, self._before, self._done = label, total, unit, before, before
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=before, desc=label, unit=f" {unit}", delay=DELAY_S,
                         disable=None if total != 0 else True)  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def show(self, done: int, rejected: int = 0) -> None:
        """Update the display: `done` images are done, and `rejected` of them were rejected."""
        if rejected:
            self._bar.set_postfix({"rejected": rejected}, refresh=False)
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= QUIET_S:
            self._last_line = now
            print(self._line(done, rejected, now - self._start), file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """Update the display: `count` more are done."""
        self.show(self._done + count)

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items and count each one."""
        for item in items:
            yield item
            self.advance()

    def _line(self, done: int, rejected: int, elapsed: float) -> str:
        rate = (done - self._before) / elapsed
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        if self._total is None:
            return f"{self._label}: {done} {self._unit}, {shown}/s"
        left = tqdm.format_interval((self._total - done) / rate) if rate else "?"
        rejects = f", {rejected} rejected" if rejected else ""
        return f"{self._label}: {done} of {self._total} {self._unit}, {shown}/s, {left} left{rejects}"
