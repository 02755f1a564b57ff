"""Scores → the figures of a report: one table of estimates, one of paired differences; as CSV and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from probe.encoders import THUMBNAIL, Encoder
from probe.statistics import METRICS, Estimate, Scores, estimate, holm, mean_of, p_value

MEAN = "Mean"  # the column over all tasks
BALANCED, ALL = "balanced", "all"
REFERENCES = ("Scratch", THUMBNAIL, "ImageNet")  # what the others are compared with
Replicates = dict[tuple[str, str, str], Scores]  # by encoder, task and test set: probe.statistics.score


class Shown(NamedTuple):
    """A metric on one of the two test sets, as a table's title names it."""

    metric: str
    test: str
    title: str
    percent: bool = False


TABLES = (
    Shown("auroc", ALL, "AUROC"),
    Shown("accuracy", BALANCED, "Accuracy on balanced test sets, %", True),
    Shown("accuracy", ALL, "Accuracy on all labelled test images, %", True),
    Shown("balanced_accuracy", ALL, "Balanced accuracy on all labelled test images, %", True),
    Shown("auprc", ALL, "AUPRC on all labelled test images"),
    Shown("ece", BALANCED, "Calibration error (ECE) on balanced test sets, lower is better"),
)


def with_mean(replicates: Replicates, encoders: Sequence[Encoder], tasks: Sequence[str]) -> Replicates:
    """The same with each encoder's mean over the tasks that were measured, replicate by replicate."""
    result = dict(replicates)
    for encoder in encoders:
        for test in (BALANCED, ALL):
            measured = [replicates[key] for task in tasks if (key := (encoder.name, task, test)) in replicates]
            if measured and len(tasks) > 1:
                result[encoder.name, MEAN, test] = mean_of(measured)
    return result


def score_table(encoders: Sequence[Encoder], replicates: Replicates, tasks: Sequence[str], draws: int) -> pd.DataFrame:
    """One row for each encoder, task (and the mean of tasks), test set and metric: mean, low, high, standard error.

    replicates: with_mean's. A cell that was not measured is NaN, never 0 or 0.5.
    """
    rows = []
    for encoder in encoders:
        for task in _columns(tasks):
            for test in (BALANCED, ALL):
                found = replicates.get((encoder.name, task, test))
                for metric in METRICS:
                    cell = Estimate(*[np.nan] * 4) if found is None else estimate(found.of(metric))
                    rows.append({"encoder": encoder.name, "missing": encoder.missing, "task": task, "test": test,
                                 "metric": metric, "mean": cell.mean, "low": cell.low, "high": cell.high,
                                 "standard_error": cell.error, "draws": 0 if found is None else draws})  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def difference_table(encoders: Sequence[Encoder], replicates: Replicates, tasks: Sequence[str]) -> pd.DataFrame:
    """Paired differences of AUROC to each reference: difference, low, high, p, and p corrected over the tasks (Holm).

    Both encoders learn from the same images and are tested on the same in every replicate, so what they share of
    chance cancels. The mean over tasks is a sum of the others and is not counted as a test of its own.
    """
    rows: list[dict[str, object]] = []
    for reference in REFERENCES:
        for encoder in encoders:
            if encoder.name in REFERENCES[: REFERENCES.index(reference) + 1]:  # itself, or the same pair once more
                continue
            pairs = {task: (replicates.get((encoder.name, task, ALL)), replicates.get((reference, task, ALL)))
                     for task in _columns(tasks)}  # fmt: skip
            apart = {task: one.of("auroc") - other.of("auroc") for task, (one, other) in pairs.items()
                     if one is not None and other is not None}  # fmt: skip
            if not apart:
                continue
            corrected = dict(zip(tasks, holm([p_value(apart[task]) if task in apart else np.nan for task in tasks]),
                                 strict=True))  # fmt: skip
            for task, difference in apart.items():
                cell = estimate(difference)
                rows.append({"encoder": encoder.name, "reference": reference, "task": task, "difference": cell.mean,
                             "low": cell.low, "high": cell.high, "p": p_value(difference),
                             "p_holm": corrected.get(task, np.nan)})  # fmt: skip
    names = ["encoder", "reference", "task", "difference", "low", "high", "p", "p_holm"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=names)
    return table


