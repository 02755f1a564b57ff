"""Render the recipe study: docs/recipe.md and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.recipe.choice import Candidate, Choice
from bench.recipe.claim import Claim, Outcome, is_same_machine
from bench.recipe.comparison import MEAN, Worth
from bench.recipe.design import Study
from bench.recipe.evaluation import SHOTS
from bench.recipe.folds import FOLDS
from bench.recipe.grid import BASE, Cell
from probe.page.formats import format_estimate, format_p
from probe.statistics import Effect
from shard.files import atomic_write, write_bytes


@dataclass(frozen=True)
class Page:
    """The contents of the page. choice and claim: None if not made yet."""

    study: Study
    candidates: dict[tuple[str, int], Candidate]
    choice: Choice | None
    claim: Claim | None
    figure: str = ""

    def text(self) -> str:
        """Render the page in Markdown, without the text above the line of dashes."""
        parts = [self._choice()]
        if self.claim is not None:
            parts += [self._claim(self.claim), self._labels(self.claim), self._cost(self.claim)]
        return "\n\n".join(filter(None, parts))

    def _choice(self) -> str:
        study = self.study
        base = ", ".join(f"{name} {value}" for name, value in BASE.items() if not name.endswith("every"))
        rows = [[cell.name, describe_changes(cell, study.cells), *self._means(cell.name, cell.sizes()),
                 *self._runs(cell)] for cell in study.cells if self._found(cell.name)]  # fmt: skip
        others = [[name, "", f"{np.mean(candidate.means):.3f} at {size} px", "", "", ""]
                  for (name, size), candidate in self.candidates.items()
                  if name not in {cell.name for cell in study.cells}]  # fmt: skip
        header = ["cell", "changes", "mean AUROC at its size", "at 32 px more", "seeds, their SD", "minutes a run"]
        parts = [
            "## On validation patients: the choice",
            f"Mean AUROC on {study.patients(choosing=True)} patients, over {len(study.tasks)} tasks, seeds, and "
            f"{study.draws} draws of {SHOTS} labels a class, which are the same for all. Unless the table says "
            f"otherwise, a cell has {base}. For each network and start, the first row lists its settings and the "
            "other rows list what they change.",
            table(header, rows + others),
        ]
        if self.choice is not None:
            cells = "; ".join(f"{arm}: **{name}**, tested at {size} px"
                              for arm, (name, size) in self.choice.cells.items())  # fmt: skip
            power = ", ".join(f"{value:.3f} over {name}" for name, value in self.choice.power.items())
            parts.append(f"Chosen among the cells with {study.seeds} seeds: {cells}. ImageNet's frozen weights are "
                         f"best at {self.choice.imagenet_size} px. Before the claim's runs were trained, the design "
                         "was estimated to find, in 80 % of studies of five seeds, a difference of the mean of "
                         f"{power}.")
        return "\n\n".join(parts)

    def _found(self, name: str) -> bool:
        return any(known == name for known, _ in self.candidates)

    def _means(self, name: str, sizes: Sequence[int]) -> list[str]:
        return [f"{np.mean(self.candidates[name, size].means):.3f}" for size in sizes]

    def _runs(self, cell: Cell) -> list[str]:
        first, second = (self.candidates[cell.name, size] for size in cell.sizes())
        best = max(first, second, key=lambda candidate: float(np.mean(candidate.means)))
        spread = f", {np.std(best.means, ddof=1):.3f}" if len(best.means) > 1 else ""
        return [f"{len(best.means)}{spread}", f"{best.seconds / 60:.1f}"]

    def _claim(self, claim: Claim) -> str:
        study, ours = self.study, claim.tested[claim.ours]
        seeds = f"{len(ours.scores)} seed{'s' * (len(ours.scores) > 1)} of training"
        levels = {task: claim.levels(task) for task in (*study.tasks, MEAN)}
        names = list(claim.tested)
        scores = [[f"{task} ({study.positive_patients(task)})" if task != MEAN else "**mean**",
                   *(f"{levels[task][name].mean:.3f}" for name in names)] for task in levels]  # fmt: skip
        scores.append(["its interval", *(_interval(levels[MEAN][name]) for name in names)])
        rivals = list(dict.fromkeys(rival for rival, _ in claim.effects))
        differences = [[f"**{task}**" if task == MEAN else task,
                        *(_format_effect(claim.effects[rival, task]) for rival in rivals)]
                       for task in (*study.tasks, MEAN)]  # fmt: skip
        above = {rival: sum(claim.effects[rival, task].low > 0 for task in study.tasks) for rival in rivals}
        below = {rival: sum(claim.effects[rival, task].high < 0 for task in study.tasks) for rival in rivals}
        counted = "; ".join(f"{rival}: above 0 with the whole interval on {above[rival]} of {len(study.tasks)} tasks, "
                            f"below it on {below[rival]}" for rival in rivals)  # fmt: skip
        everywhere = [task for task in study.tasks if all(claim.effects[rival, task].low > 0 for rival in rivals)]
        return "\n\n".join([
            "## On all other patients: the claim",
            f"{study.patients(choosing=False)} patients in {FOLDS} folds, each tested by encoders that were "
            f"pre-trained on the patients outside its fold, with labels from these; {seeds}. Mean "
            "AUROC over folds, draws and seeds, and in brackets the number of patients with the finding.",
            table(["task", *names], scores),
            f"**{claim.ours}**, less its rivals: intervals of 95 % over {_covered(ours)}",
            table(["less", *rivals], differences),
            f"By rival: {counted}. Above 0 against all rivals on {len(everywhere)} tasks: "
            f"{', '.join(everywhere) or 'none'}.",
            *self._others(claim),
        ])  # fmt: skip

    def _others(self, claim: Claim) -> list[str]:
        rows = [[f"{name}, less {rival}", format_estimate(*effect[:3], signed=True)]
                for (name, rival), effect in claim.others.items()
                if is_same_machine(claim.tested[name], claim.tested[rival])]  # fmt: skip
        return ["Differences of the mean that the claim is not about:", table(["encoder", "difference"], rows)]

    def _labels(self, claim: Claim) -> str:
        parts = ["## How many labels it is worth"] if claim.worth else []
        for pool, worths in claim.worth.items():
            tasks = self.study.curve[pool]
            shots = list(claim.tested[claim.ours].curves[pool])
            rows = [[name, *(f"{tested.curves[pool][number][0]:.3f}" for number in shots)]
                    for name, tested in claim.tested.items()]  # fmt: skip
            worth = ", ".join(f"{_format_worth(one, max(shots))} ({rival})" for rival, one in worths.items())
            worth = f"To reach that, its rivals need this many: {worth}"
            level = claim.tested[claim.ours].curves[pool][SHOTS][0]
            parts += [
                f"Mean AUROC of the {len(tasks)} tasks with {pool} positive patients or more outside every fold "
                f"({', '.join(tasks)}), by labels a class:",
                table(["labels a class", *map(str, shots)], rows),
                f"With {SHOTS} labels a class **{claim.ours}** reaches {level:.3f}. {worth}. Intervals of 95 % over "
                "draws and test patients.",
            ]
        return "\n\n".join(parts)

    def _cost(self, claim: Claim) -> str:
        rows = [[name, str(len(tested.scores)), f"{tested.seconds / 3600:.1f}", ", ".join(tested.processors)]
                for name, tested in claim.tested.items()]  # fmt: skip
        figure = [f"![AUROC over labels, and differences by task]({self.figure})"] if self.figure else []
        return "\n\n".join([*figure, "## What it took",
                            table(["encoder", "seeds", "hours of training, all folds", "processor"], rows)])


def write_page(path: Path, page: Page) -> None:
    """Write the page and its figure, with the suffix .svg. Keeps existing text above the first line of dashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if page.claim is not None:
        _plot(path.with_suffix(".svg"), page.claim, page.study)
    text = path.read_text() if path.exists() else "# What ten shots give"
    introduction = text.split("\n---\n")[0].rstrip()
    write_bytes(path, f"{introduction}\n\n---\n\n{page.text()}\n".encode())


