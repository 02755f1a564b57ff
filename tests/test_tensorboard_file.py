"""TensorBoard shows every step of a run, whatever its machines' clocks say."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as DataAccumulator

from train.journal import Journal
from train.trackers.tensorboard_file import TensorBoardFile

HOUR = 3600


def steps_shown(folder: Path) -> list[int]:
    """Return the steps that TensorBoard's two readers find in the event files."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    steps = [event.step for event in accumulator.Scalars("step/loss")]
    newer = DataAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    newer.Reload()
    assert [event.step for event in newer.Tensors("step/loss")] == steps
    return steps


@pytest.mark.parametrize(
    "clocks", [(0, -HOUR), (0, HOUR), (0, 0, 0), (0, 5 * HOUR, -HOUR, HOUR), (-9 * HOUR, 0, -30 * 365 * 24 * HOUR)]
)
def test_resumed_run_shows_every_step_once(
    clocks: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start repeats the last two steps of the killed one, on machines whose names sort in reverse."""
    now, first = int(time.time()), 1
    for number, skew in enumerate(clocks):
        monkeypatch.setattr(time, "time", lambda skew=skew: now + skew)
        monkeypatch.setattr("socket.gethostname", lambda number=number: f"node-{9 - number}")
        journal = Journal(tmp_path, first - 1, first - 1, ("tensorboard",))
        for step in range(first, first + 10):
            journal.write("step", step=step, epoch=step / 10, loss=1 / step)
            journal.write_speed("step", step=step, epoch=step / 10, images_per_s=10, data_wait=0)
        journal.sync()
        first += 8  # killed: the file is not closed
    assert steps_shown(tmp_path / "tensorboard") == list(range(1, first + 2))


def test_new_file_continues_files_of_summary_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions wrote such files."""
    from torch.utils.tensorboard import SummaryWriter

    old = SummaryWriter(str(tmp_path), purge_step=1)
    for step in range(1, 8):
        old.add_scalar("step/loss", 1 / step, step)
    old.close()
    (tmp_path / "notes.txt").write_text("kept")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - HOUR)
    board = TensorBoardFile(tmp_path, 5)
    for step in range(6, 11):
        board.write(step, {"step/loss": 1 / step, "step/lr": 0.1})
    assert steps_shown(tmp_path) == list(range(1, 11))  # the file is still open: every line is flushed
    board.close()
    newest = max(tmp_path.glob("events*"))
    events = list(LegacyEventFileLoader(str(newest)).Load())
    assert [event.step for event in events] == [0, 6, *range(6, 11)] and events[0].file_version == "brain.Event:2"
    assert {value.tag: round(value.simple_value, 4) for value in events[-1].summary.value} == {
        "step/loss": 0.1, "step/lr": 0.1}  # fmt: skip
