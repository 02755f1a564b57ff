"""Background: sends a run's scalars to a server in a thread, so that training never waits for it."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from shard.address import hide_secrets
from shard.files import write_bytes

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0  # between two attempts
# For what is left at the end of the process. A scheduler that stops a job may kill it half a minute later.
FINISH_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 10.0
KEEP_EVERY_S = 30.0  # between two writes of how much was sent
BATCH = 50  # lines in a request
Line = tuple[int, Mapping[str, float]]  # a step, and its scalars by tag
Result = TypeVar("Result")


class Remote(Protocol):
    """A run on a server. A call that raises is repeated later."""

    def open(self) -> bool:
        """Connect, and return whether the run is new there."""

    def send(self, lines: Sequence[Line]) -> None:
        """Send lines."""

    def close(self, status: str) -> None:
        """Say how the run ended: "finished", "stopped" or "failed"."""


class Background:
    """Queues lines of scalars, and sends them in order in a thread.

    If the server fails, a warning is printed once and each call is repeated, with growing waits. What was not sent when
    the process ends is sent when the same command is run again.
    """

    def __init__(self, name: str, remote: Remote, earlier: Iterable[Line], sent_file: Path) -> None:
        """Connect; if the server does not answer, the thread tries again. earlier: the lines of metrics.jsonl before
        this process. sent_file: keeps how many of its lines the server has, and how the run ended there.
        """
        self._name, self._remote, self._earlier, self._sent_file = name, remote, list(earlier), sent_file
        self._waiting: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._sent = min(_read(sent_file)[0], len(self._earlier))  # lines of metrics.jsonl
        self._known, self._kept_at = len(self._earlier), time.monotonic()
        self._warned, self._status, self._ended = False, "", False
        self._closing, self._given_up = threading.Event(), threading.Event()
        # Here and not in the thread: wandb's start and the fork of a loader's processes must not happen at once.
        self._is_new: bool | None = None  # None: not connected
        with contextlib.suppress(_FailedError):
            self._is_new = self._try(remote.open)
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
        self._given_up.set()
        self._keep()
        if self._sent < self._known:
            _warn(f"--log={self._name}: {self._known - self._sent} lines of metrics.jsonl could not be sent; run the "
                  "same command again to send them")  # fmt: skip

    def _work(self) -> None:
        with contextlib.suppress(_GivenUpError):
            self._send_all()

    def _send_all(self) -> None:
        if self._repeat(self._remote.open) if self._is_new is None else self._is_new:
            self._sent = 0
        for first in range(self._sent, len(self._earlier), BATCH):
            self._send(self._earlier[first : first + BATCH])
        while lines := self._take():
            self._send(lines)
        self._repeat(lambda: self._remote.close(self._status))
        self._ended = True

    def _take(self) -> list[Line]:
        """Wait for a line, and return it with those that wait behind it; [] at the end."""
        lines = list[Line]()
        while len(lines) < BATCH and not (lines and self._waiting.empty()):
            line = self._waiting.get()
            if line is None:
                if lines:
                    self._waiting.put(None)  # for the next call
                break
            lines.append(line)
        return lines

    def _send(self, lines: Sequence[Line]) -> None:
        self._repeat(lambda: self._remote.send(lines))
        self._sent += sum(_is_metric(scalars) for _, scalars in lines)
        if time.monotonic() - self._kept_at > KEEP_EVERY_S:
            self._keep()

    def _keep(self) -> None:
        """Write how much was sent, for the next process."""
        self._kept_at = time.monotonic()
        content = {"lines": self._sent, "status": self._status if self._ended else ""}
        try:
            write_bytes(self._sent_file, (json.dumps(content, allow_nan=False) + "\n").encode(), shared=True)
        except OSError as error:  # a full disk; training reports that itself
            _warn(f"{self._sent_file}: {error.strerror}; some metrics may be sent twice")

    def _repeat(self, call: Callable[[], Result]) -> Result:
        """Call until it raises nothing. Raises _GivenUpError once the process has ended its wait."""
        wait = FIRST_WAIT_S
        while True:
            with contextlib.suppress(_FailedError):
                return self._try(call)
            if self._closing.wait(wait):
                time.sleep(FIRST_WAIT_S)
            if self._given_up.is_set():
                raise _GivenUpError
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _try(self, call: Callable[[], Result]) -> Result:
        """Call. Raises _FailedError if that raises anything, and prints a warning the first time."""
        try:
            return call()
        except Exception as error:  # anything that a client raises; training must go on
            if not self._warned:
                _warn(f"--log={self._name}: {hide_secrets(f'{type(error).__name__}: {error}')}; training continues, "
                      "and metrics are sent once the server answers")  # fmt: skip
            self._warned = True
            raise _FailedError from error


class _FailedError(Exception):
    """A call to the server failed."""


class _GivenUpError(Exception):
    """The process has stopped waiting for the server."""


def is_behind(sent_file: Path) -> bool:
    """Return whether a finished run was not sent to its end."""
    return _read(sent_file)[1] != "finished"


def _read(sent_file: Path) -> tuple[int, str]:
    """Return how many lines were sent, and the status that was."""
    if not sent_file.exists():
        return 0, ""
    content = json.loads(sent_file.read_text())
    return int(content["lines"]), str(content["status"])


def _is_metric(scalars: Mapping[str, float]) -> bool:
    """Return whether scalars are a line of metrics.jsonl, and not a rate."""
    return not any(tag.startswith("speed/") for tag in scalars)


def _warn(text: str) -> None:
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)
