"""Features and draws → replicates of every probe: all encoders on the same draws and patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from probe.features import Features
from probe.fewshot import Draws
from probe.linear import probe_draws, standardise
from probe.statistics import resample, score
from probe.table import ALL, BALANCED, Replicates


def measure(
    features: dict[str, Features], labels: pd.DataFrame, drawn: dict[str, Draws], shots: int, seed: int
) -> Replicates:
    """Replicates by encoder, task and test set; every encoder on the same draws, patients and resamples of both."""
    train = (labels["split"] == "train").to_numpy()
    standard = {name: standardise(matrix, train) for name, matrix in features.items()}
    # One number a patient whatever the task, so that the mean over tasks is of the same patients in each replicate.
    held_out, numbers = np.unique(labels["patient"].to_numpy()[~train], return_inverse=True)
    patients = np.full(len(labels), -1)
    patients[~train] = numbers
    resamples = resample(len(next(iter(drawn.values())).positive), len(held_out), seed=seed)
    pairs = [(name, task) for task in drawn for name in standard]
    result = {}
    for name, task in tqdm(pairs, desc="probing", unit=" probes", disable=None):
        one = drawn[task]
        decisions = probe_draws(standard[name], *one.support(shots), one.test)
        for test, members in ((BALANCED, one.balanced), (ALL, None)):
            result[name, task, test] = score(decisions, one.test_labels, patients[one.test], resamples, members)
    return result
