"""Training as if the CPU were a GPU, with two ways of making views: python -m tests.two_ways SLOW FLAG …

The flags are those of python -m train. For --views=gpu the stock operators run on the CPU. SLOW, gpu or cpu, names the
way whose batches take longer. The time is a counter that each batch advances, so that other load on the machine does
not matter. Rank 1 swaps the two rates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from pipeline import loader
from train import view_choice

BATCH_S, DELAY_S = 0.1, 0.1
BACKENDS = {"gpu": "dali-stock", "cpu": "dali-fused"}


def patches(delays: dict[str, float]) -> list[tuple[Any, str, Any]]:
    """Return what to set: object, attribute and value. delays: seconds that each batch of a way takes longer.

    Also, few batches are skipped and measured.
    """
    real, clock = loader.make_views, SimpleNamespace(now=0.0)

    def delayed(backend: Any, *arguments: Any, **settings: Any) -> Iterator[Any]:
        for views in real(backend, *arguments, **settings):
            clock.now += BATCH_S + next(delays[way] for way, name in BACKENDS.items() if name == backend)
            yield views

    both = [(module, "view_devices", lambda *_: ("gpu", "cpu")) for module in (loader, view_choice)]
    return [*both, (loader, "make_views", delayed), (view_choice, "SECONDS", 3.9 * BATCH_S),
            (view_choice, "PIPELINES", 1), (view_choice, "AHEAD", 0),
            (view_choice, "time", SimpleNamespace(perf_counter=lambda: clock.now))]  # fmt: skip


def main(slow: str) -> None:
    """Train with one way delayed."""
    for owner, name, value in patches({way: DELAY_S * (way == slow) for way in BACKENDS}):
        setattr(owner, name, value)
    if os.environ.get("RANK") == "1":
        real = view_choice.choose_faster
        view_choice.choose_faster = lambda rates: real(dict(zip(rates, reversed(list(rates.values())), strict=True)))
    from shard.cli import run
    from train.__main__ import COMMANDS

    run("python -m train", COMMANDS)


if __name__ == "__main__":
    main(sys.argv.pop(1))
