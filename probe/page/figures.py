"""The figures of a report: SVGs in the page's text colour, or PNGs of radiographs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from probe.baselines import BASELINES
from probe.encoders import SIMCLR
from probe.measure import ALL, GRID, LINEAR, Curve
from probe.occlusion import CELLS, OcclusionMap
from probe.page.svg import INK, save_svg

GREY, BLUE = "#8a8a8a", "#3b7dd8"  # GREY: interval contains zero. BLUE: SimCLR.
OTHERS = ("#b4509d", "#c9a227", "#5b6abf", "#c44e52", "#17a2a2", "#8c6d31", "#7fb800", "#d67ab1", "#4f4f7a",
          "#ff7f50")  # for encoders with other names
LEGEND_COLUMNS = 5  # names that fit side by side above the scores
STYLE: Any = {"text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
         "font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "svg.fonttype": "none", "axes.spines.top": False,
         "text.parse_math": False,  # a dollar in a finding's name is a dollar
         "axes.spines.right": False, "savefig.transparent": True, "legend.frameon": False,
         "font.family": "sans-serif"}  # fmt: skip
PANEL = (3.5, 2.7)  # inches


class Picture(NamedTuple):
    """A figure: its file name, its alternative text, and its SVG or PNG."""

    name: str
    alt: str
    content: bytes
    kind: str = "svg"


def colours(names: Sequence[str]) -> dict[str, str]:
    """Assign each encoder of a page its colour, the same in all figures; baselines and SimCLR have fixed ones."""
    fixed = {**{baseline.name: baseline.colour for baseline in BASELINES.values()}, SIMCLR: BLUE}
    others = [name for name in names if name not in fixed]
    return {name: fixed.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


def plot_scores(table: pd.DataFrame, palette: Mapping[str, str], tasks: Sequence[str], shots: str) -> Picture:
    """Plot the AUROC of each encoder by task, with intervals. palette: from `colours`."""
    aurocs = _auroc(table).set_index(["encoder", "task", "shots"])
    with plt.rc_context(STYLE):
        columns = min(len(palette), LEGEND_COLUMNS)
        height = 0.9 + 0.15 * len(tasks) * (len(palette) + 1) + 0.17 * ((len(palette) - 1) // columns)
        figure, axes = plt.subplots(figsize=(5.2, height), layout="constrained")
        spacing = min(0.17, 1 / (len(palette) + 1))  # of the encoders of a task, whose rows are 1 apart
        for place, (name, colour) in enumerate(palette.items()):
            cells = [_cell(aurocs, (name, task, shots)) for task in tasks]
            heights = [row + (place - (len(palette) - 1) / 2) * spacing for row in range(len(tasks))]
            mean, low, high = np.array(cells).T
            axes.errorbar(mean, heights, xerr=[mean - low, high - mean], fmt="o", ms=4, lw=1.5, label=_in_legend(name),
                          color=colour)  # fmt: skip
        axes.axvline(0.5, color=INK, ls=":", lw=1)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.invert_yaxis()
        axes.set_xlabel("AUROC (dotted: chance)")
        figure.legend(loc="outside upper center", ncols=columns)
        values = "; ".join(f"{name} {_value(aurocs, (name, tasks[-1], shots))}" for name in palette)
        return Picture("scores", f"AUROC by task with intervals. {tasks[-1]}: {values}. The tables list all values.",
                       save_svg(figure, "scores"))  # fmt: skip


def plot_forest(differences: pd.DataFrame) -> list[Picture]:
    """Plot paired differences in AUROC, a forest plot per task, all on one scale."""
    pictures = []
    ends = differences[["low", "difference", "high"]].to_numpy(float)  # without an interval only the point is finite
    reach = [np.nanmin(ends, initial=0.0) - 0.01, np.nanmax(ends, initial=0.0) + 0.01]
    for task, rows in differences.groupby("task", sort=False):
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(PANEL[0], 0.9 + 0.21 * len(rows)), layout="constrained")
            for height, cell in enumerate(rows.to_dict("records")):
                undecided = not (cell["low"] > 0 or cell["high"] < 0)
                spread = [[cell["difference"] - cell["low"]], [cell["high"] - cell["difference"]]]
                colour = GREY if undecided else INK
                axes.errorbar(cell["difference"], height, xerr=spread, fmt="o", ms=4, color=colour)
            axes.axvline(0, color=INK, lw=1)
            axes.set_yticks(range(len(rows)), rows["encoder"] + " − " + rows["reference"])
            axes.set(title=task, xlim=reach, ylim=(len(rows) - 0.5, -0.5), xlabel="difference in AUROC")
            values = "; ".join(f"{row['encoder']} minus {row['reference']} {row['difference']:+.3f}, "
                               + (f"interval {row['low']:+.3f} to {row['high']:+.3f}" if row["low"] == row["low"] else
                                  "without an interval") for row in rows.to_dict("records"))  # fmt: skip
            name = f"differences-{_slug(str(task))}"
            pictures.append(Picture(name, f"Paired differences in AUROC, {task}: {values}.", save_svg(figure, name)))
    return pictures


def plot_shots(table: pd.DataFrame, palette: Mapping[str, str], task: str, all_shots: Sequence[str]) -> Picture:
    """Plot the AUROC of each encoder against the number of labelled examples, with interval bands."""
    aurocs = _auroc(table).set_index(["encoder", "task", "shots"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=PANEL, layout="constrained")
        places = np.arange(len(all_shots))
        for name, colour in palette.items():
            mean, low, high = np.array([_cell(aurocs, (name, task, shots)) for shots in all_shots]).T
            axes.plot(places, mean, "o-", ms=3, lw=1.5, color=colour, label=_in_legend(name))
            axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
        axes.set_xticks(places, all_shots)
        axes.axhline(0.5, color=INK, ls=":", lw=1)
        shares = ", or share of all labels" if any(shots.endswith("%") for shots in all_shots) else ""
        axes.set(title=task, xlabel=f"labelled examples per class{shares}", ylabel="AUROC")
        axes.legend()
        least, most = all_shots[0], all_shots[-1]
        values = "; ".join(f"{name} from {_value(aurocs, (name, task, least))} with {least} to "
                           f"{_value(aurocs, (name, task, most))} with {most}" for name in palette)  # fmt: skip
        return Picture(f"shots-{_slug(task)}", f"AUROC against labelled examples per class, {task}: {values}.",
                       save_svg(figure, f"shots-{_slug(task)}"))  # fmt: skip


def plot_roc(rocs: Mapping[str, Curve], palette: Mapping[str, str], task: str) -> Picture:
    """Plot the mean ROC curve of each encoder. rocs: true positive rates on GRID by encoder."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2.9, 2.9), layout="constrained")
        for name, curve in rocs.items():
            axes.plot([0, *GRID], [0, *curve], color=palette[name], lw=1.5, label=_in_legend(name))
        axes.plot([0, 1], [0, 1], color=INK, ls=":", lw=1)
        axes.set(title=task, xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.legend(loc="lower right")
        values = "; ".join(f"{name} {np.interp(0.2, GRID, curve):.2f}" for name, curve in rocs.items())
        return Picture(f"roc-{_slug(task)}",
                       f"ROC curves, {task}. True positive rates at a false positive rate of 0.2: {values}.",
                       save_svg(figure, f"roc-{_slug(task)}"))  # fmt: skip


def plot_journals(
    journals: Mapping[str, list[dict[str, Any]]], palette: Mapping[str, str], what: str, title: str, kind: str
) -> Picture | None:
    """Plot the field `what` of the journals' lines of one kind against epochs, a curve per run; None if none has it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=PANEL, layout="constrained")
        values = []
        for name, lines in journals.items():
            chosen = [line for line in lines if line["kind"] == kind and what in line]
            if chosen:
                axes.plot([line["epoch"] for line in chosen], [line[what] for line in chosen], "-", lw=1.5, ms=3,
                          color=palette[name], label=_in_legend(name),
                          marker="o" if len(chosen) < 40 else None)  # fmt: skip
                values.append(f"{name} from {chosen[0][what]:.3f} to {chosen[-1][what]:.3f}")
        axes.set(title=title, xlabel="epoch")
        if len(values) > 1:
            axes.legend()
        picture = Picture(_slug(what), f"{title} against epochs: {'; '.join(values)}.", save_svg(figure, _slug(what)))
    return picture if values else None


def plot_map(points: Curve, labels: np.ndarray, task: str) -> Picture:
    """Plot the points of a 2-D map [N, 2], coloured by a finding's labels: 1, 0 or NaN."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2.9, 2.9), layout="constrained")
        groups = (("not labelled", np.isnan(labels), "#bbbbbb", 4), ("absent", labels == 0, "#7f8fa6", 6),
                  ("present", labels == 1, "#e1662f", 8))  # fmt: skip
        for name, chosen, colour, size in groups:
            if chosen.any():
                axes.scatter(points[chosen, 0], points[chosen, 1], s=size, color=colour, lw=0, label=name)
        axes.set(title=task, xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, markerscale=2)
        counts = ", ".join(f"{chosen.sum()} {name}" for name, chosen, _, _ in groups)
        return Picture(f"map-{_slug(task)}", f"Map of {len(points)} test images in feature space, {task}: {counts}.",
                       save_svg(figure, f"map-{_slug(task)}"))  # fmt: skip


def plot_neighbours(rows: Sequence[Sequence[tuple[np.ndarray, str]]], alt: str) -> Picture:
    """Plot rows of radiographs [S, S] in 0..1 with captions: a test image and its neighbours."""
    most = max(map(len, rows))
    with plt.rc_context({**STYLE, "savefig.transparent": False, "text.color": "black"}):
        figure, axes = plt.subplots(len(rows), most, squeeze=False, figsize=(1.45 * most, 1.95 * len(rows)),
                                    layout="constrained")  # fmt: skip
        for line, row in zip(axes, rows, strict=True):
            for place, (image, caption) in enumerate(row):
                axis: Axes = line[place]
                axis.imshow(image, cmap="gray", vmin=0, vmax=1)
                axis.set_title(caption, fontsize=6)
            for axis in line:
                axis.axis("off")
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        plt.close(figure)
    return Picture("neighbours", alt, buffer.getvalue(), "png")


def plot_maps(task: str, maps: Sequence[OcclusionMap]) -> Picture:
    """Plot test images of a task, each beside itself under its occlusion map; two images a row."""
    most = max(float(np.abs(one.change).max()) for one in maps) or 1.0
    columns = 4 if len(maps) > 1 else 2
    rows = -(-2 * len(maps) // columns)
    with plt.rc_context({**STYLE, "savefig.transparent": False, "text.color": "black"}):
        figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(1.9 * columns, 2.1 * rows),
                                    layout="constrained")  # fmt: skip
        for axis in axes.flat:
            axis.axis("off")
        for number, one in enumerate(maps):
            bare, mapped = axes.flat[2 * number], axes.flat[2 * number + 1]
            for axis in (bare, mapped):
                axis.imshow(one.image, cmap="gray", vmin=0, vmax=1, extent=(0, CELLS, CELLS, 0))
            colours = mapped.imshow(one.change, cmap="PuOr_r", vmin=-most, vmax=most, alpha=0.55,
                                    interpolation="bilinear", extent=(0, CELLS, CELLS, 0))  # fmt: skip
            bare.set_title(f"{task}: {'present' if one.label else 'absent'}", fontsize=7)
        figure.colorbar(colours, ax=axes, shrink=0.6, label="adds to the score (SD)")
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        plt.close(figure)
    values = "; ".join(f"{'present' if one.label else 'absent'}, {_where(one.change)}" for one in maps)
    return Picture(f"occlusion-{_slug(task)}", f"Occlusion maps of {len(maps)} test radiographs, {task}. Areas that "
                   f"add most: {values}.", buffer.getvalue(), "png")  # fmt: skip


def _where(change: Curve) -> str:
    """Name the third of the image, in both directions, that has the largest sum: "upper left"."""
    third = len(change) // 3
    sums = change.reshape(3, third, 3, third).sum(axis=(1, 3))
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    names = [("upper", "middle", "lower")[row], ("left", "centre", "right")[column]]
    return " ".join(names) + f" {sums.max() / third**2:+.2f} SD"


def _in_legend(name: str) -> str:
    """Make a label visible in a legend: matplotlib hides labels that start with an underscore."""
    return f"\N{HAIR SPACE}{name}" if name.startswith("_") else name


def _auroc(table: pd.DataFrame) -> pd.DataFrame:
    """Select the linear probe's AUROC on all labelled test images."""
    chosen: pd.DataFrame = table[(table["metric"] == "auroc") & (table["test"] == ALL) & (table["probe"] == LINEAR)]
    return chosen


def _cell(by_key: pd.DataFrame, key: tuple[str, str, str]) -> tuple[float, float, float]:
    if key not in by_key.index:
        return float("nan"), float("nan"), float("nan")
    mean, low, high = (float(by_key[name][key]) for name in ("mean", "low", "high"))
    return mean, low, high


def _value(by_key: pd.DataFrame, key: tuple[str, str, str]) -> str:
    mean = _cell(by_key, key)[0]
    return "n/a" if np.isnan(mean) else f"{mean:.3f}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
