"""The sections of the page that take more than a call: published protocol, subgroups, features, pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from pipeline.augmentation import Augmentation
from pipeline.preview import plot_preview
from probe.measure import ALL, BALANCED, LINEAR, Measured
from probe.names import MAJORITY
from probe.occlusion import occlusion_maps
from probe.page.figures import Picture, plot_journals, plot_maps
from probe.page.formats import Sheet, format_cell, format_estimate
from probe.page.gallery import map_test_images, neighbours
from probe.page.write import Section
from probe.published_protocol import EPOCHS, LR, NOISE
from probe.slices import LEAST, count_in_slice, is_large_enough
from probe.study import Study
from shard.errors import InputError
from train.device import resolve_device
from train.frozen_features import Features, standardise
from train.journal import read_journal


def in_words(shots: object) -> str:
    """Put a number of shots into words: "10 labelled examples per class"."""
    return "all labels" if shots == "all" else f"{shots} labelled example{'' if shots == 1 else 's'} per class"


def headline_cells(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Select the AUROC of the linear probe at the headline's number of shots."""
    cells: pd.DataFrame = table[(table["metric"] == "auroc") & (table["probe"] == LINEAR)
                                & (table["shots"] == str(study.headline))]  # fmt: skip
    return cells


def feature_pictures(study: Study, features: Mapping[str, Features]) -> list[Picture]:
    """Plot neighbours and a map for the first given encoder that has not collapsed; nothing if there is none."""
    names = [encoder.name for encoder in study.given if not encoder.collapsed]
    if not names:
        return []
    standard = standardise(features[names[0]], study.reference)
    return [neighbours(study, standard), *map_test_images(study, standard)]


def occlusion_section(study: Study, features: Mapping[str, Features]) -> list[Section]:
    """Where the probes of the first given encoder that has not collapsed look; [] without one, or with --maps=0."""
    encoders = [encoder for encoder in study.given if encoder.module is not None and not encoder.collapsed]
    if not encoders or not study.settings.maps:
        return []
    try:
        device = torch.device(resolve_device(study.settings.device))
    except InputError:  # parts measured on a GPU are merged on a machine without one
        device = torch.device("cpu")
    maps = occlusion_maps(study, encoders[0], features[encoders[0].name], device)
    by_task = {task: [one for one in maps if one.task == task] for task in dict.fromkeys(one.task for one in maps)}
    text = (f"Test images chosen at random, and how the decision of {encoders[0].name}'s probes (the mean over draws) "
            "changes where a patch, a quarter of the side, is covered with grey. Orange areas add to the finding's "
            "score, purple areas lower it, in standard deviations of the score over the test images. A map shows what "
            "the score depends on in one image, not where a disease is: a covered patch is unlike any radiograph, "
            "areas can stand in for each other, and a probe of few examples may use whatever goes along with the "
            "finding, such as a device, a view or the edge of the film.")  # fmt: skip
    return [Section("Where the probe looks", text, [plot_maps(task, own) for task, own in by_task.items()])]


def published_section(study: Study, measured: Measured) -> list[Section]:
    """The results of the published protocol, and of the same protocol on pure noise; [] if it was not measured."""
    if not measured.peaks:
        return []
    labels = {**{encoder.name: encoder.label for encoder in study.available}, NOISE: NOISE}
    tasks = [task for task in study.drawn if (next(iter(labels)), task, ALL) in measured.peaks]
    sheets = []
    for test, images in ((ALL, "all labelled test images"), (BALANCED, "balanced test sets")):
        for field, epoch in (("peak", "best epoch, selected on the test images"), ("final", "last epoch")):
            rows = []
            for name, label in labels.items():
                accuracies = [getattr(measured.peaks[name, task, test], field) for task in tasks]
                rows.append([label, *(format_estimate(draws.mean(), *_middle(draws, task in study.withheld),
                                                      percent=True)
                                      for task, draws in zip(tasks, accuracies, strict=True))])  # fmt: skip
            if test == ALL:
                shares = [float(study.drawn[task].test_labels.mean()) for task in tasks]
                rows.append([MAJORITY, *(f"{100 * max(share, 1 - share):.1f}" for share in shares)])
            sheets.append(Sheet(f"Published protocol, accuracy on {images}, %: {epoch}", ["", *tasks], rows))
    noise = np.concatenate([measured.peaks[NOISE, task, BALANCED].peak for task in tasks])
    final = np.concatenate([measured.peaks[NOISE, task, BALANCED].final for task in tasks])
    text = (f"One linear layer, trained with Adam at a learning rate of {LR:g} (the study states none) for {EPOCHS} "
            "epochs; the accuracy is that of the epoch that is best on the test images. On pure noise, features "
            f"permuted at random among the images, this protocol reports {100 * noise.mean():.1f} % on balanced test "
            f"sets on average, and more than {100 * np.percentile(noise, 95):.1f} % for one draw in twenty; the last "
            f"epoch has {100 * final.mean():.1f} %. A study with a single draw reports one such number. Brackets here: "
            "the middle 95 % of draws.")  # fmt: skip
    return [Section("Published protocol, for comparison", text, [], sheets)]


