"""Background: sends a run's scalars to a server in a thread, so that training never waits for it."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from shard.address import hide_secrets
from shard.files import write_bytes

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0  # between two attempts
# For what is left at the end of the process. A scheduler that stops a job may kill it half a minute later.
FINISH_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 10.0
Result = TypeVar("Result")


class Remote(Protocol):
    """A run on a server. A call that raises is repeated later."""

    def open(self) -> bool:
        """Connect, and return whether the run is new there."""

    def send(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of a step."""

    def close(self, status: str) -> None:
        """Say how the run ended: "finished", "stopped" or "failed"."""


class Background:
    """Queues lines of scalars, and sends them in order in a thread.

    If the server fails, a warning is printed once and each call is repeated, with growing waits. What was not sent when
    the process ends is sent when the run is resumed.
    """

    def __init__(
        self, name: str, remote: Remote, earlier: Iterable[tuple[int, Mapping[str, float]]], sent_file: Path
    ) -> None:
        """Start to connect. earlier: the lines of metrics.jsonl before this process. sent_file: keeps how many of its
        lines the server has.
        """
        self._name, self._remote, self._earlier, self._sent_file = name, remote, list(earlier), sent_file
        self._waiting: queue.SimpleQueue[tuple[int, Mapping[str, float]] | None] = queue.SimpleQueue()
        self._sent = min(int(sent_file.read_text()), len(self._earlier)) if sent_file.exists() else 0
        self._known = len(self._earlier)
        self._warned, self._status = False, ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"--log={name}", daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Queue the scalars of a line."""
        self._known += _is_metric(scalars)
        self._waiting.put((step, dict(scalars)))

    def close(self, status: str) -> None:
        """Wait until everything is sent, or the time for it is over."""
        self._status = status
        self._waiting.put(None)
        self._closing.set()
        self._thread.join(STOP_TIMEOUT_S if status == "stopped" else FINISH_TIMEOUT_S)
        sent = self._sent
        write_bytes(self._sent_file, f"{sent}\n".encode())
        if sent < self._known:
            _warn(f"--log={self._name}: {self._known - sent} lines of metrics.jsonl could not be sent; they are sent "
                  "when the run is resumed")  # fmt: skip

    def _work(self) -> None:
        if self._repeat(self._remote.open):
            self._sent = 0
        for line in self._earlier[self._sent :]:
            self._send(*line)
        while (item := self._waiting.get()) is not None:
            self._send(*item)
        self._repeat(lambda: self._remote.close(self._status))

    def _send(self, step: int, scalars: Mapping[str, float]) -> None:
        self._repeat(lambda: self._remote.send(step, scalars))
        self._sent += _is_metric(scalars)

    def _repeat(self, call: Callable[[], Result]) -> Result:
        """Call until it raises nothing."""
        wait = FIRST_WAIT_S
        while True:
            try:
                return call()
            except Exception as error:  # anything that a client raises; training must go on
                if not self._warned:
                    _warn(f"--log={self._name}: {hide_secrets(f'{type(error).__name__}: {error}')}; training goes on, "
                          "and metrics are sent when that works again")  # fmt: skip
                self._warned = True
            if self._closing.wait(wait):
                time.sleep(FIRST_WAIT_S)
            wait = min(2 * wait, LONGEST_WAIT_S)


def _is_metric(scalars: Mapping[str, float]) -> bool:
    """Return whether scalars are a line of metrics.jsonl, and not a rate."""
    return not any(tag.startswith("speed/") for tag in scalars)


def _warn(text: str) -> None:
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)
