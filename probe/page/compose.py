"""A study and what was measured → the page: what is said and shown, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from pipeline.augmentation import Augmentation
from pipeline.preview import plot_preview
from probe.measure import ALL, BALANCED, FINETUNE, LINEAR, Measured
from probe.names import MAJORITY
from probe.page.figures import Picture, colours, draw_forest, draw_journals, draw_roc, draw_scores, draw_shots
from probe.page.gallery import map_test_images, neighbours
from probe.page.notes import list_commands, list_facts, list_notes
from probe.page.table import (
    MAIN,
    TABLES,
    Sheet,
    against_pixels,
    format_cell,
    format_estimate,
    layout,
    layout_differences,
    layout_shots,
    say_assumed,
    say_withheld,
    with_mean_column,
)
from probe.page.write import Page, Section
from probe.published_protocol import EPOCHS, LR, NOISE
from probe.slices import LEAST, count, find_slices, is_large_enough
from probe.study import Study
from train.frozen_features import Features, standardise
from train.journal import read_journal


def compose(
    study: Study, measured: Measured, table: pd.DataFrame, differences: pd.DataFrame, features: Mapping[str, Features]
) -> Page:  # fmt: skip
    """The page; features as read_features gives them."""
    tasks, shots = study.tasks, study.headline
    positive = {task: float(draws.test_labels.mean()) for task, draws in study.drawn.items()}
    palette = colours([encoder.name for encoder in study.present])
    shown = [one for one in TABLES if one.probe != FINETUNE or study.settings.finetune]
    sheets = [layout(table, one, study.encoders, tasks, shots, positive, study.mean) for one in shown]
    main = layout(table, MAIN, study.encoders, tasks, shots, positive, study.mean)
    columns = with_mean_column([task for task in tasks if task in study.drawn], study.mean)
    all_shots = [str(one) for one in study.settings.all_shots if any(one in some for some in study.measured.values())]
    published = _published(study, measured)
    sections = [
        Section(f"Frozen features, {_words(shots)}", _EXPLAIN, [draw_scores(table, palette, columns, str(shots))],
                [main]),
        Section("Paired differences", _PAIRED, draw_forest(differences),
                [layout_differences(differences)] if len(differences) else []),
        Section("How many labels are needed", _SHOTS,
                [draw_shots(table, palette, task, all_shots) for task in columns] if len(all_shots) > 1 else [],
                [layout_shots(table, study.encoders, tasks, all_shots, study.mean)] if len(all_shots) > 1 else []),
        Section("ROC curves", "Mean over draws, on all labelled test images.",
                [draw_roc({name: measured.rocs[name, task] / study.draws for name in palette
                           if (name, task) in measured.rocs}, palette, task)
                 for task in study.drawn if shots in study.measured[task]]),
        Section("Other measures", "", [], sheets),
        *published,
        *_sliced(study, table),
        Section("What the features see", _GALLERY, _seen_features(study, features)),
        *_pretraining(study, palette),
    ]  # fmt: skip
    if study.settings.protocol == "paper":
        sections = [*published, *(section for section in sections if section not in published)]
    return Page(
        headline=_headline(study, table, differences, measured),
        verdicts=[*against_pixels(differences, study.mean), *say_withheld(study.withheld),
                  *say_assumed(study.encoders)],
        sections=_with_own_files([section for section in sections if section.pictures or section.sheets]),
        notes=list_notes(study),
        facts=list_facts(study),
        commands=list_commands(study),
        labels_said=study.settings.labels_said,
        synthetic=bool(study.manifest.settings.get("synthetic")),
    )


def _with_own_files(sections: list[Section]) -> list[Section]:
    """The sections, each picture under a name that no other has: "Mass" and "mass!" would be the same file."""
    taken = set[str]()
    renamed = []
    for section in sections:
        pictures = []
        for picture in section.pictures:
            names = (picture.name, *(f"{picture.name}-{number}" for number in range(2, len(taken) + 3)))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            pictures.append(picture._replace(name=name))
        renamed.append(replace(section, pictures=pictures))
    return renamed


_EXPLAIN = ("A linear probe on frozen features, learned from few images and tested on patients never trained on. "
            "Brackets: 95 % interval over draws and test patients. Guessing has an AUROC of 0.5.")  # fmt: skip
_PAIRED = ("Both encoders on the same draws and the same patients, so what they share of chance cancels. Where zero "
           "lies inside of the interval (grey), the data leave open which is better.")  # fmt: skip
_SHOTS = ("Each k-shot support set is a part of the larger ones. With all labels there is one probe and no draw: its "
          "interval is over patients alone.")  # fmt: skip
_GALLERY = ("Nearest neighbours by cosine among training images, and a t-SNE map of test images: pictures to think "
            "with. Distances between clusters of such a map, and their sizes, mean nothing.")  # fmt: skip


def _words(shots: object) -> str:
    return "all labels" if shots == "all" else f"{shots} labelled example{'' if shots == 1 else 's'} a class"


def _seen_features(study: Study, features: Mapping[str, Features]) -> list[Picture]:
    """What the first encoder that was given and tells images apart makes of them; nothing where none does."""
    given = [one.name for one in study.encoders if one.is_given and not one.collapsed]
    if not given:
        return []
    standard = standardise(features[given[0]], study.train)
    return [neighbours(study, standard), *map_test_images(study, standard)]


def _headline(study: Study, table: pd.DataFrame, differences: pd.DataFrame, measured: Measured) -> str:
    over = study.mean if len(study.drawn) > 1 else next(iter(study.drawn))
    given = [one for one in study.encoders if one.is_given]
    if study.settings.protocol == "paper":
        return _published_headline([one.name for one in given], measured)
    chosen = _cells(study, table)
    chosen = chosen[(chosen["test"] == ALL) & (chosen["task"] == over)].set_index("encoder")
    said = []
    for encoder in given:
        if encoder.name not in chosen.index:
            continue
        cell = chosen.loc[encoder.name]
        against = [f"{format_estimate(row['difference'], row['low'], row['high'], signed=True)} against "
                   f"{row['reference']}" for row in differences.to_dict("records")
                   if row["encoder"] == encoder.name and row["task"] == over]  # fmt: skip
        what = f"a mean AUROC over {len(study.drawn)} tasks" if over == study.mean else f"an AUROC on {over}"
        name = f"{encoder.name} (collapsed)" if encoder.collapsed else encoder.name
        said.append(f"{name} reaches {what} of {format_estimate(cell['mean'], cell['low'], cell['high'])}"
                    + (f": {', '.join(against)}" if against else ""))  # fmt: skip
    return f"With {_words(study.headline)}, " + "; ".join(said) + "."


def _cells(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """AUROC of the linear probe with the headline's shots."""
    found: pd.DataFrame = table[(table["metric"] == "auroc") & (table["probe"] == LINEAR)
                                & (table["shots"] == str(study.headline))]  # fmt: skip
    return found