def _middle(values: np.ndarray, withheld: bool) -> tuple[float, float]:
    """The middle 95 % of draws; NaN if the task has too few patients."""
    low, high = np.percentile(values, [2.5, 97.5])
    return (float("nan"), float("nan")) if withheld else (float(low), float(high))


def subgroup_section(study: Study, table: pd.DataFrame) -> list[Section]:
    """AUROC of the given encoders in each slice of the test images; [] if there are no slices."""
    cells = headline_cells(study, table).set_index(["encoder", "task", "test"])
    rows = []
    for encoder in study.given:
        for part in study.slices:
            row = []
            for task, draws in study.drawn.items():
                patients = count_in_slice(part, draws.test, draws.test_labels, study.patients)
                counts = f"({patients[0]}+, {patients[1]}−)"
                key = (encoder.name, task, part.name)
                if not is_large_enough(patients) or key not in cells.index:
                    row.append(f"n/a too few {counts}")
                else:
                    cell = cells.loc[key]
                    row.append(f"{format_cell(cell['mean'], cell['low'], cell['high'])} {counts}")
            rows.append([f"{encoder.name}, {part.name}", *row])
    if not rows:
        return []
    text = (f"AUROC in subgroups of the test patients, with {in_words(study.headline)}. Parentheses: the numbers of "
            f"patients with a positive (+) and with a negative (−) image; with fewer than {LEAST} of either, no result "
            "is given. Subgroups differ in more than the named attribute: view, age and illness are associated.")
    return [Section("Subgroups: sex, age, view", text, [], [Sheet("AUROC by subgroup", ["", *study.drawn], rows)])]


def pretraining_sections(study: Study, palette: Mapping[str, str]) -> list[Section]:
    """Training curves of the runs, and augmented views as in the first run; [] if no run is compared."""
    runs = [encoder for encoder in study.encoders if encoder.run is not None]
    if not runs:
        return []
    journals = {encoder.name: read_journal(encoder.run) for encoder in runs if encoder.run is not None}
    curves = [plot_journals(journals, palette, "loss", "NT-Xent loss", "epoch"),
              plot_journals(journals, palette, "alignment", "Alignment (lower: views agree)", "step"),
              plot_journals(journals, palette, "uniformity", "Uniformity (lower: spread out)", "step")]  # fmt: skip
    assert runs[0].state is not None
    augmentation = Augmentation(**runs[0].state["augmentation"])
    if runs[0].state["shards"] != study.manifest.fingerprint():  # other shards may not keep a patient's images together
        augmentation = replace(augmentation, patient_positive=0.0)
    content, _ = plot_preview(study.settings.folder, augmentation, images=4, seed=0)
    synthetic = " synthetic" if study.manifest.settings.get("synthetic") else ""
    views = Picture("views", f"Each row: a{synthetic} radiograph and two augmented views of it from each backend, with "
                             "their parameters", content, "png")  # fmt: skip
    text = ("NT-Xent loss by epoch. Alignment: the mean squared distance between the two views of an image on the unit "
            "sphere. Uniformity: the log of the mean Gaussian potential between all views (Wang & Isola, 2020). All "
            "are of training batches.")  # fmt: skip
    return [Section("Pre-training", text, [curve for curve in curves if curve]),
            Section("Augmented views", "", [views])]  # fmt: skip
