"""Tables of measured scores against values worked out by hand; scores of parts; slices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.encoder import Encoder
from probe.measure import ALL, BALANCED, LINEAR, Key
from probe.names import MEAN
from probe.page.formats import Sheet, format_p, to_latex, to_markdown
from probe.page.layout import MAIN, TABLES, layout, layout_differences, layout_shots
from probe.page.table import difference_table, references, score_table, with_mean
from probe.slices import count_in_slice, find_slices, is_large_enough
from probe.statistics import Scores, estimate, holm, join, mean_of, resample, score
from train.weights.preprocessing import Input

IMAGES = Input(64, 0.5, 0.25)


def random_scores(rng: np.random.Generator) -> Scores:
    return Scores(rng.uniform(size=(41, 5)), rng.uniform(size=(41, 5)), rng.uniform(size=(8, 5)), 50)


def key(encoder: str, task: str, test: str = ALL, shots: int = 10, probe: str = LINEAR) -> Key:
    return Key(encoder, probe, shots, task, test)


def test_layout_is_the_published_one_with_na_for_unmeasured_cells() -> None:
    encoders = [Encoder("Scratch", "", None, IMAGES), Encoder("ImageNet", "", None, IMAGES, missing="no network")]
    rng = np.random.default_rng(0)
    measured = {key("Scratch", task, test): random_scores(rng) for task in ("A", "B") for test in (BALANCED, ALL)}
    table = score_table(with_mean(measured, ["A", "B"]))
    main = layout(table, MAIN, encoders, ["A", "B"], 10, {})
    assert main.header == ["", "A", "B", MEAN] and [row[0] for row in main.rows] == ["Scratch", "ImageNet (no network)"]
    assert main.rows[1][1:] == ["n/a"] * 3
    of_a, of_b = (measured[key("Scratch", task)].of("auroc") for task in ("A", "B"))
    expected = estimate(mean_of([of_a, of_b]))
    assert expected.mean == (of_a.both[0] + of_b.both[0]) / 2
    assert main.rows[0][3] == f"{expected.mean:.3f} [{expected.low:.3f}, {expected.high:.3f}]"
    chosen = (table["task"] == "A") & (table["metric"] == "accuracy") & (table["encoder"] == "Scratch")
    cell = table[chosen & (table["test"] == BALANCED)].iloc[0]
    assert cell["mean"] == measured[key("Scratch", "A", BALANCED)].of("accuracy").both[0] and cell["draws"] == 8
    positive = {"A": 0.25, "B": 0.5}
    balanced, on_all, _, auprc = (layout(table, spec, encoders, ["A", "B"], 10, positive) for spec in TABLES[:4])
    assert on_all.rows[-1] == ["Majority class", "75.0", "50.0", "62.5"]
    assert auprc.rows[-1] == ["Guessing (share of positives)", "0.250", "0.500", "0.375"]
    text = to_markdown([balanced._replace(title="a|b")], ["note"])
    assert f"| {100 * cell['mean']:.1f} [" in text and "**a|b**" in text and "- note" in text


def test_mean_needs_all_tasks_and_excludes_slices() -> None:
    rng = np.random.default_rng(0)
    names = (("X", "A"), ("X", "B"), ("Y", "A"), ("X", "A", "sex: men"), ("X", "B", "sex: men"))
    measured = {key(*name): random_scores(rng) for name in names}
    measured |= {key("Y", task, shots=1): random_scores(rng) for task in ("A", "B")}
    measured |= {key("X", "A", shots=50): random_scores(rng)}  # not measured on B
    means = {entry for entry in with_mean(measured, ["A", "B"]) if entry.task == MEAN}
    assert means == {key("X", MEAN), key("Y", MEAN, shots=1)}


def test_intervals_of_metrics_stay_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    samples = [0.98 + rng.normal(0, 0.03, (size, 5)) for size in (41, 41, 8)]
    table = score_table({key("X", "A"): Scores(*samples, 12)})
    assert estimate(Scores(*samples, 12).of("auroc")).high > 1
    assert (table["high"] == 1).all() and (table["low"] > 0.5).all()


def test_layout_shots_has_a_row_for_each_number_of_shots() -> None:
    rng = np.random.default_rng(0)
    encoders = [Encoder("X", "", None, IMAGES), Encoder("ImageNet", "", None, IMAGES, missing="no network")]
    table = score_table({key("X", "A", shots=shots): random_scores(rng) for shots in (1, 10)})
    sheet = layout_shots(table, encoders, ["A"], ["1", "10", "all"])
    assert [row[0] for row in sheet.rows] == ["X, 1", "X, 10", "X, all"] and sheet.rows[2][1] == "n/a"
    expected = table[(table["shots"] == "10") & (table["metric"] == "auroc")]["mean"].iloc[0]
    assert sheet.rows[1][1].startswith(f"{expected:.3f} [")


def test_differences_are_paired_by_replicate() -> None:
    encoders = [Encoder(name, "", None, IMAGES) for name in ("Scratch", "SimCLR")]
    rng = np.random.default_rng(0)
    replicates = {key("Scratch", task): random_scores(rng) for task in ("A", "B", "C")}
    for task in ("A", "B"):
        base = replicates[key("Scratch", task)]
        better = [part + 0.1 + rng.normal(0, 1e-4, part.shape) for part in (base.both, base.patients, base.draws)]
        replicates[key("SimCLR", task)] = Scores(*better, rarer=50)
    table = difference_table(encoders, with_mean(replicates, ["A", "B", "C"]), ["A", "B", "C"], 10)
    by_task = table.set_index("task")
    assert list(by_task.index) == ["A", "B"] and set(table["reference"]) == {"Scratch"}  # no mean without C
    # The shared variation cancels.
    assert by_task.loc["A", ["difference", "low", "high"]].to_numpy(float) == pytest.approx([0.1] * 3, abs=1e-3)
    sheet = layout_differences(table)
    assert sheet.header == ["", "A", "B"]
    assert sheet.rows[0][:2] == ["SimCLR − Scratch", "+0.100 [+0.100, +0.100], p < 0.001"]
    assert [format_p(p) for p in (0.0151, 0.0005, 0.0004, 0.0)] == ["p = 0.015", "p = 0.001", "p < 0.001", "p < 0.001"]
    assert format_p(float("nan")) == "no p"


def test_the_mean_is_corrected_over_pairs_and_tasks_over_pairs_and_tasks() -> None:
    encoders = [Encoder(name, "", None, IMAGES) for name in ("Scratch", "A", "B")]
    rng = np.random.default_rng(0)
    scores = {key(encoder.name, task): random_scores(rng) for encoder in encoders for task in "TUV"}
    table = difference_table(encoders, with_mean(scores, list("TUV")), list("TUV"), 10)
    means = table["task"] == MEAN
    assert means.sum() == 3 and len(table) == 12
    for family in (means, ~means):
        assert table.loc[family, "p_holm"].tolist() == holm(table.loc[family, "p"].tolist())
    assert table["p"].equals(pd.Series([
        estimate(scores[key(row.encoder, row.task)].of("auroc") - scores[key(row.reference, row.task)].of("auroc")).p
        if row.task != MEAN else row.p for row in table.itertuples()], name="p"))  # fmt: skip


def test_first_run_is_a_reference_and_each_pair_is_listed_once() -> None:
    encoders = [Encoder(name, "", None, IMAGES) for name in ("Scratch", "A", "B")]
    rng = np.random.default_rng(0)
    table = difference_table(encoders, {key(encoder.name, "T"): random_scores(rng) for encoder in encoders}, ["T"], 10)
    assert references(encoders) == ["Scratch", "A"]
    pairs = list(zip(table["encoder"], table["reference"], strict=True))
    assert pairs == [("A", "Scratch"), ("B", "Scratch"), ("B", "A")]


def test_latex_is_escaped() -> None:
    text = to_latex([Sheet("50 % of A_1 & {B}", ["", "a\\b"], [["X − Y", "1 [0, 2], p < 0.1"]])], "Note.")
    assert r"\caption{50 \% of A\_1 \& \{B\}. Note.}" in text and r"a\textbackslash{}b \\" in text
    assert "X $-$ Y & 1 [0, 2], p $<$ 0.1 " in text and text.count("\\begin") == text.count("\\end") == 2


def test_scores_of_blocks_join_to_those_of_all_draws() -> None:
    rng = np.random.default_rng(0)
    decisions, labels = rng.normal(size=(7, 90)).round(1), rng.integers(0, 2, 90)
    patients, members = rng.integers(0, 30, 90), rng.random((7, 90)) < 0.5
    resamples = resample(7, 30, replicates=40)
    for balanced in (None, members):
        whole = score(decisions, labels, patients, resamples, balanced)
        parts = [score(decisions[block], labels, patients, resamples, None if balanced is None else balanced[block],
                       first=block.start) for block in (slice(0, 3), slice(3, 4), slice(4, 7))]  # fmt: skip
        for name in ("both", "patients", "draws"):
            assert np.allclose(getattr(join(parts), name), getattr(whole, name), rtol=1e-12, equal_nan=True)


def test_slices_use_known_values_and_count_patients() -> None:
    frame = pd.DataFrame({
        "split": ["train"] * 2 + ["test"] * 6, "patient": list("abcccdef"), "sex": [*"FMFFFMM", ""],
        "age": [30, 50, 39, 39, 41, 80, np.nan, 60], "view": ["AP"] * 8,
    })  # fmt: skip
    slices = {part.name: part for part in find_slices(frame)}
    assert list(slices) == ["sex: women", "sex: men", "age: under 40", "age: 40 to 59", "age: 60 to 79",
                            "age: 80 and older"]  # a single view gives no slice
    assert np.flatnonzero(slices["age: under 40"].members).tolist() == [0, 2, 3]
    test, labels = np.arange(2, 8), np.array([1, 0, 1, 0, 1, 1])
    patients = np.array([-1, -1, 0, 0, 0, 1, 2, 3])
    assert count_in_slice(slices["sex: women"], test, labels, patients) == (1, 1)  # three images of one patient
    assert count_in_slice(slices["sex: men"], test, labels, patients) == (1, 1)
    assert is_large_enough((10, 10)) and not is_large_enough((9, 400))
    assert find_slices(frame.assign(sex="", age=np.nan)) == []
