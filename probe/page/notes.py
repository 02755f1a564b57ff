"""The methods, limitations and provenance of a report, as notes, facts and commands."""

from __future__ import annotations

import platform
from pathlib import Path

import pandas as pd

from probe.baselines import SIDE
from probe.linear import INVERSE_L2
from probe.measure import share_name
from probe.statistics import REPLICATES
from probe.study import Study
from shard.address import absolute_place
from shard.machine import commit, version_of
from train.accepted import accepted_changes, format_changes
from train.checkpoint import translate_load_errors
from train.moved import locate_shards
from train.recipe import describe_start
from train.reproduce import reproduction_commands
from train.start_source import combine_trained_on

PACKAGES = ("cxr-simclr", "torch", "torchvision", "nvidia-dali-cuda120", "scikit-learn", "numpy", "pandas", "pillow")


def list_notes(study: Study) -> list[str]:
    """The notes on methods and limitations, a sentence or a few each."""
    held_out = study.labels[study.labels["split"] != "train"]
    counts = "; ".join(f"{task}, {(held_out[task] == 1).sum()} positive and {(held_out[task] == 0).sum()} negative "
                       f"images of {_of_patients(held_out, task, 1)} and {_of_patients(held_out, task, 0)} patients"
                       for task in study.tasks)  # fmt: skip
    splits = " and ".join(dict.fromkeys(held_out["split"]))
    k = study.headline
    support = ("the labelled training images" if k == "all" else
               f"{k} positive and {k} negative images of {2 * k} different training patients")  # fmt: skip
    notes = [
        f"Probes are trained on {support}. Results are means over {study.draws} draws, which all encoders share "
        "(draws.csv). 95 % intervals and p values are over draws, test patients and pools of support patients, by "
        f"Student's t: the first two variances are from a two-level bootstrap of {REPLICATES} replicates, the third is "
        "from how much more alike two draws are that share patients. A probe of all labels has one support set: its "
        "interval is over test patients.",
        "This report can't show what another choice of training patients, another seed for the weights, or another "
        "archive would give; whether labels mined from reports are correct; or whether a difference in AUROC matters "
        "to a patient.",
        "Paired differences have two-sided p values. The mean over tasks is the primary endpoint, corrected for the "
        "number of pairs of encoders (Holm). Single tasks are secondary, corrected for all pairs and tasks together.",
        f"Test split {splits}: {held_out['patient'].nunique()} patients, none in a support set, {_seen(study)}. "
        "Metrics are on all labelled test images, or on balanced test sets, which subsample the larger class once per "
        f"draw; on these, guessing the majority class scores 50 %. Labelled test images: {counts}.",
        f"{study.settings.label_policy} Features are frozen, standardised by {_reference(study)} without their labels, "
        "and divided by the square root of the encoder's width. The linear probe is a logistic regression with an L2 "
        f"penalty, C = {INVERSE_L2:g}, fixed beforehand and fitted to convergence. Accuracy is final, not peak.",
        f"An encoder that does not beat the {SIDE}×{SIDE} thumbnail is not shown to have learned more than a thumbnail "
        "shows. That does not show that it has learned nothing: a real advantage may be too small for these patients.",
        *(f"COLLAPSED: {encoder.name}: {encoder.collapsed}. Collapsed encoders are excluded from the nearest "
          "neighbours and the feature map." for encoder in study.encoders if encoder.collapsed),
        *(f"{encoder.name}: {'; '.join((encoder.source, *(encoder.notes or (f'{encoder.input.size} px',))))}."
          for encoder in study.encoders),
        *_limited(study),
        *_fractions(study),
        *(f"{reason}." for reason in study.unmeasured),
    ]  # fmt: skip
    warning = ("SYNTHETIC radiographs (phantoms): the results show that the software works; they say nothing about "
               "patients.")  # fmt: skip
    return [warning, *notes] if study.manifest.settings.get("synthetic") else notes


