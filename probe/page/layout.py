"""Lay out the tables of the page as text: which metrics, probes and test sets, in which rows and columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from probe.encoder import Encoder
from probe.fewshot import Shots
from probe.labels_needed import Needed, labels_needed
from probe.linear import INVERSE_L2
from probe.measure import ALL, BALANCED, FINETUNE, KNN, LINEAR, STRENGTHS, Key
from probe.metrics import METRICS
from probe.names import GUESSING, MAJORITY, MEAN
from probe.page.formats import Sheet, format_cell, format_estimate, format_p
from probe.statistics import Scores

NAN = float("nan")


class TableSpec(NamedTuple):
    """A table of the page: a metric of METRICS, for one probe on one test set, and its title."""

    metric: str
    test: str
    title: str
    percent: bool = False
    probe: str = LINEAR

MAIN = TableSpec("auroc", ALL, "AUROC")

# The tables under "Other metrics". A metric of METRICS that is not here gets a table named after it (all_tables).
TABLES = (
    TableSpec("accuracy", BALANCED, "Accuracy on balanced test sets, %", True),
    TableSpec("accuracy", ALL, "Accuracy on all labelled test images, %", True),
    TableSpec("balanced_accuracy", ALL, "Balanced accuracy on all labelled test images, %", True),
    TableSpec("auprc", ALL, "AUPRC on all labelled test images"),
    TableSpec("ece", BALANCED, "Calibration error (ECE) on balanced test sets, lower is better"),
    TableSpec("auroc", ALL, "AUROC of nearest neighbours (kNN) instead of the linear probe", probe=KNN),
    TableSpec("auroc", ALL, "AUROC after full fine-tuning on the support set", probe=FINETUNE),
)


def all_tables() -> list[TableSpec]:
    """TABLES, and a table on all labelled test images for each further metric of METRICS."""
    shown = {spec.metric for spec in (MAIN, *TABLES)}
    return [*TABLES, *(TableSpec(metric, ALL, f"{metric} on all labelled test images") for metric in METRICS
                       if metric not in shown)]  # fmt: skip


def layout(
    table: pd.DataFrame, spec: TableSpec, encoders: Sequence[Encoder], tasks: Sequence[str], shots: Shots,
    positive: Mapping[str, float], mean: str = MEAN,
) -> Sheet:  # fmt: skip
    """Lay out one metric as in the published study: a row per encoder, a column per task, the mean last.

    Cells that were not measured are n/a. positive: the share of positives among each task's test images; it gives the
    row of the majority class for accuracy, and of guessing for AUPRC.
    """
    columns = with_mean_column(tasks, mean)
    chosen = table[(table["metric"] == spec.metric) & (table["test"] == spec.test) & (table["probe"] == spec.probe)
                   & (table["shots"] == str(shots))].set_index(["encoder", "task"])  # fmt: skip
    rows = []
    for encoder in encoders:
        remarks = filter(None, (encoder.missing, encoder.collapsed and "collapsed"))
        label = f"{encoder.name} ({remark})" if (remark := ", ".join(remarks)) else encoder.name
        rows.append([label, *(_cell(chosen, (encoder.name, task), spec.percent) for task in columns)])
    chance = {("accuracy", ALL): (MAJORITY, {task: max(share, 1 - share) for task, share in positive.items()}),
              ("auprc", ALL): (GUESSING, dict(positive))}  # fmt: skip
    if (spec.metric, spec.test) in chance and spec.probe == LINEAR:
        name, shares = chance[spec.metric, spec.test]
        shares[mean] = float(np.mean(list(shares.values())))
        rows.append([name, *(format_cell(shares.get(task, NAN), NAN, NAN, percent=spec.percent) for task in columns)])
    return Sheet(spec.title, ["", *columns], rows)


def layout_shots(
    table: pd.DataFrame, encoders: Sequence[Encoder], tasks: Sequence[str], all_shots: Iterable[str],
    mean: str = MEAN,
) -> Sheet:  # fmt: skip
    """Lay out AUROC by number of shots: a row per encoder and number, a column per task."""
    columns = with_mean_column(tasks, mean)
    chosen = table[(table["metric"] == "auroc") & (table["test"] == ALL) & (table["probe"] == LINEAR)]
    chosen = chosen.set_index(["encoder", "shots", "task"])
    rows = [[f"{encoder.label}, {shots}", *(_cell(chosen, (encoder.name, shots, task)) for task in columns)]
            for encoder in encoders if not encoder.missing for shots in all_shots]  # fmt: skip
    return Sheet("AUROC by labelled examples per class", ["", *columns], rows)


def layout_needed(
    scores: Mapping[Key, Scores], encoders: Sequence[Encoder], tasks: Sequence[str], targets: Sequence[float],
    withheld: Collection[str], mean: str = MEAN,
) -> Sheet | None:  # fmt: skip
    """Lay out how many labelled examples per class reach each AUROC; None if no task has enough numbers of shots.

    scores: with the mean over tasks. withheld: tasks without an interval.
    """
    columns, rows, most = with_mean_column(tasks, mean), [], 0
    for encoder in encoders:
        for target in targets:
            row = []
            for task in columns:
                curve = {key.shots: score.of("auroc") for key, score in scores.items()
                         if (key.encoder, key.probe, key.task, key.test) == (encoder.name, LINEAR, task, ALL)
                         and isinstance(key.shots, int)}  # fmt: skip
                most = max([most, *curve])
                row.append(_needed(labels_needed(curve, target), max(curve, default=0), task in withheld))
            rows.append([f"{encoder.label}, AUROC {target:g}", *row])
    rows = [row for row in rows if set(row[1:]) != {"n/a"}]
    title = f"Labelled examples per class needed for an AUROC (beyond {most}: extrapolated)"
    return Sheet(title, ["", *columns], rows, words=True) if rows else None


def _needed(needed: Needed | None, most: int, withheld: bool) -> str:
    if needed is None:
        return "n/a"
    labels, low, high = (f"{np.ceil(number - 1e-9):.0f}" if np.isfinite(number) else "not reached"
                         for number in needed)  # fmt: skip
    interval = " [–]" if withheld else f" [{low}, {high}]" if low != high else ""
    return f"{labels}{interval}" + " (extrapolated)" * (most < needed.labels < np.inf)


def layout_strengths(
    table: pd.DataFrame, encoders: Sequence[Encoder], tasks: Sequence[str], shots: Shots, mean: str = MEAN
) -> Sheet:  # fmt: skip
    """Lay out the AUROC of linear probes by their penalty: rows are encoder and C, columns are tasks."""
    columns = with_mean_column([task for task in tasks if task in set(table["task"])], mean)
    chosen = table[(table["metric"] == "auroc") & (table["test"] == ALL) & (table["shots"] == str(shots))]
    by_key = chosen.set_index(["encoder", "probe", "task"])
    probes = {strength: probe for probe, strength in STRENGTHS.items()} | {INVERSE_L2: LINEAR}
    rows = [[f"{encoder.label}, C = {strength:g}",
             *(_cell(by_key, (encoder.name, probes[strength], task)) for task in columns)]
            for encoder in encoders if not encoder.missing for strength in sorted(probes)]  # fmt: skip
    return Sheet("AUROC by the strength of the penalty", ["", *columns], rows)


def layout_differences(table: pd.DataFrame) -> Sheet:
    """Lay out paired differences in AUROC: a row per pair of encoders, a column per task."""
    tasks = list(dict.fromkeys(table["task"]))
    rows = []
    for (encoder, reference), cells in table.groupby(["encoder", "reference"], sort=False):
        by_task, row = cells.set_index("task"), [f"{encoder} − {reference}"]
        for task in tasks:
            at = by_task.loc[task] if task in by_task.index else None
            cell = "n/a" if at is None else format_estimate(at["difference"], at["low"], at["high"], signed=True)
            row.append(cell if at is None or pd.isna(at["p_holm"]) else f"{cell}, {format_p(at['p_holm'])}")
        rows.append(row)
    return Sheet("Paired differences in AUROC", ["", *tasks], rows)


def with_mean_column(tasks: Sequence[str], mean: str = MEAN) -> list[str]:
    """The tasks, and their mean if there are several."""
    return [*tasks, mean] if len(tasks) > 1 else list(tasks)


def _cell(by_key: pd.DataFrame, key: tuple[str, ...], percent: bool = False) -> str:
    if key not in by_key.index:
        return format_cell(NAN, NAN, NAN)
    mean, low, high = (float(by_key[name][key]) for name in ("mean", "low", "high"))
    return format_estimate(mean, low, high, percent=percent)
