"""What a report says → report.html, one self-contained file, and beside it the tables as files."""

from __future__ import annotations

import base64
import io
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from pipeline.preview import preview
from probe.encoders import Encoder
from probe.table import ALL, MEAN, format_cell, to_markdown
from shard.files import write_bytes
from shard.machine import version_of
from shard.manifest import Manifest
from train.config import train_command

PACKAGES = ("cxr-simclr", "torch", "torchvision", "nvidia-dali-cuda120", "scikit-learn", "numpy", "pandas", "pillow")


@dataclass(frozen=True)
class Result:
    """What a report says: the figures, and what one needs to know to read them.

    tables: title, header and rows of each, as they are shown.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    tables: list[tuple[str, list[str], list[list[str]]]]
    encoders: list[Encoder]
    verdicts: list[str]
    notes: list[str]
    synthetic: bool


def write_report(
    out: Path, result: Result, run: Path, shards: Path, state: dict[str, Any], manifest: Manifest, command: str
) -> None:
    """Write table.md, table.csv, differences.csv, views.png and report.html."""
    write_bytes(out / "table.csv", result.table.to_csv(index=False).encode())
    write_bytes(out / "differences.csv", result.differences.to_csv(index=False).encode())
    write_bytes(out / "table.md", to_markdown(result.tables, [*result.verdicts, *result.notes]).encode())
    preview(shards, out=out / "views.png", images=4, size=state["recipe"]["size"])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("probe", "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    loss = run / "loss.png"
    counts = {f"{split} images / patients": f"{count['images']} / {count['patients']}"
              for split, count in manifest.counts.items()}  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        headline=_headline(result),
        verdicts=result.verdicts,
        synthetic=result.synthetic,
        tables=result.tables,
        notes=result.notes,
        figure=_embed(_draw_scores(result.table)),
        loss=_embed(loss.read_bytes()) if loss.exists() else None,
        views=_embed((out / "views.png").read_bytes()),
        settings={**state["config"], "steps": state["step"], "epochs done": state["epoch"]},
        recipe=state["recipe"],
        data={**manifest.settings, "fingerprint": manifest.fingerprint(), "rejected": manifest.rejected, **counts},
        versions=_versions(),
        commands=[train_command(state["config"]), command],
    )  # fmt: skip
    write_bytes(out / "report.html", page.encode())


def _headline(result: Result) -> str:
    auroc = _auroc(result.table).set_index(["encoder", "task"])
    tasks = auroc.index.get_level_values("task").unique()
    over = MEAN if MEAN in tasks else tasks[0]
    words = []
    for name in ("SimCLR", "ImageNet", "Thumbnail", "Scratch"):
        mean, low, high = auroc.loc[(name, over), ["mean", "low", "high"]].astype(float)
        if not pd.isna(mean):
            words.append(f"{name} {format_cell(mean, low, high)}")
    subject = "Mean AUROC over tasks" if over == MEAN else f"AUROC, {over}"
    return f"{subject}: " + ", ".join(words)


def _auroc(table: pd.DataFrame) -> pd.DataFrame:
    chosen: pd.DataFrame = table[(table["metric"] == "auroc") & (table["test"] == ALL)]
    return chosen


def _draw_scores(table: pd.DataFrame) -> bytes:
    """AUROC of each encoder by task, with intervals, as PNG bytes."""
    auroc = _auroc(table)
    tasks = list(dict.fromkeys(auroc["task"]))
    encoders = [str(name) for name, rows in auroc.groupby("encoder", sort=False) if rows["mean"].notna().any()]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.55 * len(tasks)), layout="constrained")
    for place, (name, colour) in enumerate(zip(encoders, _colours(encoders), strict=True)):
        rows = auroc[auroc["encoder"] == name].set_index("task").loc[tasks]
        height = [number + (place - (len(encoders) - 1) / 2) * 0.18 for number in range(len(tasks))]
        spread = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        axes.errorbar(rows["mean"], height, xerr=spread, fmt="o", ms=5, color=colour, label=name)
    axes.axvline(0.5, color="0.5", ls="--", lw=1)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, mean over draws, 95 % interval over draws and patients (dashed: chance)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper right", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _colours(encoders: list[str]) -> list[str]:
    """An encoder's colour is its own, whichever others are there."""
    known = {"Scratch": "#888888", "Thumbnail": "#309060", "ImageNet": "#d08020", "SimCLR": "#2060c0"}
    return [known[name] for name in encoders]


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _versions() -> dict[str, str]:
    installed = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version(), **installed, "machine": f"{platform.system()} {platform.machine()}"}