def _reference(study: Study) -> str:
    """Name the training images that features are standardised by."""
    chosen, images = int(study.reference.sum()), study.manifest.images("train")
    return "the training images" if chosen == images else f"{chosen} of {images} training images, chosen at random,"


def _limited(study: Study) -> list[str]:
    """State on how many images the probes of all labels are trained, if --all-limit applies."""
    counts = [f"{len(draws.train)} of {draws.labelled} for {task}" for task, draws in study.drawn.items()
              if "all" in study.measured[task] and len(draws.train) < draws.labelled]  # fmt: skip
    return [f"The probes of all labels are trained on a random part of the labelled training images (--all-limit): "
            f"{', '.join(counts)}."] if counts else []  # fmt: skip


def _fractions(study: Study) -> list[str]:
    """State how many images the shares of the labels are."""
    counts = [f"{share_name(share)} {rows.shape[1]} for {task}" for task, draws in study.drawn.items()
              for share, (rows, _) in draws.fractions.items()]  # fmt: skip
    return [f"Labelled images in a share of the labels: {', '.join(counts)}."] if counts else []


def _of_patients(labels: pd.DataFrame, task: str, label: int) -> int:
    """Count the patients with such an image."""
    return int(labels.loc[labels[task] == label, "patient"].nunique())


def _seen(study: Study) -> str:
    """State whether test patients are new to the encoders, which is known only of runs on these shards."""
    here = study.manifest.fingerprint()
    others = [encoder.name for encoder in study.given if encoder.state is None
              or combine_trained_on(encoder.state["shards"], encoder.state.get("init")) != here]  # fmt: skip
    return (f"POSSIBLY SEEN IN PRE-TRAINING by {', '.join(others)} (not trained on these shards alone)" if others
            else "none seen in pre-training")  # fmt: skip


def list_facts(study: Study) -> list[tuple[str, dict[str, object]]]:
    """Settings, hashes, counts and versions, as titled lists of names and values."""
    facts: list[tuple[str, dict[str, object]]] = [("Settings of the probe", dict(study.settings.plain()))]
    for encoder in study.encoders:
        if encoder.state is not None:
            state, changes = encoder.state, accepted_changes(encoder.state)
            facts.append((f"{encoder.name}: settings of its pre-training",
                          {**state["config"], "steps": state["step"], "epochs done": state["epoch"],
                           **({"started from": describe_start(state["init"])} if state.get("init") else {}),
                           **{f"starting weights, {name}": state["init"][name]
                              for name in ("file_sha256", "sha256", "input") if state.get("init")},
                           **({"changed by --accept": format_changes(changes)} if changes else {})}))
            facts.append((f"{encoder.name}: augmentation", dict(state["augmentation"])))
    hashes = {encoder.name: encoder.sha256() for encoder in study.available}
    counts = {f"{split} images / patients": f"{count['images']} / {count['patients']}"
              for split, count in study.manifest.counts.items()}  # fmt: skip
    versions = {"code": commit(), "python": platform.python_version(), **{name: version_of(name) for name in PACKAGES},
                "machine": f"{platform.system()} {platform.machine()}"}  # fmt: skip
    return [*facts, ("Encoders, sha256", dict(hashes)),
            ("Data", {**study.manifest.settings, "fingerprint": study.manifest.fingerprint(),
                      "rejected": study.manifest.rejected, **counts}),
            ("Versions", dict(versions))]  # fmt: skip


def list_commands(study: Study) -> list[str]:
    """The commands that reproduce the runs and the report; a comment instead if no command reproduces a run.

    Paths are those at which the report found runs and shards.
    """
    trained = list[str]()
    for encoder in study.encoders:
        if encoder.state is None:
            continue
        config = encoder.state["config"]
        out = (encoder.run or Path(config["out"])).absolute()
        with translate_load_errors(out):
            shards = locate_shards(config["shards"], config["out"], out) or str(config["shards"])
            if encoder.state["shards"] == study.manifest.fingerprint():
                shards = absolute_place(study.settings.shards)
            trained += reproduction_commands(encoder.state, out, shards)
    return [*dict.fromkeys(trained), study.settings.command()]
