"""Scores → table.csv for machines, table.md for people."""

from __future__ import annotations

import pandas as pd

from probe.encoders import Encoder
from probe.linear import Scores, interval

METRICS = {"auroc": "AUROC", "accuracy": "Accuracy"}
MEAN = "Mean"  # the column over all tasks


def score_table(encoders: list[Encoder], scores: dict[tuple[str, str], Scores], tasks: list[str]) -> pd.DataFrame:
    """One row for each encoder, task (and the mean of tasks) and metric: mean, low, high, sd over draws.

    scores: by (encoder name, task). A cell that was not measured is NaN, never 0 or 0.5.
    """
    rows = []
    for encoder in encoders:
        measured = [scores[encoder.name, task] for task in tasks if (encoder.name, task) in scores]
        for metric in METRICS:
            values = {task: getattr(scores[encoder.name, task], metric) for task in tasks if (encoder.name, task) in scores}
            if measured and len(measured) > 1:
                values[MEAN] = sum(values.values()) / len(measured)  # draw by draw, so its interval is over draws too
            for task in [*tasks, *([MEAN] if len(tasks) > 1 else [])]:
                drawn = values.get(task)
                mean, low, high = (float("nan"),) * 3 if drawn is None else interval(drawn)
                rows.append({"encoder": encoder.name, "task": task, "metric": metric, "mean": mean, "low": low, "high": high,
                             "sd": float("nan") if drawn is None or len(drawn) < 2 else float(drawn.std(ddof=1)),
                             "draws": 0 if drawn is None else len(drawn)})  # fmt: skip
    return pd.DataFrame(rows)


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
        shown = (format_cell(*(float(by_task.loc[task, name]) for name in ("mean", "low", "high")), metric) for task in tasks)
        rows.append([str(encoder), *shown])
    return ["", *tasks], rows


def to_markdown(table: pd.DataFrame, notes: list[str]) -> str:
    """Both metrics in the published layout, then the notes."""
    parts = []
    for metric, title in METRICS.items():
        header, rows = layout(table, metric)
        unit = ", %" if metric == "accuracy" else ""
        lines = [f"**{title}{unit}**", "", *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