def _published_headline(names: list[str], measured: Measured) -> str:
    shares = []
    for name in [*names, NOISE]:
        peaks = [some.peak.mean() for (encoder, _, test), some in measured.peaks.items()
                 if (encoder, test) == (name, BALANCED)]  # fmt: skip
        shares.append(f"{name} {100 * np.mean(peaks):.1f} %")
    return f"Published protocol, peak accuracy on balanced test sets, mean over tasks and draws: {', '.join(shares)}."


def _published(study: Study, measured: Measured) -> list[Section]:
    """The published protocol beside ours, and what it makes of noise."""
    if not measured.peaks:
        return []
    names = [*(one.name for one in study.present), NOISE]
    tasks = [task for task in study.drawn if (names[0], task, ALL) in measured.peaks]
    collapsed = {one.name: f"{one.name} (collapsed)" for one in study.encoders if one.collapsed}
    sheets = []
    for test, which in ((ALL, "all labelled test images"), (BALANCED, "balanced test sets")):
        for field, when in (("peak", "best epoch, chosen on the test images"), ("final", "last epoch")):
            rows = []
            for name in names:
                found = [getattr(measured.peaks[name, task, test], field) for task in tasks]
                label = collapsed.get(name, name)
                rows.append([label, *(format_estimate(some.mean(), *_middle(some, task in study.withheld), percent=True)
                                     for task, some in zip(tasks, found, strict=True))])  # fmt: skip
            if test == ALL:
                shares = [float(study.drawn[task].test_labels.mean()) for task in tasks]
                rows.append([MAJORITY, *(f"{100 * max(share, 1 - share):.1f}" for share in shares)])
            sheets.append(Sheet(f"Published protocol, accuracy on {which}, %: {when}", ["", *tasks], rows))
    noise = np.concatenate([measured.peaks[NOISE, task, BALANCED].peak for task in tasks])
    final = np.concatenate([measured.peaks[NOISE, task, BALANCED].final for task in tasks])
    text = (f"One linear layer, Adam at {LR:g} (the study names no rate), {EPOCHS} epochs, and the accuracy of the "
            "epoch that does best on the test images. On pure noise, features dealt out to the images at random, it "
            f"reports {100 * noise.mean():.1f} % on balanced test sets on average, and one draw in twenty more than "
            f"{100 * np.percentile(noise, 95):.1f} %; the last epoch has {100 * final.mean():.1f} %. A study with one "
            "draw prints one such number. Brackets here: the middle 95 % of draws.")  # fmt: skip
    return [Section("The published protocol, for comparison", text, [], sheets)]


