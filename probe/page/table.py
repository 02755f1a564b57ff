"""What was measured → a table of estimates, one of paired differences, and how they show."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from probe.encoders import IMAGENET, SCRATCH, SIDE, THUMBNAIL, Encoder
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


class Shown(NamedTuple):
    """A metric of one probe on one of the two test sets, as a table's title names it."""

    metric: str
    test: str
    title: str
    percent: bool = False
    probe: str = LINEAR


MAIN = Shown("auroc", ALL, "AUROC")
TABLES = (
    Shown("accuracy", BALANCED, "Accuracy on balanced test sets, %", True),
    Shown("accuracy", ALL, "Accuracy on all labelled test images, %", True),
    Shown("balanced_accuracy", ALL, "Balanced accuracy on all labelled test images, %", True),
    Shown("auprc", ALL, "AUPRC on all labelled test images"),
    Shown("ece", BALANCED, "Calibration error (ECE) on balanced test sets, lower is better"),
    Shown("auroc", ALL, "AUROC of nearest neighbours (kNN) instead of a linear probe", probe=KNN),
    Shown("auroc", ALL, "AUROC after full fine-tuning on the support set", probe=FINETUNE),
)


class Sheet(NamedTuple):
    """A table as it is shown: a title, the header, and rows of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def with_mean(scores: Mapping[Key, Scores], tasks: Collection[str], mean: str = MEAN) -> dict[Key, Scores]:
    """The same with each encoder's mean over the tasks, replicate by replicate, on whole test sets.

    mean: what the mean is called in place of a task, here and below: probe.names.name_mean of the archive's findings.
    Only where it was measured on all of them: else a curve over shots would step from some tasks to others.
    """
    result = dict(scores)
    for key in scores:
        parts = [scores[one] for task in tasks if (one := key._replace(task=task)) in scores]
        if key.test in (ALL, BALANCED) and 1 < len(parts) == len(tasks):
            result[key._replace(task=mean)] = mean_of(parts)
    return result


def score_table(scores: Mapping[Key, Scores], withheld: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row for each encoder, probe, shots, task, test set and metric: mean, low, high, standard error, draws.

    withheld: tasks whose intervals are not to be trusted, and why (Study.withheld): these are NaN, and the last column
    says the reason.
    """
    reasons = withheld or {}
    rows = []
    for key, found in scores.items():
        for metric in METRICS:
            cell = _without_interval(estimate(found.of(metric)), key.task in reasons)
            rows.append({**key._asdict(), "shots": str(key.shots), "metric": metric, "mean": cell.mean, "low": cell.low,
                         "high": cell.high, "standard_error": cell.error, "draws": len(found.draws),
                         "withheld": reasons.get(key.task, "")})  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _without_interval(cell: Estimate, withheld: bool) -> Estimate:
    return Estimate(cell.mean, NAN, NAN, NAN) if withheld else cell


def references(encoders: Sequence[Encoder]) -> list[str]:
    """What the others are compared with: the baselines, and of several runs the first."""
    names = [encoder.name for encoder in encoders]
    known = [name for name in (SCRATCH, THUMBNAIL, IMAGENET) if name in names]
    given = [name for name in names if name not in known]
    return [*known, *given[:1]]


