"""Being told to stop: by the scheduler, which wants the run requeued, or by Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

REQUEUE = 75  # exit status EX_TEMPFAIL, sysexits.h: try again later


class StopRequest:
    """Whether the run has been told to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether it is time to finish the step, save and end."""
        return self.signal is not None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block SIGUSR1, SIGTERM and Ctrl-C are remembered, and end nothing; a second Ctrl-C does."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # a test's or a notebook's: signals are not ours
        yield stop
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.signal = number

    before = {number: signal.signal(number, remember) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
