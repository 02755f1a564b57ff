"""report: features → draws → probes → table.md, table.csv and one self-contained report.html."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probe.encoders import (
    Encoder,
    imagenet_encoder,
    read_run,
    scratch_encoder,
    simclr_encoder,
    thumbnail_encoder,
)
from probe.features import extract_features
from probe.fewshot import Blank, Uncertain, draw_tasks, read_tasks, resolve_labels, write_draws
from probe.linear import INVERSE_L2
from probe.measure import measure
from probe.page import Result, write_report
from probe.statistics import REPLICATES
from probe.table import (
    TABLES,
    against_pixels,
    difference_table,
    layout,
    layout_differences,
    majority_shares,
    score_table,
    to_markdown,
    with_mean,
)
from shard.errors import InputError
from shard.files import write_bytes
from shard.manifest import Manifest, read_manifest
from shard.read import read_labels
from shard.table import TASKS
from train.config import Device
from train.device import resolve_device


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
        drawn, unmeasured = draw_tasks(labels, chosen, shots=shots, draws=draws, seed=seed)
    else:
        drawn, unmeasured = read_tasks(draws_file, labels, chosen, shots=shots)
        chosen = [task for task in chosen if task in drawn] if not tasks else chosen
        draws = max((len(one.positive) for one in drawn.values()), default=0)
    if not drawn:
        raise InputError(f"--shots={shots}: no task can be measured ({'; '.join(unmeasured)}); lower it")
    at_hand = {encoder.name: encoder.module for encoder in encoders if encoder.module is not None}
    features = extract_features(
        list(at_hand.values()), shards, manifest, splits, size=recipe["size"], mean=recipe["mean"],
        std=recipe["std"], batch_size=batch_size, device=torch.device(resolve_device(device)), workers=workers,
    )  # fmt: skip
    replicates = measure(dict(zip(at_hand, features, strict=True)), labels, drawn, shots, seed)
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
    write_report(out, result, run, shards, state, manifest, command)
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


def _command(program: str, *words: str, **flags: Any) -> str:
    shown = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={shlex.quote(str(value))}")
             for name, value in flags.items() if value is not None]  # fmt: skip
    return " ".join([f"python -m {program}", *map(shlex.quote, words), *shown])

