"""Draws: balanced, disjoint by patient, nested, seeded, and written to a file and read back."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from probe.draws_file import read_draws, write_draws
from probe.fewshot import (
    FRACTION_DRAWS,
    Blank,
    NotMeasurable,
    Uncertain,
    fraction_parts,
    make_draws,
    resolve_labels,
)
from shard.errors import InputError
from tests.conftest import ROOT


def test_draws_are_balanced_and_disjoint_by_patient_without_uncertain_or_blank(labels: pd.DataFrame) -> None:
    draws = make_draws(labels, "Mass", shots=10, draws=30, seed=0)
    test = labels.iloc[draws.test]
    held_out = labels[labels["split"] == "test"]["Mass"]
    assert (test["Mass"].to_numpy() == draws.test_labels).all() and len(test) == held_out.isin([0, 1]).sum()
    assert test["key"].is_unique
    assert len(draws.positive) == len(draws.negative) == len(draws.balanced) == 30
    for rows, classes, balanced in zip(*draws.support(10), draws.balanced, strict=True):
        support = labels.iloc[rows]
        assert len(support) == 20 and support["patient"].nunique() == 20
        assert (support["Mass"].to_numpy() == classes).all() and classes.sum() == 10
        assert not set(support["patient"]) & set(test["patient"])
        assert draws.test_labels[balanced].mean() == 0.5
        assert balanced.sum() == 2 * min((held_out == value).sum() for value in (0, 1))


def test_draws_differ_and_repeat_with_the_seed(labels: pd.DataFrame) -> None:
    once, again, other = (make_draws(labels, "Mass", shots=5, draws=10, seed=seed) for seed in (0, 0, 1))
    assert (once.support(5)[0] == again.support(5)[0]).all() and (once.balanced == again.balanced).all()
    assert len({tuple(sorted(support)) for support in [*once.support(5)[0], *other.support(5)[0]]}) == 20
    assert len({balanced.tobytes() for balanced in [*once.balanced, *other.balanced]}) == 20


def test_patients_are_sampled_equally_whatever_their_number_of_images() -> None:
    patients = ["many"] * 50 + [f"p{number}" for number in range(9)]
    frame = pd.DataFrame({
        "patient": [*patients, *(f"n{number}" for number in range(30)), *(f"t{number}" for number in range(8))],
        "split": ["train"] * 89 + ["test"] * 8, "Mass": [1.0] * 59 + [0.0] * 30 + [1.0, 0.0] * 4,
    })  # fmt: skip
    draws = make_draws(frame, "Mass", shots=3, draws=1000, seed=0)
    share = np.mean(["many" in frame["patient"][support].tolist() for support in draws.support(3)[0]])
    assert share == pytest.approx(0.3, abs=0.06)  # 3 of 10 patients


def test_too_few_examples_are_not_measurable(labels: pd.DataFrame) -> None:
    with pytest.raises(NotMeasurable, match="patients with positive training images, 80 needed"):
        make_draws(labels, "Mass", shots=80, draws=1, seed=0).support(80)
    with pytest.raises(NotMeasurable, match="0 positive and"):
        make_draws(labels[(labels["split"] == "train") | (labels["Mass"] != 1)], "Mass", shots=3, draws=1, seed=0)


def test_support_sets_are_nested(labels: pd.DataFrame) -> None:
    draws = make_draws(labels, "Mass", shots=12, draws=4, seed=0)
    many, few = draws.support(12)[0], draws.support(5)[0]
    assert np.array_equal(few, many[:, [*range(5), *range(12, 17)]])


def test_all_shots_select_every_labelled_training_image(labels: pd.DataFrame) -> None:
    rows, classes = make_draws(labels, "Mass", shots=5, draws=3, seed=0).support("all")
    expected = labels[(labels["split"] == "train") & labels["Mass"].isin([0, 1])]
    assert rows.shape == (1, len(expected)) and np.array_equal(rows[0], expected.index)
    assert np.array_equal(classes[0], expected["Mass"])
    none = labels.assign(Mass=labels["Mass"].where(labels["split"] == "test", 0.0))
    with pytest.raises(NotMeasurable, match=r"0 of .* labelled training images positive$"):
        make_draws(none, "Mass", shots=1, draws=1, seed=0).support("all")


def test_limited_all_shots_are_a_random_part_that_tasks_share(labels: pd.DataFrame) -> None:
    labels = labels.assign(Other=labels["Mass"].fillna(1.0))  # labelled wherever Mass is
    every = make_draws(labels, "Mass", shots=1, draws=1, seed=0)
    some, same, other = (make_draws(labels, task, shots=1, draws=1, seed=seed, all_limit=30)
                         for task, seed in (("Mass", 0), ("Mass", 0), ("Mass", 1)))  # fmt: skip
    assert len(some.train) == 30 and some.labelled == every.labelled == len(every.train) > 100
    assert (np.diff(some.train) > 0).all() and set(some.train) < set(every.train)
    assert (labels["Mass"].to_numpy()[some.train] == some.train_labels).all()
    assert np.array_equal(some.train, same.train) and not np.array_equal(some.train, other.train)
    assert np.ptp(some.train) > 300  # not the first ones
    shared = make_draws(labels, "Other", shots=1, draws=1, seed=0, all_limit=30).train
    assert len(set(shared) & set(some.train)) > 15  # of 30; two independent choices share about 4
    with pytest.raises(NotMeasurable, match=r"0 of 0 labelled training images positive, chosen .* \(--all-limit\)"):
        make_draws(labels, "Mass", shots=1, draws=1, seed=0, all_limit=0).support("all")


def test_fractions_are_random_patients_with_all_their_images(labels: pd.DataFrame) -> None:
    labelled = labels[(labels["split"] == "train") & labels["Mass"].isin([0, 1])]
    rows, classes = fraction_parts(labels, "Mass", 0.5, seed=0, limit=1000)
    assert rows.shape == (FRACTION_DRAWS, round(0.5 * len(labelled))) and len({tuple(part) for part in rows}) > 1
    assert np.array_equal(classes, labels["Mass"].to_numpy()[rows])
    for part in rows:
        chosen = labels.iloc[part]
        assert len(set(part)) == len(part) and set(chosen.index) <= set(labelled.index)
        counts = chosen["patient"].value_counts()
        whole = labelled["patient"].value_counts()[counts.index] == counts
        assert (~whole).sum() <= 1  # only the last patient is cut


def test_fractions_of_two_tasks_take_the_same_patients() -> None:
    labels = pd.DataFrame({"patient": [f"p{n:03d}" for n in range(400)], "split": "train",
                           "A": np.arange(400) % 2, "B": np.arange(400) % 3 // 2})  # fmt: skip
    one, other = (fraction_parts(labels, task, 0.25, seed=3, limit=400)[0] for task in ("A", "B"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("share", "limit", "message"), [
    (0.5, 3, r"0.5 of \d+ labelled training images are more than --all-limit=3"),
    (1e-4, 100, r"0 of \d+ labelled training images, and a random part of so many lacks positive or negative ones"),
])  # fmt: skip
def test_fractions_too_large_or_too_small_are_named(
    labels: pd.DataFrame, share: float, limit: int, message: str
) -> None:
    with pytest.raises(NotMeasurable, match=message):
        fraction_parts(labels, "Mass", share, seed=0, limit=limit)


def test_label_policies_resolve_uncertain_and_blank(labels: pd.DataFrame) -> None:
    before = labels["Mass"].copy()
    counts = {policy: resolve_labels(labels, ["Mass"], *policy)["Mass"].value_counts().to_dict()
              for policy in itertools.product(get_args(Uncertain), get_args(Blank))}  # fmt: skip
    positive, negative, uncertain = ((before == value).sum() for value in (1, 0, -1))
    missing = before.isna().sum()
    assert counts["exclude", "exclude"] == {0: negative, 1: positive}
    assert counts["positive", "exclude"] == {0: negative, 1: positive + uncertain}
    assert counts["negative", "negative"] == {0: negative + uncertain + missing, 1: positive}
    assert labels["Mass"].equals(before)


def test_draws_file_round_trips(labels: pd.DataFrame, tmp_path: Path) -> None:
    made = make_draws(labels, "Mass", shots=10, draws=6, seed=0)
    file = tmp_path / "draws.csv"
    file.write_bytes(write_draws({"Mass": made}, labels))
    (read,) = read_draws(file, labels).values()
    for name in ("positive", "negative", "test", "test_labels", "balanced", "train", "train_labels"):
        assert np.array_equal(getattr(made, name), getattr(read, name)), name


def test_documented_python_reads_the_draws(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels.assign(**{"Pleural Effusion": labels["Mass"], "Other": labels["Mass"].fillna(0.0)})
    drawn = {task: make_draws(labels, task, shots=12, draws=3, seed=0) for task in ("Pleural Effusion", "Other")}
    (tmp_path / "draws.csv").write_bytes(write_draws(drawn, labels))
    (code,) = re.findall(r"<!-- run -->\n```python\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "formats.md", "exec"), names)
    draws, keys = drawn["Pleural Effusion"], labels["key"].to_numpy()
    assert names["ten_shots"] == {"positive": keys[draws.positive[0, :10]].tolist(),
                                  "negative": keys[draws.negative[0, :10]].tolist()}  # fmt: skip
    assert names["balanced"] == keys[draws.test[draws.balanced[0]]].tolist()
    assert set(names["images"]) == set(keys[drawn["Other"].test]) > set(keys[draws.test])


def test_draws_file_of_the_older_format_is_read(labels: pd.DataFrame, tmp_path: Path) -> None:
    made = make_draws(labels, "Mass", shots=3, draws=2, seed=0)
    rows = [("Mass", draw, role, key) for draw in range(2) for role, numbers in (
        ("positive", made.positive[draw]), ("negative", made.negative[draw]), ("test", made.test[made.balanced[draw]])
    ) for key in labels["key"].iloc[numbers]]  # fmt: skip
    file = tmp_path / "draws.csv"
    pd.DataFrame(rows, columns=["task", "draw", "role", "key"]).to_csv(file, index=False)
    read = read_draws(file, labels)["Mass"]
    for name in ("positive", "negative", "test", "balanced"):
        assert np.array_equal(getattr(made, name), getattr(read, name)), name


def test_draws_of_many_test_images_take_few_bytes() -> None:
    images = 25_000
    frame = pd.DataFrame({"key": [f"{number:012d}" for number in range(images + 40)], "split": "test", "Mass": 1.0,
                          "patient": np.arange(images + 40)})  # fmt: skip
    frame.loc[::2, "Mass"] = 0.0
    frame.loc[images:, "split"] = "train"
    made = make_draws(frame, "Mass", shots=10, draws=10, seed=0)
    assert len(write_draws({"Mass": made}, frame)) < images * 20 + 10 * images / 4 + 100_000


def first_key(table: pd.DataFrame, place: int) -> str:
    """The key of a positive example."""
    return str(table.loc[table["role"] == "positive", "key"].iloc[place])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [(lambda table: table.assign(key="nobody"), "key nobody, and .* more, are not in these shards"),
     (lambda table: table.assign(role=table["role"].replace({"positive": "negative", "negative": "positive"})),
      "Mass: draw 0: not all of its positive examples are positive training images"),
     (lambda table: table[table["role"] != "test"], "draw 0: 0 rows with its test set, 1 needed"),
     (lambda table: table.assign(key=table["key"].where(table["key"] != first_key(table, 1), first_key(table, 0))),
      "its support set contains a patient twice"),
     (lambda table: table.assign(members=table["members"].str[2:]), "draw 0: the members .* are not 88 bits"),
     (lambda table: table.assign(members=table["members"].str.replace("^.", "g", regex=True)), "are not 88 bits"),
     (lambda table: table.assign(key=table["key"].where(table["role"] != "positive", "")), "key , and 9 more"),
     (lambda table: table.assign(task=table["task"].replace("Mass", "Else")), "Else is not a finding"),
     (lambda table: table.drop(columns="role"), "its columns are task, draw, key"),
     (lambda table: table.assign(draw="first"), "not a table of draws")],
)  # fmt: skip
def test_draws_file_that_does_not_fit_is_refused(labels: pd.DataFrame, tmp_path: Path, edit: Any, reason: str) -> None:
    file = tmp_path / "draws.csv"
    file.write_bytes(write_draws({"Mass": make_draws(labels, "Mass", shots=5, draws=2, seed=0)}, labels))
    edit(pd.read_csv(file, dtype=str, keep_default_na=False)).to_csv(file, index=False)
    with pytest.raises(InputError, match=rf"--draws-file=.*{reason}"):
        read_draws(file, labels)
    with pytest.raises(InputError, match="no such file; every report writes one"):
        read_draws(tmp_path / "absent.csv", labels)
