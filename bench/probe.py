"""How long do all few-shot probes of a report take, against scikit-learn one by one? python -m bench.probe

On features of noise with some signal, as many and as wide as a ResNet-50's of CheXpert's valid.csv.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.figures import write_figures
from probe.fewshot import Rows
from probe.linear import INVERSE_L2, probe_draws
from probe.statistics import resample, score
from shard.cli import check_numbers, run
from train.frozen_features import Features

TRAINING, TESTED = 2000, 234  # images; those that are tested as many as valid.csv has


class Work(NamedTuple):
    """What is solved for one encoder: support sets and labels [tasks, D, 2k], test labels [tasks, N]."""

    features: Features
    support: Rows
    labels: Rows
    test: Rows
    test_labels: Rows


def bench_probe(
    *, encoders: int = 6, tasks: int = 4, draws: int = 200, shots: int = 10, width: int = 2048, rounds: int = 5,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Time ours and scikit-learn's logistic regression, interleaved, on the same support sets, in seconds.

    One round is all ENCODERS × TASKS × DRAWS probes. Says how far the decision values are apart, and what the metrics
    with their intervals over draws and patients take beside. --json=FILE keeps the figures.
    """
    check_numbers(encoders=(encoders, 1, 10**5), draws=(draws, 1, 10**5), shots=(shots, 1, TRAINING // 4),
                  width=(width, 1, 10**5), tasks=(tasks, 1, width), rounds=(rounds, 1, 10**4))  # fmt: skip
    work = [_make(np.random.default_rng(number), tasks, draws, shots, width) for number in range(encoders)]
    _ours(work[:1])  # warm-up
    rows: dict[str, Callable[[list[Work]], list[np.ndarray]]] = {"ours": _ours, "scikit-learn": _one_by_one}
    seconds: dict[str, list[float]] = {name: [] for name in (*rows, "statistics")}
    apart = 0.0
    for number in range(rounds):
        found = {}
        for name, solve in rows.items():
            begun = time.perf_counter()
            found[name] = solve(work)
            seconds[name].append(time.perf_counter() - begun)
        apart = max(float(np.abs(one - other).max()) for one, other in zip(*found.values(), strict=True))
        begun = time.perf_counter()
        _score(work, found["ours"], tasks, draws)
        seconds["statistics"].append(time.perf_counter() - begun)
        said = ", ".join(f"{name} {some[-1]:.2f} s" for name, some in seconds.items())
        print(f"round {number + 1} of {rounds}: {said}", file=sys.stderr)
    _show(seconds, apart, f"{encoders} encoders × {tasks} tasks × {draws} draws, {shots} shots, {width} features")
    if json is not None:
        write_figures(json, {"seconds": seconds, "apart": apart})


def _make(rng: np.random.Generator, tasks: int, draws: int, shots: int, width: int) -> Work:
    features = (rng.normal(size=(TRAINING + TESTED, width)) / np.sqrt(width)).astype(np.float32)
    labels = rng.integers(0, 2, (tasks, len(features)))
    features[:, :tasks] += labels.T.astype(np.float32) / 2
    def draw(of_task: Rows) -> Rows:
        """k positives, then k negatives."""
        classes = (np.flatnonzero(of_task[:TRAINING] == label) for label in (1, 0))
        return np.concatenate([rng.choice(rows, shots, replace=False) for rows in classes])

    support = np.array([[draw(of_task) for _ in range(draws)] for of_task in labels])
    classes = np.tile(np.repeat([1, 0], shots), (tasks, draws, 1))
    return Work(features, support, classes, np.arange(TRAINING, len(features)), labels[:, TRAINING:])


def _ours(work: list[Work]) -> list[np.ndarray]:
    return [probe_draws(one.features, rows, labels, one.test)
            for one in work for rows, labels in zip(one.support, one.labels, strict=True)]  # fmt: skip


def _one_by_one(work: list[Work]) -> list[np.ndarray]:
    """As one would write it first, and to the same convergence."""
    found = []
    for one in work:
        tested = one.features[one.test].astype(np.float64)
        for of_rows, of_labels in zip(one.support, one.labels, strict=True):
            probe = LogisticRegression(C=INVERSE_L2, tol=1e-6, max_iter=10_000)
            found.append(np.array([probe.fit(one.features[rows].astype(np.float64), labels).decision_function(tested)
                                   for rows, labels in zip(of_rows, of_labels, strict=True)]))  # fmt: skip
    return found


def _score(work: list[Work], decisions: list[np.ndarray], tasks: int, draws: int) -> None:
    resamples = resample(draws, TESTED)
    for number, one in enumerate(decisions):
        labels = work[number // tasks].test_labels[number % tasks]
        score(one, labels, np.arange(TESTED), resamples)


def _show(seconds: dict[str, list[float]], apart: float, what: str) -> None:
    print(what)
    print(f"{'':14} {'seconds':>8}  range of {len(seconds['ours'])} interleaved rounds")
    for name, some in seconds.items():
        print(f"{name:14} {statistics.median(some):8.2f}  {min(some):.2f} to {max(some):.2f}")
    ratio = statistics.median(seconds["scikit-learn"]) / statistics.median(seconds["ours"])
    print(f"ours is {ratio:.1f} × as fast; decision values at most {apart:.1e} apart; "
          "statistics: all metrics of all draws in 2,001 replicates over draws and patients")  # fmt: skip


if __name__ == "__main__":
    run("python -m bench.probe", bench_probe)