def _plot(path: Path, claim: Claim, study: Study) -> None:
    """Plot the AUROC over labels of each encoder, and ours less each rival by task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {name: f"C{number}" for number, name in enumerate(claim.tested)}
    pools = [pool for pool, tasks in study.curve.items() if tasks]  # none in a small archive
    figure, axes = plt.subplots(1, 2 if pools else 1, figsize=(11, 5.2), layout="constrained", squeeze=False)
    (*left, right) = axes[0]
    for axis, pool in zip(left, pools, strict=False):
        for name, tested in claim.tested.items():
            shots = list(tested.curves[pool])
            style: dict[str, Any] = {"lw": 2.4, "zorder": 3} if name == claim.ours else {"lw": 1.1}
            axis.plot(shots, [tested.curves[pool][number][0] for number in shots], marker="o", ms=3, label=name,
                      color=colours[name], **style)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(shots, map(str, shots))
        axis.minorticks_off()
        axis.set(xlabel="labels a class", ylabel="AUROC", title=f"Mean of {len(study.curve[pool])} tasks")
        axis.legend(fontsize=7, frameon=False)
    tasks = [MEAN, *study.tasks][::-1]
    rivals = list(dict.fromkeys(rival for rival, _ in claim.effects))
    for number, rival in enumerate(rivals):
        effects = [claim.effects[rival, task] for task in tasks]
        places = np.arange(len(tasks)) + 0.22 * (1 - number)
        means = np.array([effect.mean for effect in effects])
        half = np.array([[effect.mean - effect.low, effect.high - effect.mean] for effect in effects]).T
        right.errorbar(means, places, xerr=half, fmt="o", ms=3, lw=1, color=colours[rival],
                       label=f"less {rival}")  # fmt: skip
    right.axvline(0, color="0.6", lw=0.8)
    right.set_yticks(range(len(tasks)), tasks, fontsize=8)
    right.set(xlabel="difference of AUROC, 95 % interval", title=claim.ours)
    right.legend(fontsize=7, frameon=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file, matplotlib.rc_context({"svg.hashsalt": "recipe"}):  # the same bytes each time
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Render a table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def describe_changes(cell: Cell, cells: Sequence[Cell]) -> str:
    """Describe the settings of the first of the cells with its network and start, or the changes to that cell's."""
    first = next(other for other in cells if _start(other) == _start(cell))
    settings, base = cell.all_settings(), first.all_settings() if cell != first else BASE
    changed = {name: value for name, value in settings.items() if base.get(name) != value}
    start = ["from ImageNet"] if changed.pop("init", None) is not None else []
    changed.pop("init_input", None)
    pooling = [f"features: {cell.pooling}"] if cell.pooling else []
    return ", ".join([*start, *(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()), *pooling])


def _start(cell: Cell) -> tuple[str, bool, bool]:
    return cell.settings["arch"], "init" in cell.settings, "temperature" in cell.settings


def _format_effect(effect: Effect) -> str:
    shown = format_estimate(effect.mean, effect.low, effect.high, signed=True)
    return shown if effect.seeds == 1 else f"{shown}, {format_p(effect.p)}"


def _covered(ours: Outcome) -> str:
    """Say what the intervals of the claim cover, and what its p values are corrected for."""
    if len(ours.scores) == 1:
        return ("draws, pools of labelled patients and test patients. One seed gives no p value: another training "
                "could give another result.")
    return ("draws, pools of labelled patients, test patients and seeds. p of the mean, the primary endpoint, is "
            "corrected for the three rivals (Holm), p of a task for rivals × tasks.")


def _interval(effect: Effect) -> str:
    return f"[{effect.low:.3f}, {effect.high:.3f}]"


def _format_worth(worth: Worth, most: int) -> str:
    def number(value: float) -> str:
        return f"{value:.0f}" if np.isfinite(value) else f"over {most}"

    return f"{number(worth.labels)} [{number(worth.low)}, {number(worth.high)}]"
