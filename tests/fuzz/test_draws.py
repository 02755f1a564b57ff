"""Mutated draws files are refused, or read into draws that satisfy all invariants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from probe.draws_file import read_draws, write_draws
from probe.fewshot import make_draws
from tests.fuzz import SEED, attempt, inputs, mutate, report_counts


def test_mutated_draws_are_refused_or_satisfy_the_invariants(labels: pd.DataFrame, tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 10])
    path, count, refused = tmp_path / "draws.csv", inputs(150), 0
    original = write_draws({"Mass": make_draws(labels, "Mass", shots=3, draws=3, seed=0)}, labels)
    patients, mass = labels["patient"].to_numpy(), labels["Mass"].to_numpy()
    train = (labels["split"] == "train").to_numpy()
    lines = original.decode().splitlines(keepends=True)
    for trial in range(count):
        if trial % 2:
            path.write_bytes(mutate(original, rng))
        else:  # duplicate, delete or edit lines
            mutated = list(lines)
            for _ in range(rng.integers(1, 4)):
                line, other = rng.integers(1, len(mutated), 2)
                mutated[line] = [mutated[other], "", mutated[line].replace("positive", "test"),
                                 mutated[line].replace(",1,", ",7,")][rng.integers(0, 4)]  # fmt: skip
            path.write_text("".join(mutated))
        message, read = attempt(read_draws, path, labels)
        if message:
            refused += 1
            continue
        for draws in read.values():
            shots = min(draws.positive.shape[1], draws.negative.shape[1])
            support, classes = draws.support(shots)
            for rows in support:
                assert len(set(patients[rows])) == len(rows) == 2 * shots
                assert (mass[rows] == classes).all() and train[rows].all()
                assert not set(patients[rows]) & set(patients[draws.test])
            assert draws.balanced.any(axis=1).all() and not train[draws.test].any()
    assert refused > count / 4
    report_counts("draws files", count, refused)
