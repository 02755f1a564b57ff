"""Measure the time of all few-shot probes of a report, against scikit-learn fitting them one by one.

python -m bench.probe. The features are noise with some signal; their number and width are those of a ResNet-50 on
CheXpert's valid.csv.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.output import write_results
from probe.fewshot import Rows
from probe.linear import INVERSE_L2, probe_draws
from probe.statistics import resample, score
from shard.cli import run
from shard.flags import JSON, ROUNDS, Flag, check_numbers, validate_call
from train.frozen_features import Features

TRAIN_IMAGES, TEST_IMAGES = 2000, 234  # as many test images as in CheXpert's valid.csv


class Problem(NamedTuple):
    """The probes of one encoder: support sets and labels [tasks, D, 2k], test labels [tasks, N]."""

    features: Features
    support: Rows
    labels: Rows
    test: Rows
    test_labels: Rows


@validate_call
def bench_probe(
    *,
    encoders: Annotated[int, Flag("Number of encoders.", low=1, high=10**5)] = 6,
    tasks: Annotated[int, Flag("Number of tasks, at most --width.", low=1, high=10**5)] = 4,
    draws: Annotated[int, Flag("Number of support sets per task.", low=1, high=10**5)] = 200,
    shots: Annotated[int, Flag("Positive and negative examples in a support set.", low=1, high=TRAIN_IMAGES // 4)] = 10,
    width: Annotated[int, Flag("Number of features.", low=1, high=10**5)] = 2048,
    rounds: Annotated[int, ROUNDS] = 5,
    json: Annotated[Path | None, JSON] = None,
) -> None:  # fmt: skip
    """Measure the seconds that all logistic regressions of a report take, here and in scikit-learn.

    A round solves encoders × tasks × draws regressions on the same support sets. The command also prints how far the
    decision values differ, and what the metrics with their intervals cost.

        python -m bench.probe --draws=50 --rounds=3
    """
    check_numbers(tasks=(tasks, 1, width))
    problems = [_make_problem(np.random.default_rng(number), tasks, draws, shots, width) for number in range(encoders)]
    _ours(problems[:1])  # warm-up
    solvers: dict[str, Callable[[list[Problem]], list[np.ndarray]]] = {"ours": _ours, "scikit-learn": _scikit_learn}
    seconds: dict[str, list[float]] = {name: [] for name in (*solvers, "statistics")}
    largest_difference = 0.0
    for number in range(rounds):
        decisions = {}
        for name, solve in solvers.items():
            begun = time.perf_counter()
            decisions[name] = solve(problems)
            seconds[name].append(time.perf_counter() - begun)
        pairs = zip(*decisions.values(), strict=True)
        largest_difference = max(float(np.abs(one - other).max()) for one, other in pairs)
        begun = time.perf_counter()
        _score(problems, decisions["ours"], tasks, draws)
        seconds["statistics"].append(time.perf_counter() - begun)
        times = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"round {number + 1} of {rounds}: {times}", file=sys.stderr)
    print(f"{encoders} encoders × {tasks} tasks × {draws} draws, {shots} shots, {width} features")
    _print(seconds, largest_difference)
    if json is not None:
        write_results(json, {"seconds": seconds, "apart": largest_difference})


def _make_problem(rng: np.random.Generator, tasks: int, draws: int, shots: int, width: int) -> Problem:
    features = (rng.normal(size=(TRAIN_IMAGES + TEST_IMAGES, width)) / np.sqrt(width)).astype(np.float32)
    labels = rng.integers(0, 2, (tasks, len(features)))
    features[:, :tasks] += labels.T.astype(np.float32) / 2
    def draw(task_labels: Rows) -> Rows:
        """Draw k positives, then k negatives."""
        classes = (np.flatnonzero(task_labels[:TRAIN_IMAGES] == label) for label in (1, 0))
        return np.concatenate([rng.choice(rows, shots, replace=False) for rows in classes])

    support = np.array([[draw(task_labels) for _ in range(draws)] for task_labels in labels])
    classes = np.tile(np.repeat([1, 0], shots), (tasks, draws, 1))
    return Problem(features, support, classes, np.arange(TRAIN_IMAGES, len(features)), labels[:, TRAIN_IMAGES:])


def _ours(problems: list[Problem]) -> list[np.ndarray]:
    return [probe_draws(one.features, rows, labels, one.test)
            for one in problems for rows, labels in zip(one.support, one.labels, strict=True)]  # fmt: skip


def _scikit_learn(problems: list[Problem]) -> list[np.ndarray]:
    """Fit LogisticRegression one support set at a time, to the same convergence."""
    decisions = []
    for problem in problems:
        features, test = problem.features, problem.features[problem.test].astype(np.float64)
        for task_rows, task_labels in zip(problem.support, problem.labels, strict=True):
            probe = LogisticRegression(C=INVERSE_L2, tol=1e-6, max_iter=10_000)
            decisions.append(np.array([probe.fit(features[rows].astype(np.float64), labels).decision_function(test)
                                       for rows, labels in zip(task_rows, task_labels, strict=True)]))  # fmt: skip
    return decisions


def _score(problems: list[Problem], decisions: list[np.ndarray], tasks: int, draws: int) -> None:
    resamples = resample(draws, TEST_IMAGES)
    for number, task_decisions in enumerate(decisions):
        labels = problems[number // tasks].test_labels[number % tasks]
        score(task_decisions, labels, np.arange(TEST_IMAGES), resamples)


def _print(seconds: dict[str, list[float]], largest_difference: float) -> None:
    print(f"{'':14} {'seconds':>8}  range of {len(seconds['ours'])} interleaved rounds")
    for name, values in seconds.items():
        print(f"{name:14} {statistics.median(values):8.2f}  {min(values):.2f} to {max(values):.2f}")
    ratio = statistics.median(seconds["scikit-learn"]) / statistics.median(seconds["ours"])
    print(f"ours is {ratio:.1f} × as fast; decision values differ by at most {largest_difference:.1e}; "
          "statistics: all metrics of all draws in 2,001 replicates over draws and patients")  # fmt: skip


if __name__ == "__main__":
    run("python -m bench.probe", bench_probe)
