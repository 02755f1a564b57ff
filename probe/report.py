"""report: features → draws → probes → table.md, table.csv and one self-contained report.html."""

from __future__ import annotations

import base64
import io
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.preview import preview
from probe.encoders import (
    Encoder,
    imagenet_encoder,
    read_run,
    scratch_encoder,
    simclr_encoder,
    thumbnail_encoder,
)
from probe.features import Features, extract_features
from probe.fewshot import (
    Blank,
    Draws,
    NotMeasurable,
    Uncertain,
    make_draws,
    read_draws,
    resolve_labels,
    write_draws,
)
from probe.linear import INVERSE_L2, probe_draws, standardise
from probe.statistics import REPLICATES, resample, score
from probe.table import (
    ALL,
    BALANCED,
    MEAN,
    TABLES,
    Replicates,
    against_pixels,
    difference_table,
    format_cell,
    layout,
    layout_differences,
    majority_shares,
    score_table,
    to_markdown,
    with_mean,
)
from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import version_of
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels
from shard.table import TASKS
from train.config import Device, train_command
from train.device import resolve_device

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


def report(
    run: Path, *, shards: Path, out: Path | None = None, shots: int = 10, draws: int = 20,
    tasks: tuple[str, ...] = (), uncertain: Uncertain = "exclude", blank: Blank = "exclude",
    draws_file: Path | None = None, imagenet_weights: Path | None = None, seed: int = 0, batch_size: int = 128,
    device: Device = "auto", workers: int = 0,
) -> None:  # fmt: skip
    """Probe the newest checkpoint of RUN with few labels against random and ImageNet weights, and write the report.

    Leaves table.md, table.csv, differences.csv, draws.csv and report.html in --out (RUN/report by default). A probe is
    one logistic regression on frozen features, learned from SHOTS positives and SHOTS negatives of as many training
    patients and tested on patients never trained on; --draws=N repeats that. --tasks=A,B names findings of the shards,
    by default those of the published table. --uncertain and --blank say what becomes of such labels; left out, if
    nothing is said. --draws-file: another report's draws.csv, instead of drawing anew.
    """
    for name, value, low in (("shots", shots, 1), ("draws", draws, 1), ("batch-size", batch_size, 1), ("seed", seed, 0),
                             ("workers", workers, 0)):  # fmt: skip
        if not low <= value <= 10**6:
            raise InputError(f"--{name}={value}: wants a number from {low} to 1000000")
    state = read_run(run)
    manifest = read_manifest(shards)
    chosen = _choose_tasks(tasks, manifest, shards)
    if not [split for split in manifest.counts if split != "train"]:
        raise InputError(f"{shards}: has a training split alone; a probe is tested on patients of another split")
    out = out or run / "report"
    arch, recipe = state["config"]["arch"], state["recipe"]
    encoders = [
        scratch_encoder(arch, seed),
        thumbnail_encoder(),
        imagenet_encoder(arch, recipe["mean"], recipe["std"], imagenet_weights),
        simclr_encoder(state),
    ]
    splits = tuple(manifest.counts)
    labels = resolve_labels(read_labels(shards, manifest, splits), manifest.findings, uncertain, blank)
    if draws_file is None:
        drawn, unmeasured = _draw(labels, chosen, shots=shots, draws=draws, seed=seed)
    else:
        drawn, unmeasured = _read(draws_file, labels, chosen, shots=shots)
        chosen = [task for task in chosen if task in drawn] if not tasks else chosen
        draws = max((len(one.positive) for one in drawn.values()), default=0)
    if not drawn:
        raise InputError(f"--shots={shots}: no task can be measured ({'; '.join(unmeasured)}); lower it")
    at_hand = {encoder.name: encoder.module for encoder in encoders if encoder.module is not None}
    features = extract_features(
        list(at_hand.values()), shards, manifest, splits, size=recipe["size"], mean=recipe["mean"],
        std=recipe["std"], batch_size=batch_size, device=torch.device(resolve_device(device)), workers=workers,
    )  # fmt: skip
    replicates = _score(dict(zip(at_hand, features, strict=True)), labels, drawn, shots, seed)
    replicates = with_mean(replicates, encoders, chosen)
    table, differences = (score_table(encoders, replicates, chosen, draws),
                          difference_table(encoders, replicates, chosen))  # fmt: skip
    majority = majority_shares({task: one.test_labels for task, one in drawn.items()})
    tables = [(shown.title, *layout(table, shown, majority)) for shown in TABLES]
    if len(differences):
        tables.insert(1, ("Paired differences of AUROC", *layout_differences(differences)))
    synthetic = bool(manifest.settings.get("synthetic"))
    notes = _notes(encoders, unmeasured, labels, chosen, shots=shots, draws=draws, uncertain=uncertain, blank=blank,
                   synthetic=synthetic,
                   same_shards=state["shards"] == manifest.fingerprint())  # fmt: skip
    verdicts = against_pixels(differences)
    result = Result(table, differences, tables, encoders, verdicts, notes, synthetic)
    command = _command(
        "probe report", str(run), shards=shards, out=out, shots=shots, draws=draws, tasks=",".join(chosen),
        uncertain=uncertain, blank=blank, draws_file=draws_file, imagenet_weights=imagenet_weights, seed=seed,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "draws.csv", write_draws(drawn, labels))
    _write(out, result, run, shards, state, manifest, command)
    print(to_markdown(result.tables, [*result.verdicts, *result.notes]))
    print(f"{out / 'report.html'} written")


