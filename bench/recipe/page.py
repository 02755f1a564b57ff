"""Render the recipe study: docs/recipe.md and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.recipe.evaluation import MEAN, SHOTS
from bench.recipe.result import LOSS, ONLINE, RunResult
from probe.page.formats import format_estimate, format_p, withheld_note
from probe.statistics import Effect
from shard.files import atomic_write, write_bytes
from shard.plain_json import without_nan


@dataclass(frozen=True)
class Row:
    """A cell or baseline: AUROC by task, differences to the published recipe and the thumbnail, results of its runs."""

    name: str
    settings: dict[str, Any]
    auroc: dict[str, float]
    to_published: dict[str, Effect]
    to_thumbnail: dict[str, Effect]
    runs: list[RunResult]


@dataclass(frozen=True)
class Claim:
    """The chosen cell on test patients.

    shards: the fingerprint of the shards. auroc: by task; references: name → AUROC by task. differences: to each
    reference, by task. withheld: task → reason, for tasks with too few patients for an interval or a p value.
    """

    cell: str
    shards: str
    draws: int
    seeds: int
    auroc: dict[str, float]
    references: dict[str, dict[str, float]]
    differences: dict[str, dict[str, Effect]]
    withheld: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, with None for NaN."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Claim:
        """Restore a claim from the output of `plain`."""
        def effect_of(values: list[Any]) -> Effect:
            return Effect._make(math.nan if value is None else value for value in values)

        differences = {name: {task: effect_of(effect) for task, effect in effects.items()}
                       for name, effects in plain["differences"].items()}  # fmt: skip
        return Claim(**{**plain, "differences": differences})


@dataclass(frozen=True)
class Page:
    """The contents of the page. withheld: of the validation patients, as in Claim."""

    shards: str
    counts: dict[str, dict[str, int]]
    draws: int
    base: dict[str, Any]
    rows: list[Row]
    best: str
    claim: Claim | None
    machine: dict[str, str | int]
    withheld: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The tasks, and the mean over them."""
        return list(self.rows[0].auroc)

    def text(self) -> str:
        """Render the page in Markdown, without the text above the line of dashes and the figure."""
        base = ", ".join(f"{name} {value}" for name, value in self.base.items() if not name.endswith("every"))
        splits = ", ".join(f"{split} {count['images']} images of {count['patients']} patients"
                           for split, count in self.counts.items())  # fmt: skip
        parts = [
            f"Trained on {splits}. Every cell: {base}, unless it changes them; {self.draws} draws of {SHOTS} shots, "
            "the same for all.",
            "## On validation patients: the choice\n\nMean AUROC over draws and seeds.\n\n" + self._cells(),
            "Differences of AUROC to the published recipe with the same size and epochs, and to the thumbnail, with 95 "
            "% intervals over draws, patients and seeds; for a cell with one seed, over draws and patients. p: of the "
            "mean over tasks, two-sided, corrected for the number of cells (Holm).\n\n" + self._differences(),
            *withheld_note(self.withheld),
            f"Chosen among the cells with every seed, by the mean over tasks: **{self.best}**.",
        ]
        if self.claim is not None:
            parts.append(self._claim(self.claim))
        return "\n\n".join(parts)

    def _cells(self) -> str:
        lines = [[row.name, _format_settings(row.settings), *(f"{row.auroc[task]:.3f}" for task in self.columns),
                  *([str(len(row.runs)), f"{_mean_seconds(row) / 60:.1f}"] if row.runs else ["", ""])]
                 for row in self.rows]  # fmt: skip
        return table(["cell", "changes", *self.columns, "seeds", "minutes per run"], lines)

    def _differences(self) -> str:
        lines = []
        for row in self.rows:
            for name, effects in (("published", row.to_published), ("thumbnail", row.to_thumbnail)):
                if effects:
                    columns = [_format_effect(effects[task]) for task in self.columns]
                    lines.append([row.name, name, *columns, format_p(effects[MEAN].p)])
        return table(["cell", "less", *self.columns, "p"], lines)

    def _claim(self, claim: Claim) -> str:
        tasks = [task for task in self.columns if task != MEAN]
        auroc = {claim.cell: claim.auroc, **claim.references}
        scores = [[name, *(f"{by_task[task]:.3f}" for task in self.columns)] for name, by_task in auroc.items()]
        differences = [
            [f"less {name}", *(f"{_format_effect(effects[task])}, {format_p(effects[task].p)}" for task in tasks)]
            for name, effects in claim.differences.items()
        ]
        return (f"## On test patients: the claim\n\nEvaluated once: {claim.cell}, {claim.seeds} seeds, {claim.draws} "
                f"draws.\n\n{table(['', *self.columns], scores)}\n\n{table(['difference', *tasks], differences)}\n\n"
                "Intervals of 95 % over draws, patients and seeds; p corrected for all comparisons shown (Holm)."
                + "".join(f"\n\n{line}" for line in withheld_note(claim.withheld)))  # fmt: skip


def write_page(path: Path, page: Page) -> None:
    """Write the page and its figure, with the suffix .svg. Keeps existing text above the first line of dashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = path.with_suffix(".svg")
    _plot(figure, page)
    machine = ", ".join(f"{name} {value}" for name, value in page.machine.items())
    text = path.read_text() if path.exists() else "# Which recipe makes ten shots count"
    introduction = text.split("\n---\n")[0].rstrip()
    total = sum(run.seconds for row in page.rows for run in row.runs) / 3600
    text = (f"{introduction}\n\n---\n\n{page.text()}\n\n"
            f"![The online probe and the loss of each cell]({figure.name})\n\n"
            f"All runs: {total:.1f} hours; the page was written on {machine}.\n")
    write_bytes(path, text.encode())


def _plot(path: Path, page: Page) -> None:
    """Plot each cell's online probe (AUROC on training patients) and loss over epochs, averaged over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for row in page.rows:
        style: dict[str, Any] = {"lw": 2.2, "zorder": 3} if row.name in (page.best, "published") else {"lw": 0.9}
        for axis, curve in ((axes[0], ONLINE), (axes[1], LOSS)):
            if row.runs and len(row.runs[0].curves[curve]):
                x, y = np.mean([run.curves[curve] for run in row.runs], axis=0).T
                axis.plot(x, y, label=row.name, **style)
    axes[0].set(xlabel="epoch", ylabel="AUROC, all shots", title="Online probe (training patients)")
    axes[1].set(xlabel="epoch", ylabel="NT-Xent loss", title="Loss")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Render a table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _format_effect(effect: Effect) -> str:
    return format_estimate(effect.mean, effect.low, effect.high, signed=True)


def _format_settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _mean_seconds(row: Row) -> float:
    return sum(run.seconds for run in row.runs) / len(row.runs)
