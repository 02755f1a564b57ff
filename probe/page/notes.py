"""What a reader has to know of a report: how it was measured, what it can't show, and what it was made with."""

from __future__ import annotations

import platform
from pathlib import Path

import pandas as pd

from probe.encoders import SIDE
from probe.linear import INVERSE_L2
from probe.statistics import REPLICATES
from probe.study import Study
from shard.machine import commit, version_of
from train.accepted import changes_of, say_changes
from train.checkpoint import translate_load_errors
from train.moved import find_moved
from train.reproduce import reproduce_commands

PACKAGES = ("cxr-simclr", "torch", "torchvision", "nvidia-dali-cuda120", "scikit-learn", "numpy", "pandas", "pillow")


def list_notes(study: Study) -> list[str]:
    """How to read this: how it was measured, and what it can't show."""
    settings, held_out = study.settings, study.labels[study.labels["split"] != "train"]
    counts = ", ".join(f"{task} {(held_out[task] == 1).sum()} positive / {(held_out[task] == 0).sum()} negative "
                       f"images, of {_of_patients(held_out, task, 1)} / {_of_patients(held_out, task, 0)} patients"
                       for task in study.tasks)  # fmt: skip
    splits = " and ".join(dict.fromkeys(held_out["split"]))
    k = study.headline
    support = ("Learned from all labelled training images" if k == "all" else
               f"{k} positive + {k} negative images of {2 * k} different training patients")  # fmt: skip
    notes = [
        f"{support}; {study.draws} draws, shared by all encoders (draws.csv); mean over draws with its 95 % interval "
        f"from a two-level bootstrap: draws and test patients taken with replacement, {REPLICATES} times.",
        "It can't show: what another choice of training patients, another seed for the weights, or another archive "
        "would give; whether labels mined from reports are true; or that a difference of AUROC matters to a patient.",
        "Paired differences: p two-sided from the bootstrap, corrected over the tasks (Holm), not over the encoders.",
        f"Tested on split {splits}: {held_out['patient'].nunique()} patients, none in a support set, "
        f"{_seen(study)}; all labelled images, and sets balanced by drawing the larger class down, a set a draw, on "
        f"which guessing the majority scores 50 %. Labelled there: {counts}.",
        f"{settings.labels_said} Features are frozen, standardised by the unlabelled training images and divided by "
        f"the square root of the encoder's width; logistic regression with L2, C = {INVERSE_L2:g} fixed beforehand, to "
        "convergence; final, not peak, accuracy.",
        f"An encoder that does not beat the {SIDE}×{SIDE} thumbnail has learned nothing that grey levels do not say.",
        *(f"COLLAPSED: {one.name}: {one.collapsed}. Nearest neighbours and the map are of none that has "
          "collapsed."
          for one in study.encoders if one.collapsed),
        *(f"{encoder.name}: {'; '.join((encoder.source, *encoder.said, *size))}." for encoder in study.encoders
          for size in [() if encoder.said else (f"{encoder.input.size} px",)]),
        *(f"{reason}." for reason in study.unmeasured),
    ]
    warning = "SYNTHETIC radiographs (phantoms): the figures say that the software works, and nothing of patients."
    return [warning, *notes] if study.manifest.settings.get("synthetic") else notes


def _of_patients(labels: pd.DataFrame, task: str, label: int) -> int:
    """How many patients have such an image."""
    return int(labels.loc[labels[task] == label, "patient"].nunique())


def _seen(study: Study) -> str:
    """Patients are known to be new to an encoder only where it learned from these very shards' training split."""
    strange = [one.name for one in study.encoders if one.is_given and (one.state is None
               or one.state["shards"] != study.manifest.fingerprint())]  # fmt: skip
    return (f"POSSIBLY SEEN IN PRE-TRAINING by {', '.join(strange)}, which ran on other shards" if strange
            else "none seen in pre-training")  # fmt: skip


def list_facts(study: Study) -> list[tuple[str, dict[str, object]]]:
    """Settings, hashes, counts and versions, in titled lists."""
    facts: list[tuple[str, dict[str, object]]] = [("Settings of the probe", dict(study.settings.plain()))]
    for one in study.encoders:
        if one.state is not None:
            changes = changes_of(one.state)
            facts.append((f"{one.name}: settings of its pre-training",
                          {**one.state["config"], "steps": one.state["step"], "epochs done": one.state["epoch"],
                           **({"changed on the way by --accept": say_changes(changes)} if changes else {})}))
            facts.append((f"{one.name}: augmentation", dict(one.state["augmentation"])))
    hashes = {one.name: one.sha256() for one in study.encoders if one.module is not None}
    counts = {f"{split} images / patients": f"{some['images']} / {some['patients']}"
              for split, some in study.manifest.counts.items()}  # fmt: skip
    versions = {"code": commit(), "python": platform.python_version(), **{name: version_of(name) for name in PACKAGES},
                "machine": f"{platform.system()} {platform.machine()}"}  # fmt: skip
    return [*facts, ("Encoders, sha256", dict(hashes)),
            ("Data", {**study.manifest.settings, "fingerprint": study.manifest.fingerprint(),
                      "rejected": study.manifest.rejected, **counts}),
            ("Versions", dict(versions))]  # fmt: skip


def list_commands(study: Study) -> list[str]:
    """The commands that make the runs and the report again; a comment where none makes a run.

    Where the runs and shards lie is where the report found them.
    """
    trained = list[str]()
    for one in study.encoders:
        if one.state is None:
            continue
        config = one.state["config"]
        out = (one.run or Path(config["out"])).absolute()
        with translate_load_errors(out):
            shards = find_moved(config["shards"], config["out"], out, "manifest.json") or Path(config["shards"])
            if one.state["shards"] == study.manifest.fingerprint():
                shards = study.settings.shards.absolute()
            trained += reproduce_commands(one.state, out, shards)
    return [*dict.fromkeys(trained), study.settings.command()]
