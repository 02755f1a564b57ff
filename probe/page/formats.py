"""Format estimates, p values and notes as text, and sheets as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from probe.slices import LEAST

LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\^{}", "−": "$-$", "×": r"$\times$", "<": "$<$",
    ">": "$>$", "|": "$|$", "\n": " ",
})  # fmt: skip


class Sheet(NamedTuple):
    """A table as text: title, header and rows. words: whether its cells are text and not estimates."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: bool = False


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


def format_p(p: float) -> str:
    """Format a p value, "p = 0.015" or "p < 0.001", never 0; "no p" if there was no test."""
    if pd.isna(p):
        return "no p"
    return f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"


def withheld_note(withheld: Mapping[str, str]) -> list[str]:
    """A note on the tasks without an interval, with the reasons; [] if there are none."""
    tasks = [f"{task} ({reason})" for task, reason in withheld.items()]
    return [f"[–]: no interval, p value or verdict for {', '.join(tasks)}; these need {LEAST} or more patients with a "
            f"positive and {LEAST} or more with a negative test image"] if tasks else []  # fmt: skip


def to_markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Write titled tables, then the notes, as Markdown."""
    parts = []
    for sheet in sheets:
        ruled = (sheet.header, ["---"] * len(sheet.header), *sheet.rows)
        lines = ("| " + " | ".join(map(_in_markdown, row)) + " |" for row in ruled)
        parts.append("\n".join([f"**{sheet.title}**", "", *lines]))
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
    for sheet in sheets:
        lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in (sheet.header, *sheet.rows)]
        # After a line break LaTeX would read "[" or "*" as its argument.
        lines = ["{}" + line if line.startswith(("[", "*")) else line for line in lines]
        parts.append("\n".join([r"\begin{table}", rf"\caption{{{f'{sheet.title}. {note}'.translate(LATEX)}}}",
                                rf"\begin{{tabular}}{{l{('l' if sheet.words else 'r') * (len(sheet.header) - 1)}}}",
                                r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}",
                                r"\end{table}"]))  # fmt: skip
    return "\n\n".join(parts) + "\n"
