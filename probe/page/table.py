"""Tables of estimates and of paired differences, as data frames, and the verdicts drawn from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from probe.baselines import SIDE, THUMBNAIL, baseline_names
from probe.encoder import Encoder
from probe.fewshot import Shots
from probe.measure import ALL, BALANCED, LINEAR, Key
from probe.metrics import METRICS
from probe.names import MEAN
from probe.statistics import Estimate, Scores, estimate, holm, mean_of

NAN = float("nan")


def with_mean(scores: Mapping[Key, Scores], tasks: Collection[str], mean: str = MEAN) -> dict[Key, Scores]:
    """Add each encoder's mean over the tasks, replicate by replicate, on the test sets ALL and BALANCED.

    mean: the name that the mean has instead of a task, here and below (see probe.names.name_mean). The mean is added
    only if all tasks were measured; otherwise a curve over shots would average different tasks.
    """
    result = dict(scores)
    for key in scores:
        parts = [scores[other] for task in tasks if (other := key._replace(task=task)) in scores]
        if key.test in (ALL, BALANCED) and 1 < len(parts) == len(tasks):
            result[key._replace(task=mean)] = mean_of(parts)
    return result


def score_table(scores: Mapping[Key, Scores], withheld: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Tabulate mean, interval, standard error and draws by encoder, probe, shots, task, test set and metric.

    withheld: tasks without a valid interval → the reason (Study.withheld). Their intervals are NaN, and the last column
    gives the reason.
    """
    reasons = withheld or {}
    rows = []
    for key, score in scores.items():
        for metric in METRICS:
            cell = _without_interval(estimate(score.of(metric)), key.task in reasons)
            low, high = np.clip([cell.low, cell.high], 0, 1)  # all METRICS are; mean ± Student's t may not be
            rows.append({**key._asdict(), "shots": str(key.shots), "metric": metric, "mean": cell.mean, "low": low,
                         "high": high, "standard_error": cell.error, "draws": len(score.draws),
                         "withheld": reasons.get(key.task, "")})  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _without_interval(cell: Estimate, withheld: bool) -> Estimate:
    return Estimate(cell.mean, NAN, NAN, NAN, NAN) if withheld else cell


def references(encoders: Sequence[Encoder]) -> list[str]:
    """Names of the encoders that the others are compared with: the baselines, then the first encoder given."""
    names = [encoder.name for encoder in encoders]
    baselines = [name for name in baseline_names() if name in names]
    given = [name for name in names if name not in baselines]
    return [*baselines, *given[:1]]


def difference_table(
    encoders: Sequence[Encoder], scores: Mapping[Key, Scores], tasks: Sequence[str], shots: Shots, mean: str = MEAN,
    withheld: Mapping[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Tabulate paired AUROC differences to each reference: difference, low, high, p, and p corrected (Holm).

    Both encoders use the same support sets and test patients in every replicate, so shared variation cancels. The mean
    over tasks is the primary endpoint: its p values are corrected for the number of pairs of encoders. Those of the
    tasks are secondary, and corrected for all pairs and tasks together. withheld: as in score_table; such tasks are
    not tested.
    """
    reasons = withheld or {}
    rows: list[dict[str, object]] = []
    compared: list[str] = []
    for reference in references(encoders):
        compared.append(reference)
        for encoder in encoders:
            if encoder.name in compared:  # itself, or a pair that is listed already
                continue
            for task, difference in _differences(scores, encoder.name, reference, [*tasks, mean], shots).items():
                cell = _without_interval(estimate(difference), task in reasons)
                rows.append({"encoder": encoder.name, "reference": reference, "task": task, "difference": cell.mean,
                             "low": cell.low, "high": cell.high, "p": cell.p, "withheld": reasons.get(task, "")})
    names = ["encoder", "reference", "task", "difference", "low", "high", "p", "withheld"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=names)
    primary = (table["task"] == mean).to_numpy()
    corrected = np.full(len(table), NAN)
    for family in (primary, ~primary):
        corrected[family] = holm(table["p"].to_numpy(float)[family])
    table.insert(len(names) - 1, "p_holm", corrected)
    return table


def _differences(
    scores: Mapping[Key, Scores], encoder: str, reference: str, tasks: Sequence[str], shots: Shots
) -> dict[str, Scores]:
    """AUROC of the encoder minus that of the reference, on each task on which both were measured."""
    result = {}
    for task in tasks:
        pair = [scores.get(Key(name, LINEAR, shots, task, ALL)) for name in (encoder, reference)]
        if pair[0] is not None and pair[1] is not None:
            result[task] = pair[0].of("auroc") - pair[1].of("auroc")
    return result


def thumbnail_verdicts(differences: pd.DataFrame, mean: str = MEAN) -> list[str]:
    """State for each encoder on which tasks it beats the thumbnail, is worse, or neither is shown.

    It beats the thumbnail if the interval of the difference lies above 0 and the corrected p value, if any, is below
    0.05, and is worse if the interval lies below 0. Tasks without an interval are omitted. mean: the name of the mean
    over tasks.
    """
    verdicts = []
    tasks = differences[differences["reference"] == THUMBNAIL].replace({"task": {mean: "the mean over tasks"}})
    for encoder, cells in tasks[tasks["low"].notna()].groupby("encoder", sort=False):
        wins, loses = (side & ~(cells["p_holm"] >= 0.05) for side in (cells["low"] > 0, cells["high"] < 0))
        kinds = ((wins, "beats"), (loses, "is worse than"), (~wins & ~loses, "is not shown to beat"))
        verdicts.append(" ".join(
            f"{encoder} {verb} the {SIDE}×{SIDE} thumbnail on {_listed([str(task) for task in cells['task'][chosen]])}."
            for chosen, verb in kinds if chosen.any()))  # fmt: skip
    return verdicts


def _listed(words: Sequence[str]) -> str:
    """List words as a sentence does: "A, B and C"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
