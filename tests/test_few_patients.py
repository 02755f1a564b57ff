"""With few patients of a class, the report withholds interval, p value and verdict, and gives the reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.encoder import Encoder
from probe.measure import ALL, LINEAR, Key
from probe.names import MEAN
from probe.page.figures import colours, plot_forest, plot_scores, plot_shots
from probe.page.formats import withheld_note
from probe.page.layout import MAIN, layout, layout_differences
from probe.page.table import difference_table, score_table, thumbnail_verdicts, with_mean
from probe.slices import count_patients, too_few, withhold
from probe.statistics import Scores, estimate, holm
from train.weights.preprocessing import Input

ENCODERS = [Encoder(name, "", None, Input(64, 0.5, 0.25)) for name in ("Thumbnail", "X")]
TASKS = ["A", "B", "C"]
WITHHELD = {"B": "1 positive test patient", MEAN: "includes these"}


@pytest.fixture
def scores() -> dict[Key, Scores]:
    """Scores of three tasks; X is far better than Thumbnail in every replicate."""
    rng, found = np.random.default_rng(0), {}
    for task in TASKS:
        samples = [rng.uniform(0, 0.2, size=(size, 5)) for size in (41, 41, 8)]
        found[Key("Thumbnail", LINEAR, 10, task, ALL)] = Scores(*samples, 50)
        better = [part + 0.5 + rng.normal(0, 0.02, part.shape) for part in samples]
        better[0][0] = samples[0][0] + 0.5  # the estimate
        found[Key("X", LINEAR, 10, task, ALL)] = Scores(*better, 50)
    return with_mean(found, TASKS)


def test_count_patients_counts_patients_not_images() -> None:
    patients = np.array([-1, 0, 0, 1, 1, 2, 3])  # -1: a training image
    test, labels = np.array([1, 2, 3, 4, 5, 6]), np.array([1, 1, 1, 0, 0, 0])
    assert count_patients(test, labels, patients) == (2, 3)  # patient 1 is in both
    assert [too_few(counts) for counts in ((10, 10), (10, 99))] == ["", ""]
    assert too_few((9, 50)) == "9 positive test patients" and too_few((50, 1)) == "1 negative test patient"


def test_withhold_covers_findings_with_few_patients_and_the_mean() -> None:
    assert withhold({"A": (10, 10), "B": (1, 30), "C": (40, 10)}, MEAN) == WITHHELD
    assert withhold({"B": (1, 30)}, MEAN) == {"B": WITHHELD["B"]}
    assert withhold({"A": (10, 10), "C": (40, 10)}, MEAN) == {}


def test_withheld_scores_have_a_mean_but_no_interval(scores: dict[Key, Scores]) -> None:
    table, full = score_table(scores, WITHHELD), score_table(scores)
    assert table["mean"].equals(full["mean"]) and full["low"].notna().all() and set(full["withheld"]) == {""}
    without = table["task"].isin(WITHHELD)
    assert table.loc[without, ["low", "high", "standard_error"]].isna().all(axis=None)
    assert table[~without].equals(full[~without])
    assert set(table.loc[table["task"] == "B", "withheld"]) == {"1 positive test patient"}
    (_, row) = layout(table, MAIN, ENCODERS, TASKS, 10, {}).rows
    assert row[2].endswith(" [–]") and row[4].endswith(" [–]") and row[1].count(",") == row[3].count(",") == 1


def test_withheld_differences_are_not_tested(scores: dict[Key, Scores]) -> None:
    table = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD).set_index("task")
    assert table.loc[["B", MEAN], ["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert table["difference"].to_numpy() == pytest.approx(0.5)
    margins = [scores[Key("X", LINEAR, 10, task, ALL)] - scores[Key("Thumbnail", LINEAR, 10, task, ALL)]
               for task in "AC"]  # fmt: skip
    assert table.loc[["A", "C"], "p_holm"].tolist() == holm([estimate(one.of("auroc")).p for one in margins])
    sheet = layout_differences(table.reset_index())
    assert sheet.rows[0][2] == sheet.rows[0][4] == "+0.500 [–]" and "p < 0.001" in sheet.rows[0][1]


def test_withheld_findings_have_a_reason_but_no_verdict(scores: dict[Key, Scores]) -> None:
    table = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD).assign(p_holm=0.01)
    assert thumbnail_verdicts(table) == ["X beats the 16×16 thumbnail on A and C."]
    assert thumbnail_verdicts(table[table["task"] == "B"]) == []
    (line,) = withheld_note(WITHHELD)
    assert line.startswith("[–]: no interval, p value or verdict for B (1 positive test patient), Mean (includes these")
    assert "10 or more patients" in line and withheld_note({}) == []


# Those of numpy and matplotlib. Files that other tests left open may be closed here, with a ResourceWarning.
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
@pytest.mark.parametrize("tasks", [TASKS, ["B"]])
def test_figures_of_withheld_findings_have_no_interval(scores: dict[Key, Scores], tasks: list[str]) -> None:
    table = score_table(scores, WITHHELD)
    differences = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD)
    differences = differences[differences["task"].isin(tasks)]
    figures = plot_forest(differences)
    alt_texts = {figure.name: figure.alt for figure in figures}
    assert alt_texts["differences-b"].endswith("X minus Thumbnail +0.500, without an interval.")
    names = colours(["Thumbnail", "X"])
    figures += [plot_scores(table, names, tasks, "10"), plot_shots(table, names, "B", ["10"])]
    assert not any("nan" in figure.alt or b"nan" in figure.content.lower() for figure in figures)
    assert pd.Series([figure.name for figure in figures]).is_unique
