"""Stop requests: signals from the scheduler, after which the run is requeued, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

REQUEUE = 75  # exit status EX_TEMPFAIL, sysexits.h: try again later


class StopRequest:
    """Whether a signal asked the run to stop, and which one."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether the run should finish its step, save and exit."""
        return self.signal is not None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record SIGUSR1, SIGTERM and Ctrl-C within the block instead of exiting. A second Ctrl-C interrupts."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signal handlers can only be set in the main thread
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
