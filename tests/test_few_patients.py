"""With few patients of a class there is no interval, no p value and no verdict, and the report says so."""

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
from probe.preprocessing import Input
from probe.slices import count_patients, too_few, withhold
from probe.statistics import Scores, holm, p_value

ENCODERS = [Encoder(name, "", None, Input(64, 0.5, 0.25)) for name in ("Thumbnail", "X")]
TASKS = ["A", "B", "C"]
WITHHELD = {"B": "1 positive test patient", MEAN: "over these too"}


@pytest.fixture
def scores() -> dict[Key, Scores]:
    """Of three tasks, on which X is better by far in every replicate."""
    rng, found = np.random.default_rng(0), {}
    for task in TASKS:
        chance = [rng.uniform(0, 0.2, size=(size, 5)) for size in (41, 41, 8)]
        found[Key("Thumbnail", LINEAR, 10, task, ALL)] = Scores(*chance)
        found[Key("X", LINEAR, 10, task, ALL)] = Scores(*(part + 0.5 for part in chance))
    return with_mean(found, TASKS)


def test_patients_are_counted_and_not_images() -> None:
    patients = np.array([-1, 0, 0, 1, 1, 2, 3])  # -1: of a training image
    test, labels = np.array([1, 2, 3, 4, 5, 6]), np.array([1, 1, 1, 0, 0, 0])
    assert count_patients(test, labels, patients) == (2, 3)  # patient 1 is in both
    assert [too_few(counts) for counts in ((10, 10), (10, 99))] == ["", ""]
    assert too_few((9, 50)) == "9 positive test patients" and too_few((50, 1)) == "1 negative test patient"


def test_what_has_too_few_patients_is_withheld_and_then_the_mean() -> None:
    assert withhold({"A": (10, 10), "B": (1, 30), "C": (40, 10)}, MEAN) == WITHHELD
    assert withhold({"B": (1, 30)}, MEAN) == {"B": WITHHELD["B"]}
    assert withhold({"A": (10, 10), "C": (40, 10)}, MEAN) == {}


def test_scores_keep_their_mean_and_lose_their_interval(scores: dict[Key, Scores]) -> None:
    table, whole = score_table(scores, WITHHELD), score_table(scores)
    assert table["mean"].equals(whole["mean"]) and whole["low"].notna().all() and set(whole["withheld"]) == {""}
    without = table["task"].isin(WITHHELD)
    assert table.loc[without, ["low", "high", "standard_error"]].isna().all(axis=None)
    assert table[~without].equals(whole[~without])
    assert set(table.loc[table["task"] == "B", "withheld"]) == {"1 positive test patient"}
    (_, row) = layout(table, MAIN, ENCODERS, TASKS, 10, {}).rows
    assert row[2].endswith(" [–]") and row[4].endswith(" [–]") and row[1].count(",") == row[3].count(",") == 1


def test_differences_are_not_tested_nor_counted_as_tests(scores: dict[Key, Scores]) -> None:
    table = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD).set_index("task")
    assert table.loc[["B", MEAN], ["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert table["difference"].to_numpy() == pytest.approx(0.5)
    apart = [scores[Key("X", LINEAR, 10, task, ALL)] - scores[Key("Thumbnail", LINEAR, 10, task, ALL)] for task in "AC"]
    assert table.loc[["A", "C"], "p_holm"].tolist() == holm([p_value(one.of("auroc")) for one in apart])
    sheet = layout_differences(table.reset_index())
    assert sheet.rows[0][2] == sheet.rows[0][4] == "+0.500 [–]" and "p = " in sheet.rows[0][1]


def test_no_verdict_is_given_and_the_reason_is(scores: dict[Key, Scores]) -> None:
    table = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD).assign(p_holm=0.01)
    assert thumbnail_verdicts(table) == ["X beats the 16×16 thumbnail on A, C."]
    assert thumbnail_verdicts(table[table["task"] == "B"]) == []
    (line,) = withheld_note(WITHHELD)
    assert line.startswith("[–]: no interval, p value or verdict for B (1 positive test patient), Mean (over these ")
    assert "10 or more patients" in line and withheld_note({}) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tasks", [TASKS, ["B"]])
def test_figures_show_the_point_alone(scores: dict[Key, Scores], tasks: list[str]) -> None:
    table = score_table(scores, WITHHELD)
    differences = difference_table(ENCODERS, scores, TASKS, 10, withheld=WITHHELD)
    differences = differences[differences["task"].isin(tasks)]
    pictures = plot_forest(differences)
    said = {picture.name: picture.alt for picture in pictures}
    assert said["differences-b"].endswith("X minus Thumbnail +0.500, without an interval.")
    names = colours(["Thumbnail", "X"])
    pictures += [plot_scores(table, names, tasks, "10"), plot_shots(table, names, "B", ["10"])]
    assert not any("nan" in picture.alt or b"nan" in picture.content.lower() for picture in pictures)
    assert pd.Series([picture.name for picture in pictures]).is_unique
