"""TensorBoard's event files, in the order in which a run wrote them whatever its machines' clocks say."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardFile:
    """Writes a run's scalars for TensorBoard, on the disk at every line: a kill loses none before a checkpoint.

    TensorBoard reads event files by their names, which begin with a time, and where one says that a run was resumed at
    a step it drops all later steps of the files before. So a file is named later than all that are there, also where
    the clock is behind or has not advanced by a second. (PyTorch's SummaryWriter names it by the clock.)
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Go on after so many steps: what is there of later ones is not shown any more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{_later_than(folder):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._event, self._summary = Event, Summary
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add scalars by their tags."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(self._event(step=step, summary=self._summary(value=values)))
        self._file.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _later_than(folder: Path) -> int:
    """A time in seconds that is not over, and later than that in the name of any event file in a folder."""
    found = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.iterdir()]
    return max(int(time.time()), *(int(one[1]) + 1 for one in found if one), 0)
