"""Write TensorBoard event files whose names sort in the order of writing, whatever the machines' clocks show."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardFile:
    """Writes a run's scalars for TensorBoard and flushes after every line, so that a killed run loses none.

    TensorBoard reads event files in the order of their names, which begin with a time. If a file records that the run
    resumed at a step, TensorBoard drops later steps of the previous files. A new file is therefore named later than all
    existing ones, even if the clock is behind or has not advanced by a second. PyTorch's SummaryWriter uses the clock.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Start a file after `step` steps; TensorBoard hides later steps of earlier files."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{_next_timestamp(folder):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._event, self._summary = Event, Summary
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars, tag → value."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(self._event(step=step, summary=self._summary(value=values)))
        self._file.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self, status: str = "finished") -> None:
        """Close the file."""
        self._file.close()


def _next_timestamp(folder: Path) -> int:
    """Return a time in seconds, at least the current one, that is later than those of all event files in the folder."""
    matches = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.iterdir()]
    return max(int(time.time()), *(int(match[1]) + 1 for match in matches if match), 0)