def difference_table(
    encoders: Sequence[Encoder], scores: Mapping[Key, Scores], tasks: Sequence[str], shots: Shots, mean: str = MEAN,
    withheld: Mapping[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Paired differences of AUROC to each reference: difference, low, high, p, and p corrected over the tasks (Holm).

    Both encoders learn from the same images and are tested on the same in every replicate, so what they share of
    chance cancels. The mean over tasks is a sum of the others and is not counted as a test of its own. withheld: as of
    score_table; such a task is not tested at all.
    """
    reasons = withheld or {}
    rows: list[dict[str, object]] = []
    before: list[str] = []
    for reference in references(encoders):
        before.append(reference)
        for encoder in encoders:
            if encoder.name in before:  # itself, or the same pair once more
                continue
            apart = _apart(scores, encoder.name, reference, [*tasks, mean], shots)
            p_values = {task: NAN if task in reasons else p_value(found) for task, found in apart.items()}
            corrected = dict(zip(tasks, holm([p_values.get(task, NAN) for task in tasks]), strict=True))
            for task, difference in apart.items():
                cell = _without_interval(estimate(difference), task in reasons)
                rows.append({"encoder": encoder.name, "reference": reference, "task": task, "difference": cell.mean,
                             "low": cell.low, "high": cell.high, "p": p_values[task],
                             "p_holm": corrected.get(task, NAN), "withheld": reasons.get(task, "")})  # fmt: skip
    names = ["encoder", "reference", "task", "difference", "low", "high", "p", "p_holm", "withheld"]
    table: pd.DataFrame = pd.DataFrame(rows, columns=names)
    return table


def _apart(
    scores: Mapping[Key, Scores], one: str, other: str, tasks: Sequence[str], shots: Shots
) -> dict[str, Scores]:
    """AUROC of one encoder less the other's, on each task on which both were measured."""
    found = {}
    for task in tasks:
        pair = [scores.get(Key(name, LINEAR, shots, task, ALL)) for name in (one, other)]
        if pair[0] is not None and pair[1] is not None:
            found[task] = pair[0].of("auroc") - pair[1].of("auroc")
    return found


def against_pixels(differences: pd.DataFrame, mean: str = MEAN) -> list[str]:
    """In words, for each encoder, on which tasks it beats the thumbnail and on which not: with its whole interval, and
    where it has a p value corrected over the tasks, with one below 0.05. Of tasks without an interval nothing."""
    said = []
    tasks = differences[(differences["reference"] == THUMBNAIL) & (differences["task"] != mean)]
    for encoder, cells in tasks[tasks["low"].notna()].groupby("encoder", sort=False):
        wins = (cells["low"] > 0) & ~(cells["p_holm"] >= 0.05)
        beaten, open_ = ([str(task) for task in cells["task"][chosen]] for chosen in (wins, ~wins))
        won = f"{encoder} beats the {SIDE}×{SIDE} thumbnail on {', '.join(beaten)}" if beaten else ""
        lost = f"{encoder} is not shown to beat the {SIDE}×{SIDE} thumbnail on {', '.join(open_)}" if open_ else ""
        said.append(". ".join(filter(None, (won, lost))) + ".")
    return said


def format_cell(mean: float, low: float, high: float, *, percent: bool = False, signed: bool = False) -> str:
    """"0.612 [0.598, 0.626]", in % where asked; "n/a" where it was not measured."""
    if pd.isna(mean):
        return "n/a"
    scale, form = (100, "+.1f" if signed else ".1f") if percent else (1, "+.3f" if signed else ".3f")
    shown = f"{mean * scale:{form}}"
    return shown if pd.isna(low) else f"{shown} [{low * scale:{form}}, {high * scale:{form}}]"


def format_estimate(mean: float, low: float, high: float, *, percent: bool = False, signed: bool = False) -> str:
    """As format_cell, with "0.612 [–]" where there is no interval."""
    shown = format_cell(mean, low, high, percent=percent, signed=signed)
    return f"{shown} [–]" if pd.isna(low) and not pd.isna(mean) else shown


def say_withheld(withheld: Mapping[str, str]) -> list[str]:
    """Of which tasks no interval, p value or verdict is given, with the reasons, in a line; none where of all."""
    tasks = [f"{task} ({reason})" for task, reason in withheld.items()]
    return [f"[–]: no interval, p value or verdict for {', '.join(tasks)}; wanted are {LEAST} or more patients with a "
            f"positive and {LEAST} with a negative test image"] if tasks else []  # fmt: skip


def say_assumed(encoders: Sequence[Encoder]) -> list[str]:
    """A line for each encoder of whose input something was assumed."""
    return [f"{one.name}: {one.assumed}, as nothing states them; its figures hold only if they are its own. "
            f"--input={one.name}:… says others" for one in encoders if one.assumed]  # fmt: skip


def format_p(p: float) -> str:
    """"p = 0.015"; never 0, which no test can show; "no p" where there was no test."""
    if pd.isna(p):
        return "no p"
    return f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"


def layout(
    table: pd.DataFrame, shown: Shown, encoders: Sequence[Encoder], tasks: Sequence[str], shots: Shots,
    positive: Mapping[str, float], mean: str = MEAN,
) -> Sheet:  # fmt: skip
    """The published layout of one metric: an encoder a row and a task a column, the mean last; n/a, never 0 or 0.5.

    positive: the share of positives among each task's test images, of which accuracy's line of guessing the commoner
    class and AUPRC's line of guessing are made.
    """
    columns = with_mean_column(tasks, mean)
    chosen = table[(table["metric"] == shown.metric) & (table["test"] == shown.test) & (table["probe"] == shown.probe)
                   & (table["shots"] == str(shots))].set_index(["encoder", "task"])  # fmt: skip
    rows = []
    for encoder in encoders:
        remarks = filter(None, (encoder.missing, encoder.collapsed and "collapsed", encoder.assumed))
        label = f"{encoder.name} ({remark})" if (remark := ", ".join(remarks)) else encoder.name
        rows.append([label, *(_cell(chosen, (encoder.name, task), shown.percent) for task in columns)])
    lines = {("accuracy", ALL): (MAJORITY, {task: max(share, 1 - share) for task, share in positive.items()}),
             ("auprc", ALL): (GUESSING, dict(positive))}  # fmt: skip
    if (shown.metric, shown.test) in lines and shown.probe == LINEAR:
        name, shares = lines[shown.metric, shown.test]
        shares[mean] = float(np.mean(list(shares.values())))
        rows.append([name, *(format_cell(shares.get(task, NAN), NAN, NAN, percent=shown.percent) for task in columns)])
    return Sheet(shown.title, ["", *columns], rows)


def layout_shots(
    table: pd.DataFrame, encoders: Sequence[Encoder], tasks: Sequence[str], all_shots: Iterable[str],
    mean: str = MEAN,
) -> Sheet:  # fmt: skip
    """AUROC by number of shots: an encoder with so many shots a row, a task a column."""
    columns = with_mean_column(tasks, mean)
    chosen = table[(table["metric"] == "auroc") & (table["test"] == ALL) & (table["probe"] == LINEAR)]
    chosen = chosen.set_index(["encoder", "shots", "task"])
    names = {encoder.name: f"{encoder.name} (collapsed)" if encoder.collapsed else encoder.name for encoder in encoders}
    rows = [[f"{names[encoder.name]}, {shots}", *(_cell(chosen, (encoder.name, shots, task)) for task in columns)]
            for encoder in encoders if not encoder.missing for shots in all_shots]  # fmt: skip
    return Sheet("AUROC by labelled examples a class", ["", *columns], rows)


def layout_differences(table: pd.DataFrame) -> Sheet:
    """Paired differences of AUROC: a pair of encoders a row and a task a column."""
    tasks = list(dict.fromkeys(table["task"]))
    rows = []
    for (encoder, reference), cells in table.groupby(["encoder", "reference"], sort=False):
        by_task, row = cells.set_index("task"), [f"{encoder} − {reference}"]
        for task in tasks:
            at = by_task.loc[task] if task in by_task.index else None
            cell = "n/a" if at is None else format_estimate(at["difference"], at["low"], at["high"], signed=True)
            row.append(cell if at is None or pd.isna(at["p_holm"]) else f"{cell}, {format_p(at['p_holm'])}")
        rows.append(row)
    return Sheet("Paired differences of AUROC", ["", *tasks], rows)


def to_markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Titled tables, then the notes."""
    parts = []
    for title, header, rows in sheets:
        escaped = ([_in_markdown(cell) for cell in row] for row in (header, ["---"] * len(header), *rows))
        lines = ("| " + " | ".join(row) + " |" for row in escaped)
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {_without_tags(note)}" for note in notes) + "\n"


def _in_markdown(cell: str) -> str:
    """A table's cell that ends where it ought to: its pipes, and backslashes before them, are text."""
    return re.sub(r"(\\*)\|", r"\1\1\|", _without_tags(cell))


def _without_tags(text: str) -> str:
    """Text on one line in which a name that looks like HTML is shown, not obeyed."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.splitlines()))


def to_latex(sheets: Sequence[Sheet], note: str) -> str:
    r"""The tables as LaTeX, to be \input where booktabs is loaded; the note is in their captions."""
    parts = []
    for title, header, rows in sheets:
        lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in (header, *rows)]
        # LaTeX reads either as an argument of the line break before it.
        lines = ["{}" + line if line.startswith(("[", "*")) else line for line in lines]
        parts.append("\n".join([r"\begin{table}", rf"\caption{{{f'{title}. {note}'.translate(LATEX)}}}",
                                rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", lines[0], r"\midrule",
                                *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def with_mean_column(tasks: Sequence[str], mean: str = MEAN) -> list[str]:
    """The tasks and, where they are several, their mean."""
    return [*tasks, mean] if len(tasks) > 1 else list(tasks)


def _cell(by_key: pd.DataFrame, key: tuple[str, ...], percent: bool = False) -> str:
    if key not in by_key.index:
        return format_cell(NAN, NAN, NAN)
    mean, low, high = (float(by_key[name][key]) for name in ("mean", "low", "high"))
    return format_estimate(mean, low, high, percent=percent)
