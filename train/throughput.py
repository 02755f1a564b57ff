"""How fast a run goes and when it will be done: a bar on a terminal, lines in a log, speed.jsonl for later."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from train.state import Run

Item = TypeVar("Item")
QUIET_S = 60.0  # between lines where nobody watches


class Throughput:
    """Counts a run's steps against the clock. A context manager; the first rank's speaks, all count."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._run = run
        self._steps = int(min(config.epochs * len(run.loader), config.limit_steps or math.inf))
        self._bar = tqdm(total=self._steps * config.batch_size, initial=run.step * config.batch_size,
                         desc="pretraining", unit=" images", smoothing=0.05,
                         disable=None if run.ranks.first else True)  # fmt: skip
        self._mark, self._marked, self._waited = time.perf_counter(), run.step, 0.0
        self._spoken, self._rate = self._mark, 0.0
        self._write("start")

    def __enter__(self) -> Throughput:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        self._write("stop")
        if self._run.journal:
            self._run.journal.close()

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, the time it takes to get each counted as waiting for data."""
        iterator = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begun
            yield batch
            self._bar.update(self._run.config.batch_size)

    def show(self, epoch: int, number: int, loss: float) -> None:
        """Say how it goes after step `number` of an epoch; rates are since the last time."""
        run, now = self._run, time.perf_counter()
        elapsed = now - self._mark
        self._rate = (run.step - self._marked) * run.config.batch_size / elapsed
        wait = self._waited / elapsed
        self._mark, self._marked, self._waited = now, run.step, 0.0
        self._write("step", epoch=epoch + number / len(run.loader), images_per_s=round(self._rate, 1),
                    data_wait=round(wait, 4))  # fmt: skip
        self._bar.set_postfix(epoch=f"{epoch + 1}/{run.config.epochs}", loss=f"{loss:.3f}", waiting=f"{wait:.0%}")
        if self._bar.disable and now - self._spoken >= QUIET_S:
            self._spoken = now
            run.say(f"epoch {epoch + 1}/{run.config.epochs}, step {run.step} of {self._steps}: loss {loss:.4f}, "
                    f"{self._rate:.0f} images/s, {wait:.1%} waiting for data, {self._left()} left")  # fmt: skip

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Say how an epoch went, where there is no bar; what its end took counts for none of the steps to come."""
        if self._bar.disable:
            run = self._run
            run.say(f"epoch {epoch + 1}/{run.config.epochs}: loss {loss:.4f}, {self._rate:.0f} images/s, "
                    f"{self._left()} left")  # fmt: skip
        self._mark = self._spoken = time.perf_counter()

    def _left(self) -> str:
        images = (self._steps - self._run.step) * self._run.config.batch_size
        if not self._rate:  # no step since the start
            return "?" if images else "00:00"
        return str(tqdm.format_interval(images / self._rate))

    def _write(self, kind: str, **values: float) -> None:
        if self._run.journal:
            self._run.journal.write_speed(kind, step=self._run.step, **values)