def against_pixels(differences: pd.DataFrame) -> list[str]:
    """In words, for each encoder, on which tasks it beats the thumbnail with its whole interval, and on which not."""
    said = []
    tasks = differences[(differences["reference"] == THUMBNAIL) & (differences["task"] != MEAN)]
    for encoder, cells in tasks.groupby("encoder", sort=False):
        beaten = [str(task) for task in cells["task"][cells["low"] > 0]]
        open_ = [str(task) for task in cells["task"][~(cells["low"] > 0)]]
        won = f"{encoder} beats the 16×16 thumbnail on {', '.join(beaten)}" if beaten else ""
        lost = f"{encoder} does not beat the 16×16 thumbnail, with its whole interval, on {', '.join(open_)}"
        said.append(". ".join(part for part in (won, lost if open_ else "") if part) + ".")
    return said


def majority_shares(test_labels: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]) -> dict[str, float]:
    """The accuracy of guessing the commoner class of each task's test images."""
    return {task: float(max(labels.mean(), 1 - labels.mean())) for task, labels in test_labels.items()}


def format_cell(mean: float, low: float, high: float, *, percent: bool = False, signed: bool = False) -> str:
    """"0.612 [0.598, 0.626]", in % where asked; "n/a" where it was not measured."""
    if pd.isna(mean):
        return "n/a"
    scale, form = (100, "+.1f" if signed else ".1f") if percent else (1, "+.3f" if signed else ".3f")
    shown = f"{mean * scale:{form}}"
    return shown if pd.isna(low) else f"{shown} [{low * scale:{form}}, {high * scale:{form}}]"


def layout(
    table: pd.DataFrame, shown: Shown, majority: dict[str, float] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The published layout of one metric: (header, rows), an encoder a row and a task a column.

    majority: the line of guessing the commoner class, shown below accuracy on all test images.
    """
    chosen = table[(table["metric"] == shown.metric) & (table["test"] == shown.test)]
    tasks = list(dict.fromkeys(chosen["task"]))
    rows = []
    for encoder, cells in chosen.groupby("encoder", sort=False):
        missing = cells["missing"].iloc[0]
        label = f"{encoder} ({missing})" if missing else str(encoder)
        rows.append([label, *_cells(cells, tasks, shown.percent)])
    if majority and (shown.metric, shown.test) == ("accuracy", ALL):
        nan = float("nan")
        mean = float(np.mean(list(majority.values())))
        rows.append(["Majority class", *(format_cell(majority.get(task, mean if task == MEAN else nan), nan, nan,
                                                     percent=True) for task in tasks)])  # fmt: skip
    return ["", *tasks], rows


def layout_differences(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Paired differences of AUROC: (header, rows), a pair of encoders a row and a task a column."""
    tasks = list(dict.fromkeys(table["task"]))
    rows = []
    for (encoder, reference), cells in table.groupby(["encoder", "reference"], sort=False):
        by_task, row = cells.set_index("task"), [f"{encoder} − {reference}"]
        for task in tasks:
            at = by_task.loc[task] if task in by_task.index else None
            cell = "n/a" if at is None else format_cell(at["difference"], at["low"], at["high"], signed=True)
            row.append(cell if at is None or pd.isna(at["p_holm"]) else f"{cell}, p = {at['p_holm']:.3f}")
        rows.append(row)
    return ["", *tasks], rows


def to_markdown(tables: Sequence[tuple[str, list[str], list[list[str]]]], notes: Sequence[str]) -> str:
    """Titled tables, then the notes."""
    parts = []
    for title, header, rows in tables:
        lines = ("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _cells(cells: pd.DataFrame, tasks: Sequence[str], percent: bool) -> list[str]:
    by_task = cells.set_index("task")
    values = ([float(by_task[name][task]) for name in ("mean", "low", "high")] for task in tasks)
    return [format_cell(mean, low, high, percent=percent) for mean, low, high in values]


def _columns(tasks: Sequence[str]) -> list[str]:
    return [*tasks, MEAN] if len(tasks) > 1 else list(tasks)