def _middle(values: np.ndarray, withheld: bool) -> tuple[float, float]:
    """The middle 95 % of draws; none where the task has too few patients."""
    low, high = np.percentile(values, [2.5, 97.5])
    return (float("nan"), float("nan")) if withheld else (float(low), float(high))


def _sliced(study: Study, table: pd.DataFrame) -> list[Section]:
    """AUROC of the encoders that were given in each slice of the test images; nothing where there is none."""
    slices = find_slices(study.labels)
    chosen = _cells(study, table).set_index(["encoder", "task", "test"])
    rows = []
    for encoder in study.encoders:
        if not encoder.is_given:
            continue
        for part in slices:
            cells = []
            for task, draws in study.drawn.items():
                there = count(part, draws.test, draws.test_labels, study.patients)
                counts = f"({there[0]}+, {there[1]}−)"
                key = (encoder.name, task, part.name)
                if not is_large_enough(there) or key not in chosen.index:
                    cells.append(f"n/a too few {counts}")
                else:
                    cell = chosen.loc[key]
                    cells.append(f"{format_cell(cell['mean'], cell['low'], cell['high'])} {counts}")
            rows.append([f"{encoder.name}, {part.name}", *cells])
    if not rows:
        return []
    text = (f"AUROC in parts of the test patients, with {_words(study.headline)}. In round brackets how many patients "
            f"have a positive image there, and how many a negative one; below {LEAST} of either nothing is claimed. "
            "The slices differ in more than their name: view, age and illness go together.")  # fmt: skip
    return [Section("Slices: sex, age, view", text, [], [Sheet("AUROC by slice", ["", *study.drawn], rows)])]


def _pretraining(study: Study, palette: Mapping[str, str]) -> list[Section]:
    """How the runs learned, and from what views: those of the first run, of the report's own shards."""
    runs = [one for one in study.encoders if one.run is not None]
    if not runs:
        return []
    journals = {one.name: read_journal(one.run) for one in runs if one.run is not None}
    drawn = [draw_journals(journals, palette, "loss", "NT-Xent loss", "epoch"),
             draw_journals(journals, palette, "alignment", "Alignment (lower: views agree)", "step"),
             draw_journals(journals, palette, "uniformity", "Uniformity (lower: spread out)", "step")]  # fmt: skip
    assert runs[0].state is not None
    augmentation = Augmentation(**runs[0].state["augmentation"])
    if runs[0].state["shards"] != study.manifest.fingerprint():  # where a patient's images may lie apart
        augmentation = replace(augmentation, patient_positive=0.0)
    content, _ = plot_preview(study.settings.shards, augmentation, images=4, seed=0)
    of = " synthetic" if study.manifest.settings.get("synthetic") else ""
    views = Picture("views", f"Rows of a{of} radiograph and two augmented views of it by each backend, with their "
                             "parameters", content, "png")  # fmt: skip
    text = ("NT-Xent of the epochs; alignment: the mean squared distance of an image's two views on the sphere; "
            "uniformity: the log of the mean potential between all views (Wang & Isola, 2020). Of training batches.")
    return [Section("Pre-training", text, [picture for picture in drawn if picture]),
            Section("What the network sees", "", [views])]  # fmt: skip