def _choose_tasks(tasks: tuple[str, ...], manifest: Manifest, shards: Path) -> list[str]:
    for task in tasks:
        if task not in manifest.findings:
            raise InputError(f"--tasks={task}: not a finding of {shards}; it has: {', '.join(manifest.findings)}")
    chosen = list(dict.fromkeys(tasks)) or [task for task in TASKS if task in manifest.findings]
    if not chosen:
        raise InputError(f"{shards}: none of {', '.join(TASKS)} is a finding of it; name some with --tasks=A,B")
    return chosen


def _draw(
    labels: pd.DataFrame, tasks: list[str], *, shots: int, draws: int, seed: int
) -> tuple[dict[str, Draws], list[str]]:
    """The draws of each task that can be measured, and why the others can't."""
    drawn, unmeasured = {}, []
    for task in tasks:
        try:
            one = make_draws(labels, task, shots=shots, draws=draws, seed=seed)
            one.support(shots)
            drawn[task] = one
        except NotMeasurable as reason:
            unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured


def _read(path: Path, labels: pd.DataFrame, tasks: list[str], *, shots: int) -> tuple[dict[str, Draws], list[str]]:
    """The same of draws that were made before."""
    given, drawn, unmeasured = read_draws(path, labels), {}, []
    if len({len(draws.positive) for draws in given.values()}) > 1:
        raise InputError(f"--draws-file={path}: not as many draws for one task as for another")
    for task in tasks:
        if task not in given:
            unmeasured.append(f"{task} is not in {path}")
            continue
        try:
            given[task].support(shots)
            drawn[task] = given[task]
        except NotMeasurable as reason:
            unmeasured.append(f"{task} is not measurable: {reason}")
    return drawn, unmeasured


def _score(
    features: dict[str, Features], labels: pd.DataFrame, drawn: dict[str, Draws], shots: int, seed: int
) -> Replicates:
    """Replicates by encoder, task and test set; every encoder on the same draws, patients and resamples of both."""
    train = (labels["split"] == "train").to_numpy()
    standard = {name: standardise(matrix, train) for name, matrix in features.items()}
    # One number a patient whatever the task, so that the mean over tasks is of the same patients in each replicate.
    held_out, numbers = np.unique(labels["patient"].to_numpy()[~train], return_inverse=True)
    patients = np.full(len(labels), -1)
    patients[~train] = numbers
    resamples = resample(len(next(iter(drawn.values())).positive), len(held_out), seed=seed)
    pairs = [(name, task) for task in drawn for name in standard]
    result = {}
    for name, task in tqdm(pairs, desc="probing", unit=" probes", disable=None):
        one = drawn[task]
        decisions = probe_draws(standard[name], *one.support(shots), one.test)
        for test, members in ((BALANCED, one.balanced), (ALL, None)):
            result[name, task, test] = score(decisions, one.test_labels, patients[one.test], resamples, members)
    return result


def _notes(
    encoders: list[Encoder], unmeasured: list[str], labels: pd.DataFrame, tasks: list[str], *, shots: int, draws: int,
    uncertain: Uncertain, blank: Blank, synthetic: bool, same_shards: bool,
) -> list[str]:  # fmt: skip
    held_out = labels[labels["split"] != "train"]
    counts = ", ".join(f"{task} {(held_out[task] == 1).sum()} positive / {(held_out[task] == 0).sum()} negative"
                       for task in tasks)  # fmt: skip
    splits = " and ".join(dict.fromkeys(held_out["split"]))
    # The patients are known to be new to the encoder only where it learned from these very shards' training split.
    unseen = ("none seen in pre-training" if same_shards
              else "POSSIBLY SEEN IN PRE-TRAINING, which ran on other shards")  # fmt: skip
    notes = [
        f"{shots} positive + {shots} negative images of {2 * shots} different training patients; {draws} draws, shared "
        "by all encoders; mean over draws with its 95 % interval from a two-level bootstrap: draws and test patients "
        f"taken with replacement, {REPLICATES} times. It does not cover another choice of training patients, of "
        "seed for the weights, or of archive.",
        "Paired differences: both encoders on the same draws and patients in every replicate; p two-sided from the "
        "bootstrap, corrected over the tasks (Holm).",
        f"Tested on split {splits}: {held_out['patient'].nunique()} patients, none in a support set, {unseen}; "
        "all labelled images, and sets balanced by drawing the larger class down, a set a draw, on which guessing the "
        f"majority scores 50 %. Labelled there: {counts}.",
        f"Uncertain (-1) labels {_fate(uncertain)}, blank ones {_fate(blank)}. Features are frozen, "
        "standardised by the unlabelled training images and divided by the square root of the encoder's width; "
        f"logistic regression with L2, C = {INVERSE_L2:g}, to convergence; final, not peak, accuracy.",
        *(f"{encoder.name}: {encoder.source}." for encoder in encoders),
        *(f"{reason}." for reason in unmeasured),
    ]
    warning = "SYNTHETIC radiographs (phantoms): the figures say that the software works, and nothing of patients."
    return [warning, *notes] if synthetic else notes


def _fate(label: str) -> str:
    return "are left out" if label == "exclude" else f"count as {label}"


def _write(
    out: Path, result: Result, run: Path, shards: Path, state: dict[str, Any], manifest: Manifest, command: str
) -> None:
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


def _command(program: str, *words: str, **flags: Any) -> str:
    shown = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={shlex.quote(str(value))}")
             for name, value in flags.items() if value is not None]  # fmt: skip
    return " ".join([f"python -m {program}", *map(shlex.quote, words), *shown])

