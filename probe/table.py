"""Scores → table.csv for machines, table.md for people."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from probe.encoders import Encoder
from probe.linear import Scores, interval

METRICS = {"auroc": "AUROC", "accuracy": "Accuracy, %"}
MEAN = "Mean"  # the column over all tasks


def score_table(encoders: list[Encoder], scores: dict[tuple[str, str], Scores], tasks: list[str]) -> pd.DataFrame:
    """One row for each encoder, task (and the mean of tasks) and metric: mean, low, high, sd over draws.

    scores: by (encoder name, task). A cell that was not measured is NaN, never 0 or 0.5.
    """
    rows = []
    for encoder in encoders:
        measured = {task: scores[encoder.name, task] for task in tasks if (encoder.name, task) in scores}
        for metric in METRICS:
            values = {task: getattr(drawn, metric) for task, drawn in measured.items()}
            if values:
                # Draw by draw, so that its interval is over draws too.
                values[MEAN] = np.mean(list(values.values()), axis=0)
            for task in [*tasks, MEAN] if len(tasks) > 1 else tasks:
                row = {"encoder": encoder.name, "missing": encoder.missing, "task": task, "metric": metric}
                rows.append({**row, **_summarise(values.get(task))})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _summarise(drawn: npt.NDArray[np.float64] | None) -> dict[str, float]:
    if drawn is None:
        return {**dict.fromkeys(("mean", "low", "high", "sd"), float("nan")), "draws": 0}
    mean, low, high = interval(drawn)
    sd = float(drawn.std(ddof=1)) if len(drawn) > 1 else float("nan")
    return {"mean": mean, "low": low, "high": high, "sd": sd, "draws": len(drawn)}


def format_cell(mean: float, low: float, high: float, metric: str) -> str:
    """"0.612 [0.598, 0.626]", accuracy in %; "n/a" where it was not measured."""
    if pd.isna(mean):
        return "n/a"
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    shown = f"{mean * scale:.{digits}f}"
    return shown if pd.isna(low) else f"{shown} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def layout(table: pd.DataFrame, metric: str) -> tuple[list[str], list[list[str]]]:
    """The published layout of one metric: (header, rows), an encoder a row and a task a column."""
    chosen = table[table["metric"] == metric]
    tasks = list(dict.fromkeys(chosen["task"]))
    rows = []
    for encoder, cells in chosen.groupby("encoder", sort=False):
        by_task = cells.set_index("task")
        values = ([float(by_task[name][task]) for name in ("mean", "low", "high")] for task in tasks)
        missing = cells["missing"].iloc[0]
        label = f"{encoder} ({missing})" if missing else str(encoder)
        rows.append([label, *(format_cell(mean, low, high, metric) for mean, low, high in values)])
    return ["", *tasks], rows


def to_markdown(table: pd.DataFrame, notes: list[str]) -> str:
    """Both metrics in the published layout, then the notes."""
    parts = []
    for metric in METRICS:
        header, rows = layout(table, metric)
        lines = ("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
        parts.append("\n".join([f"**{METRICS[metric]}**", "", *lines]))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
