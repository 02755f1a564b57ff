"""Tables of estimates and of paired differences, and their layout as text, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from probe.baselines import SIDE, THUMBNAIL, baseline_names
from probe.encoder import Encoder
from probe.fewshot import Shots
from probe.measure import ALL, BALANCED, FINETUNE, KNN, LINEAR, Key
from probe.names import GUESSING, MAJORITY, MEAN
from probe.slices import LEAST
from probe.statistics import METRICS, Estimate, Scores, estimate, holm, mean_of, p_value

NAN = float("nan")
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\^{}", "−": "$-$", "×": r"$\times$", "<": "$<$",
    ">": "$>$", "|": "$|$", "\n": " ",
})  # fmt: skip


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


class Sheet(NamedTuple):
    """A table as text: title, header and rows."""

    title: str
    header: list[str]
    rows: list[list[str]]


def all_tables() -> list[TableSpec]:
    """TABLES, and a table on all labelled test images for each further metric of METRICS."""
    shown = {spec.metric for spec in (MAIN, *TABLES)}
    return [*TABLES, *(TableSpec(metric, ALL, f"{metric} on all labelled test images") for metric in METRICS
                       if metric not in shown)]  # fmt: skip


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
            rows.append({**key._asdict(), "shots": str(key.shots), "metric": metric, "mean": cell.mean, "low": cell.low,
                         "high": cell.high, "standard_error": cell.error, "draws": len(score.draws),
                         "withheld": reasons.get(key.task, "")})  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _without_interval(cell: Estimate, withheld: bool) -> Estimate:
    return Estimate(cell.mean, NAN, NAN, NAN) if withheld else cell


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
    """Tabulate paired AUROC differences to each reference: difference, low, high, p, and p corrected over tasks (Holm).

    Both encoders use the same support sets and test patients in every replicate, so shared variation cancels. The mean
    over tasks depends on the tasks and is not counted as a further test. withheld: as in score_table; such tasks are
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
            apart = _differences(scores, encoder.name, reference, [*tasks, mean], shots)
            p_values = {task: NAN if task in reasons else p_value(score) for task, score in apart.items()}
            corrected = dict(zip(tasks, holm([p_values.get(task, NAN) for task in tasks]), strict=True))
            for task, difference in apart.items():
                cell = _without_interval(estimate(difference), task in reasons)
                rows.append({"encoder": encoder.name, "reference": reference, "task": task, "difference": cell.mean,
                             "low": cell.low, "high": cell.high, "p": p_values[task],
                             "p_holm": corrected.get(task, NAN), "withheld": reasons.get(task, "")})  # fmt: skip
    names = ["encoder", "reference", "task", "difference", "low", "high", "p", "p_holm", "withheld"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=names)
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
    """State for each encoder on which tasks it beats the thumbnail, and on which this is not shown.

    It beats the thumbnail if the interval lies above 0 and the corrected p value, if any, is below 0.05. Tasks without
    an interval are omitted.
    """
    verdicts = []
    tasks = differences[(differences["reference"] == THUMBNAIL) & (differences["task"] != mean)]
    for encoder, cells in tasks[tasks["low"].notna()].groupby("encoder", sort=False):
        wins = (cells["low"] > 0) & ~(cells["p_holm"] >= 0.05)
        beaten, undecided = ([str(task) for task in cells["task"][chosen]] for chosen in (wins, ~wins))
        sentences = [f"{encoder} beats the {SIDE}×{SIDE} thumbnail on {', '.join(beaten)}"] if beaten else []
        if undecided:
            sentences.append(f"{encoder} is not shown to beat the {SIDE}×{SIDE} thumbnail on {', '.join(undecided)}")
        verdicts.append(". ".join(sentences) + ".")
    return verdicts


def format_cell(mean: float, low: float, high: float, *, percent: bool = False, signed: bool = False) -> str:
    """Format an estimate, "0.612 [0.598, 0.626]", or in percent; "n/a" if it was not measured."""
    if pd.isna(mean):
        return "n/a"
    scale, form = (100, "+.1f" if signed else ".1f") if percent else (1, "+.3f" if signed else ".3f")
    shown = f"{mean * scale:{form}}"
    return shown if pd.isna(low) else f"{shown} [{low * scale:{form}}, {high * scale:{form}}]"


def format_estimate(mean: float, low: float, high: float, *, percent: bool = False, signed: bool = False) -> str:
    """Format as format_cell does, with "0.612 [–]" if there is no interval."""
    shown = format_cell(mean, low, high, percent=percent, signed=signed)
    return f"{shown} [–]" if pd.isna(low) and not pd.isna(mean) else shown


def withheld_note(withheld: Mapping[str, str]) -> list[str]:
    """A note on the tasks without an interval, with the reasons; [] if there are none."""
    tasks = [f"{task} ({reason})" for task, reason in withheld.items()]
    return [f"[–]: no interval, p value or verdict for {', '.join(tasks)}; they need {LEAST} or more patients with a "
            f"positive and {LEAST} or more with a negative test image"] if tasks else []  # fmt: skip


def assumption_notes(encoders: Sequence[Encoder]) -> list[str]:
    """A note for each encoder whose preprocessing is assumed."""
    return [f"{encoder.name}: {encoder.assumed}, as none are stated; its results are valid only if it was trained with "
            f"them. Override with --input={encoder.name}:…" for encoder in encoders if encoder.assumed]  # fmt: skip


def format_p(p: float) -> str:
    """Format a p value, "p = 0.015" or "p < 0.001", never 0; "no p" if there was no test."""
    if pd.isna(p):
        return "no p"
    return f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"


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
        remarks = filter(None, (encoder.missing, encoder.collapsed and "collapsed", encoder.assumed))
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


def to_markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Write titled tables, then the notes, as Markdown."""
    parts = []
    for title, header, rows in sheets:
        escaped = ([_in_markdown(cell) for cell in row] for row in (header, ["---"] * len(header), *rows))
        lines = ("| " + " | ".join(row) + " |" for row in escaped)
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {_without_tags(note)}" for note in notes) + "\n"


def _in_markdown(cell: str) -> str:
    """Escape a cell's pipes, and backslashes before them, so that they do not end the cell."""
    return re.sub(r"(\\*)\|", r"\1\1\|", _without_tags(cell))


def _without_tags(text: str) -> str:
    """Put text on one line and escape what looks like an HTML tag, such as a finding's name."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.splitlines()))


def to_latex(sheets: Sequence[Sheet], note: str) -> str:
    r"""Write the tables as LaTeX, for \input with booktabs loaded, with the note in their captions."""
    parts = []
    for title, header, rows in sheets:
        lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in (header, *rows)]
        # After a line break LaTeX would read "[" or "*" as its argument.
        lines = ["{}" + line if line.startswith(("[", "*")) else line for line in lines]
        parts.append("\n".join([r"\begin{table}", rf"\caption{{{f'{title}. {note}'.translate(LATEX)}}}",
                                rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", lines[0], r"\midrule",
                                *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def with_mean_column(tasks: Sequence[str], mean: str = MEAN) -> list[str]:
    """The tasks, and their mean if there are several."""
    return [*tasks, mean] if len(tasks) > 1 else list(tasks)


def _cell(by_key: pd.DataFrame, key: tuple[str, ...], percent: bool = False) -> str:
    if key not in by_key.index:
        return format_cell(NAN, NAN, NAN)
    mean, low, high = (float(by_key[name][key]) for name in ("mean", "low", "high"))
    return format_estimate(mean, low, high, percent=percent)
