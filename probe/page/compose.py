"""Compose the report page: its headline, sections, notes and facts, in the order in which they appear."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from probe.fewshot import FRACTION_DRAWS
from probe.labels_needed import FURTHEST
from probe.linear import INVERSE_L2
from probe.measure import ALL, BALANCED, FINETUNE, Measured, share_name
from probe.page.figures import colours, plot_forest, plot_roc, plot_scores, plot_shots
from probe.page.formats import format_estimate, withheld_note
from probe.page.inputs import layout_inputs
from probe.page.layout import (
    MAIN,
    all_tables,
    layout,
    layout_differences,
    layout_needed,
    layout_shots,
    layout_strengths,
    with_mean_column,
)
from probe.page.notes import list_commands, list_facts, list_notes
from probe.page.sections import (
    feature_pictures,
    headline_cells,
    in_words,
    occlusion_section,
    pretraining_sections,
    published_section,
    subgroup_section,
)
from probe.page.table import thumbnail_verdicts, with_mean
from probe.page.write import Page, Section, with_unique_names
from probe.published_protocol import NOISE
from probe.study import Study
from shard.progress import Progress
from train.frozen_features import Features

_MAIN = ("A linear probe on frozen features, trained on few images and tested on patients it was not trained on. "
         "Brackets: 95 % interval over draws, pools of support patients and test patients. Chance level is an AUROC of "
         "0.5.")  # fmt: skip
_PAIRED = ("The two encoders of a pair are evaluated on the same draws and the same patients, so variation that they "
           "share cancels. If the interval contains zero (grey), the data do not show which encoder is better.")
_SHOTS = ("Support sets are nested: each k-shot set is part of the larger ones. With all labels there is a single "
          "probe and no draw, so the interval is over patients only. A share such as 1% is a random part of the "
          "labelled images of training patients, with positives as frequent as there; its mean is over "
          f"{FRACTION_DRAWS} parts. How many labels an AUROC takes is read from a power law, ceiling − scale · "
          f"shots^(−exponent), fitted to the curve, and not trusted beyond {FURTHEST} times the largest number of "
          "shots: there it counts as not reached. Its intervals are over draws and test patients of this pool of "
          "support patients.")  # fmt: skip
_STRENGTHS = (f"The C of all other tables is {INVERSE_L2:g}, fixed beforehand; a smaller C is a stronger penalty. "
              "The rows show what each encoder would have gained or lost by another choice.")  # fmt: skip
_FEATURES = ("Nearest neighbours by cosine similarity among the training images of which this report has features, and "
             "a t-SNE map of the test images, for qualitative inspection. The sizes of clusters in such a map, and the "
             "distances between them, have no meaning.")  # fmt: skip


def compose(
    study: Study, measured: Measured, table: pd.DataFrame, differences: pd.DataFrame, features: Mapping[str, Features]
) -> Page:  # fmt: skip
    """Compose the page. table, differences: from score_table and difference_table; features: from read_features."""
    return Page(
        headline=_headline(study, table, differences, measured),
        verdicts=[*thumbnail_verdicts(differences, study.mean), *withheld_note(study.withheld)],
        sections=with_unique_names(_sections(study, measured, table, differences, features)),
        notes=list_notes(study),
        facts=list_facts(study),
        commands=list_commands(study),
        label_policy=study.settings.label_policy,
        synthetic=bool(study.manifest.settings.get("synthetic")),
    )  # fmt: skip


def _sections(
    study: Study, measured: Measured, table: pd.DataFrame, differences: pd.DataFrame, features: Mapping[str, Features]
) -> list[Section]:  # fmt: skip
    """All sections that have a picture or a table."""
    tasks, shots = study.tasks, study.headline
    positive = {task: float(draws.test_labels.mean()) for task, draws in study.drawn.items()}
    palette = colours([encoder.name for encoder in study.available])
    specs = [spec for spec in all_tables() if spec.probe != FINETUNE or study.settings.finetune]
    sheets = [layout(table, spec, study.encoders, tasks, shots, positive, study.mean) for spec in specs]
    main = layout(table, MAIN, study.encoders, tasks, shots, positive, study.mean)
    columns = with_mean_column([task for task in tasks if task in study.drawn], study.mean)
    all_shots = amounts(study)
    needed = layout_needed(with_mean(measured.scores, study.drawn, study.mean), study.available, list(study.drawn),
                           study.settings.target_auroc, study.withheld, study.mean)  # fmt: skip
    published = published_section(study, measured)
    builders: list[Callable[[], list[Section]]] = [
        lambda: [Section(f"Frozen features, {in_words(shots)}", _MAIN,
                         [plot_scores(table, palette, columns, str(shots))], [main, layout_inputs(study.encoders)])],
        lambda: [Section("Paired differences", _PAIRED, plot_forest(differences),
                         [layout_differences(differences)] if len(differences) else [])],
        lambda: [Section("Label efficiency", _SHOTS,
                         [plot_shots(table, palette, task, all_shots) for task in columns],
                         [layout_shots(table, study.encoders, tasks, all_shots, study.mean),
                          *([needed] if needed else [])])]
        if len(all_shots) > 1 else [],
        lambda: [Section("ROC curves", "Mean over draws, on all labelled test images.",
                         [plot_roc({name: measured.rocs[name, task] / study.draws for name in palette
                                    if (name, task) in measured.rocs}, palette, task)
                          for task in study.drawn if shots in study.measured[task]])],
        lambda: [Section("Strength of the penalty", _STRENGTHS, [],
                         [layout_strengths(table, study.encoders, tasks, shots, study.mean)])]
        if shots != "all" else [],
        lambda: [Section("Other metrics", "", [], sheets)],
        lambda: published,
        lambda: subgroup_section(study, table),
        lambda: [Section("Nearest neighbours and feature map", _FEATURES, feature_pictures(study, features))],
        lambda: occlusion_section(study, features),
        lambda: pretraining_sections(study, palette),
    ]  # fmt: skip
    with Progress("drawing figures", len(builders), "sections") as progress:
        sections = [section for build in progress.counted(builders) for section in build()]
    if study.settings.protocol == "paper":
        sections = [*published, *(section for section in sections if section not in published)]
    return [section for section in sections if section.pictures or section.sheets]


def amounts(study: Study) -> list[str]:
    """The measured amounts of labels, ascending: numbers of shots, shares of the labels, all."""
    shots = [k for k in study.settings.all_shots if any(k in task for task in study.measured.values())]
    shares = sorted({share for draws in study.drawn.values() for share in draws.fractions})
    return [*(str(k) for k in shots if k != "all"), *map(share_name, shares), *(["all"] if "all" in shots else [])]


def _headline(study: Study, table: pd.DataFrame, differences: pd.DataFrame, measured: Measured) -> str:
    over = study.mean if len(study.drawn) > 1 else next(iter(study.drawn))
    if study.settings.protocol == "paper":
        return _published_headline([encoder.name for encoder in study.given], measured)
    cells = headline_cells(study, table)
    cells = cells[(cells["test"] == ALL) & (cells["task"] == over)].set_index("encoder")
    given = [encoder for encoder in study.given if encoder.name in cells.index]
    article, metric = ("a", f"mean AUROC over {len(study.drawn)} tasks") if over == study.mean else (
        "an", f"AUROC on {over}")  # fmt: skip
    if len(given) > 2:
        scores = [f"{encoder.label} {format_estimate(*cells.loc[encoder.name, ['mean', 'low', 'high']])}"
                  for encoder in given]  # fmt: skip
        return f"With {in_words(study.headline)}, {metric}: {'; '.join(scores)}."
    results = []
    for encoder in given:
        cell = cells.loc[encoder.name]
        apart = [f"{format_estimate(row['difference'], row['low'], row['high'], signed=True)} vs {row['reference']}"
                 for row in differences.to_dict("records")
                 if row["encoder"] == encoder.name and row["task"] == over]  # fmt: skip
        score = format_estimate(cell["mean"], cell["low"], cell["high"])
        results.append(f"{encoder.label} reaches {article} {metric} of {score}"
                       + (f" ({', '.join(apart)})" if apart else ""))  # fmt: skip
    return f"With {in_words(study.headline)}, " + "; ".join(results) + "."


def _published_headline(names: list[str], measured: Measured) -> str:
    accuracies = []
    for name in [*names, NOISE]:
        peaks = [peaks.peak.mean() for (encoder, _, test), peaks in measured.peaks.items()
                 if (encoder, test) == (name, BALANCED)]  # fmt: skip
        accuracies.append(f"{name} {100 * np.mean(peaks):.1f} %")
    return ("Published protocol, peak accuracy on balanced test sets, mean over tasks and draws: "
            f"{', '.join(accuracies)}.")  # fmt: skip
