"""RunLog: reports a run's losses, rates and remaining time to the terminal, the log and the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from shard.progress import QUIET_S
from train.collapse import detect_collapse
from train.config import Config
from train.distributed.ranks import Ranks
from train.journal import Journal, plot_loss, read_journal
from train.state import TrainState

Item = TypeVar("Item")


class RunLog:
    """Reports a run's progress: a bar on a terminal, lines in a log, metrics.jsonl, speed.jsonl and loss.png.

    A context manager. Only the first rank reports. journal: None on the other ranks.
    """

    def __init__(self, config: Config, state: TrainState, ranks: Ranks, journal: Journal | None) -> None:
        self._config, self._state, self._ranks, self._journal = config, state, ranks, journal
        self._steps = int(min(config.epochs * state.steps_per_epoch, config.limit_steps or math.inf))
        self._bar = tqdm(total=self._steps * config.batch_size, initial=state.step * config.batch_size,
                         desc="pretraining", unit=" images", smoothing=0.05,
                         disable=None if ranks.first else True)  # fmt: skip
        self._interval_start, self._interval_step, self._waited = time.perf_counter(), state.step, 0.0
        self._printed_at, self._rate = self._interval_start, 0.0
        self._write_speed("start")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        self._write_speed("stop")
        if self._journal:
            failed = kind is not None and issubclass(kind, Exception)
            finished = self._state.epoch >= self._config.epochs
            self._journal.close("failed" if failed else "finished" if finished else "stopped")

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, counting the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch
            self._bar.update(self._config.batch_size)
            self._report_slow_steps()

    def _report_slow_steps(self) -> None:
        """Print a line without the loss if the steps of an interval take longer than the time between lines.

        The loss is on the device, and to read it would make each step wait.
        """
        elapsed = time.perf_counter() - self._interval_start
        if self._bar.disable and min(elapsed, time.perf_counter() - self._printed_at) >= QUIET_S:
            self._rate = (self._state.step - self._interval_step) * self._config.batch_size / elapsed
            self._print_step(f"{self._rate:.1f} images/s")

    def _print_step(self, facts: str) -> None:
        self._printed_at = time.perf_counter()
        self._ranks.print(f"epoch {self._state.epoch + 1}/{self._config.epochs}, step {self._state.step} of "
                          f"{self._steps}: {facts}, {self._time_left()} left")  # fmt: skip

    def log_interval(self, metrics: Mapping[str, float]) -> None:
        """Log the mean of the pending losses, the last batch's embedding metrics, and the rate since the last call."""
        state = self._state
        loss = state.take_pending_loss()
        if self._journal:
            self._journal.write("step", step=state.step, epoch=state.epochs_trained, loss=loss,
                                lr=state.optimizer.param_groups[0]["lr"], **metrics)  # fmt: skip
        self._report_speed(loss)

    def _report_speed(self, loss: float) -> None:
        state, now = self._state, time.perf_counter()
        elapsed = now - self._interval_start
        self._rate = (state.step - self._interval_step) * self._config.batch_size / elapsed
        waiting = self._waited / elapsed
        self._interval_start, self._interval_step, self._waited = now, state.step, 0.0
        self._write_speed("step", epoch=state.epochs_trained, images_per_s=round(self._rate, 1),
                          data_wait=round(waiting, 4))  # fmt: skip
        self._bar.set_postfix(epoch=f"{state.epoch + 1}/{self._config.epochs}", loss=f"{loss:.3f}",
                              waiting=f"{waiting:.0%}")  # fmt: skip
        if self._bar.disable and now - self._printed_at >= QUIET_S:
            self._print_step(f"loss {loss:.4f}, {self._rate:.0f} images/s, {waiting:.1%} waiting for data")

    def log_epoch(self, loss: float, scores: Mapping[str, float]) -> None:
        """Write the lines of the epoch that just ended into the journal. scores: of the online probe, or empty."""
        state = self._state
        if not self._journal:
            return
        self._journal.write("epoch", step=state.step, epoch=state.epoch, loss=loss)
        if scores:
            self._journal.write("online", step=state.step, epoch=state.epoch, **scores)
            self._ranks.print(f"online probe at epoch {state.epoch}: AUROC {scores['linear_auroc']:.3f} (linear), "
                              f"{scores['knn_auroc']:.3f} (kNN)")  # fmt: skip

    def report_epoch(self, loss: float) -> None:
        """Report the epoch that just ended, after its checkpoint was saved: loss.png, a warning of collapse, a line."""
        if self._journal:
            self._warn_of_collapse()
            plot_loss(self._config.out, self._config.batch_size)
        if self._bar.disable:
            self._ranks.print(f"epoch {self._state.epoch}/{self._config.epochs}: loss {loss:.4f}, "
                              f"{self._rate:.0f} images/s, {self._time_left()} left")  # fmt: skip
        # The time that the end of the epoch took does not count against the next interval's rate.
        self._interval_start = self._printed_at = time.perf_counter()

    def _warn_of_collapse(self) -> None:
        """Warn once, at the end of the epoch in which the run is first found to have collapsed."""
        lines, settings = read_journal(self._config.out), self._config.plain()
        earlier = [line for line in lines if line["epoch"] <= lines[-1]["epoch"] - 1]
        if (warning := detect_collapse(lines, settings)) and not detect_collapse(earlier, settings):
            self._ranks.print(f"warning: {warning}")

    def _time_left(self) -> str:
        images = (self._steps - self._state.step) * self._config.batch_size
        if not self._rate:  # no step since the start
            return "?" if images else "00:00"
        return str(tqdm.format_interval(images / self._rate))

    def _write_speed(self, kind: str, **values: float) -> None:
        if self._journal:
            self._journal.write_speed(kind, step=self._state.step, **values)
