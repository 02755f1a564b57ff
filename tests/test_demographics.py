"""Sex, age and view in archives' words: read if unambiguous, else left blank and noted."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shard.formats import read_chexpert
from shard.table import read_table
from shard.tabular.age import read_age
from shard.tabular.demographics import add_counts, count_demographics, read_demographics
from shard.tabular.sex import coded_columns, decode_columns, read_sexes
from shard.tabular.view import read_view, read_views
from tests.tables import write_blank

AGES = {
    "57": "57", "57.0": "57", "57,5": "57", " 57 ": "57", "'57'": "57", "\uff16\uff10": "60", "057Y": "57",
    "057 Y": "57", "18M": "1", "018M": "1", "9D": "0", "053W": "1", "45yrs": "45", "45 yrs.": "45", "45 y/o": "45",
    "45-year-old": "45", "Age: 45": "45", "13 months": "1", "23 mos": "1", "300 days": "0", "51 wks": "0",
    "45 y.o.": "45", "1 year 6 months": "1", "1y6m": "1", "2 years and 13 months": "3", "newborn": "0",
    "12 hours": "0", "45 Jahre": "45", "13 Monate": "1", "45 años": "45", "1 año y 6 meses": "1", "45 ans": "45",
    "45歳": "45",
    "85 or more": "85", "85 or older": "85", "90 years and over": "90", "90+": "90", "90 +": "90", "90+ years": "90",
    ">89": "90", "> 89Y": "90", "over 89": "90", "older than 89": "90", ">=90": "90", "≥ 90": "90", ">23 months": "2",
    "<1": "0", "under 6 months": "0", "000Y": "0", "120": "120", ".5": "0", "0.75 years": "0", "90 years+": "90",
    "": "", "NaN": "", "N/A": "", "Unknown": "", "___": "", "?": "",
    "414": None, "411Y": None, "-1": None, "999": None, "1950": None, "40-49": None, "40s": None, "<18": None,
    "<=1": None, "~57": None, "57?": None, "adult": None, "57, 6 months": None, "3 days 2 years": None, "1,000": None,
    ">120": None, "1980-04-01": None, "57 points": None, "45 J": None,
}  # fmt: skip
VIEWS = {
    "PA": "PA", " PA ": "PA", "pa": "PA", "P.A.": "PA", "Postero-anterior": "PA", "POSTEROANTERIOR": "PA",
    "Chest PA": "PA", "PA erect": "PA", "PA view 1": "PA", "CHEST PA 1 VIEW": "PA", "后前位": "PA", "PA LLD": "PA",
    "AP": "AP", "AP SUPINE": "AP", "AP_horizontal": "AP", "AP Semi-Erect": "AP", "AP AXIAL": "AP", "AP RLD": "AP",
    "antero posterior": "AP", "frontal AP": "AP", "AP portable": "AP", "AP left lateral decubitus": "AP",
    "LL": "lateral", "RL": "lateral", "L": "lateral", "LATERAL": "lateral", "Lateral view": "lateral",
    "left lateral": "lateral", "XTABLE LATERAL": "lateral", "LAT": "lateral", "de profil": "lateral",
    "Frontal": "frontal", "frontal": "frontal", "正位": "frontal", "LAO": "oblique", "left anterior oblique": "oblique",
    "": "", "UNK": "", "nan": "",
    "chest 2 views": None,
    "PA and lateral": None, "AP/PA": None, "Frontal Lateral": None, "AP lateral": None, "LORDOTIC": None, "R": None,
    "COSTAL": None, "SWIMMERS": None, "EXCLUDE": None, "Left lateral decubitus": None, "LLD": None, "portable": None,
    "Abdomen AP": None,
}  # fmt: skip
SEXES = {
    "F": "F", "f": "F", "f.": "F", "Female": "F", " FEMALE ": "F", "Woman": "F", "W": "F", "weiblich": "F",
    "mujer": "F", "Femenino": "F", "femme": "F", "Féminin": "F", "fe\u0301minin": "F", "女": "F", "Ж": "F",
    "0=F": "F", "F\u200b": "F", "F - Female": "F",
    "M": "M", "Male": "M", "man": "M", "Männlich": "M", "varón": "M", "homme": "M", "男": "M", "1 (male)": "M",
    "'M'": "M",
    "": "", "Unknown": "", "U": "", "n/a": "", "-": "",
    "1": None, "0": None, "2": None, "1.0": None, "True": None, "M/F": None, "O": None, "Other": None, "X": None,
    "trans female": None, "Femail": None, "F45": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), AGES.items())
def test_read_age(text: str, expected: str | None) -> None:
    assert read_age(text) == expected


@pytest.mark.parametrize(("text", "expected"), VIEWS.items())
def test_read_view(text: str, expected: str | None) -> None:
    assert read_view(text) == expected


def test_read_sexes_understands_words_but_not_bare_numbers() -> None:
    assert read_sexes(SEXES) == SEXES


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("HM", [None, None]), ("VM", [None, None]), ("VH", [None, None]),  # Spanish or Dutch, where M may be female
        ("FH", ["F", "M"]), ("KE", ["F", "M"]), ("KM", ["F", "M"]), ("WM", ["F", "M"]), ("ЖМ", ["F", "M"]),
        ("FN", [None, None]), ("FMH", ["F", "M", None]), ("M", ["M"]), ("F", ["F"]), ("HE", [None, None]),
    ],
)  # fmt: skip
def test_read_sexes_resolves_letters_by_the_column(column: str, expected: list[str | None]) -> None:
    assert list(read_sexes(column).values()) == expected


def test_read_views_takes_l_as_a_side_in_a_column_with_r() -> None:
    assert read_views(["L", "R", "PA"]) == {"L": None, "R": None, "PA": "PA"}
    assert read_views(["L", "PA"]) == {"L": "lateral", "PA": "PA"}


@pytest.mark.parametrize(
    ("header", "one", "zero"),
    [
        ("Male", "M", "F"), ("is_female", "F", "M"), ("isMale", "M", "F"), ("Sex_M", "M", "F"),
        ("gender_female", "F", "M"), ("Sex (1=M, 0=F)", "M", "F"), ("Sex [0: female; 1: male]", "M", "F"),
        ("gender male=0 female=1", "F", "M"), ("Patient Sex (M=1/F=0)", "M", "F"),
    ],
)  # fmt: skip
def test_header_defines_codes_of_sex(header: str, one: str, zero: str) -> None:
    assert coded_columns(["Mass", header, "sex", "Sex1", "mailed"]) == [header]
    cells = ["1", "0", "1.0", "0.0", "", "-1", "NA"]
    words = decode_columns(pd.DataFrame({header: cells}))
    read = read_sexes(words.unique())
    assert [read[word] for word in words] == [one, zero, one, zero, "", None, ""]


def test_columns_male_and_female_must_agree() -> None:
    words = decode_columns(pd.DataFrame({"Male": ["1", "0", "1", "0", "", ""], "Female": ["0", "1", "1", "", "1", ""]}))
    read = read_sexes(words.unique())
    assert [read[word] for word in words] == ["M", "F", None, "F", "F", ""]


def test_unread_cells_are_noted_by_split_with_the_most_frequent_cell() -> None:
    rows = pd.DataFrame({"split": ["train", "train", "test", "train"], "sex": ["1", "1", "0", "F"],
                         "age": ["57", "Unknown", "", "young"], "view": ["PA", "pa", " PA ", np.nan]})  # fmt: skip
    notes = read_demographics(rows)
    assert rows[["sex", "age", "view"]].astype(str).to_numpy().tolist() == [
        ["", "57", "PA"], ["", "", "PA"], ["", "", "PA"], ["F", "", ""]]  # fmt: skip
    assert [note.example for note in notes] == ["'1'", "'young'", "'Unknown'"]
    sex, age, unknown = (note.text for note in notes)
    assert sex.startswith("sex: 3 of 4 cells not understood, left blank (test 1, train 2; a header such")
    assert age.startswith("age: 1 of 4 cells not understood, left blank (train 1")
    assert unknown == "age: 1 of 4 cells say that it is unknown (train 1)"


def test_counts_of_parts_add_up() -> None:
    people = [("F", 39, "PA"), ("M", 40, "AP"), ("", None, ""), ("M", 95, "lateral"), ("F", 0, "PA")]
    total = count_demographics(people)
    assert total == {"sex": {"F": 2, "M": 2, "blank": 1}, "view": {"AP": 1, "PA": 2, "lateral": 1, "blank": 1},
                     "age": {"under 40": 2, "40 to 59": 1, "80 and older": 1, "blank": 1}}  # fmt: skip
    assert add_counts([count_demographics(people[:2]), count_demographics(people[2:])]) == total
    # Manifests list the values in this order.
    assert [" ".join(of) for of in total.values()] == [
        "F M blank", "under 40 40 to 59 80 and older blank", "AP PA lateral blank"]  # fmt: skip


def test_chexpert_combines_two_columns_into_one_view(tmp_path: Path) -> None:
    views = {"Frontal,AP": "AP", "Frontal,PA": "PA", "frontal, pa ": "PA", "Lateral,": "lateral",
             "LATERAL,AP": "lateral", " lateral,": "lateral", "Frontal,": "", "Frontal,LL": "", ",LL": "lateral",
             ",AP": "AP"}  # fmt: skip
    paths = [f"train/patient{number:05d}/study1/view1_frontal.jpg" for number in range(len(views))]
    lines = [f"{path},{cells},1" for path, cells in zip(paths, views, strict=True)]
    (tmp_path / "train.csv").write_text("Path,Frontal/Lateral,AP/PA,Edema\n" + "\n".join(lines) + "\n")
    write_blank(tmp_path / paths[0])
    table = read_table(tmp_path)
    assert table.rows["view"].tolist() == list(views.values())
    (note,) = (note for note in table.notes if note.text.startswith("view: 1 of 10 cells not understood"))
    assert note.example == "'Frontal LL'"


def test_missing_demographics_of_one_table_are_blank(tmp_path: Path) -> None:
    for split, rest in (("train", "Sex,Age,Frontal/Lateral,AP/PA,Edema"), ("test", "Edema")):
        path = f"{split}/patient{len(split)}/study1/view1_frontal.jpg"
        write_blank(tmp_path / path)
        cells = "Female,60,Frontal,AP,1.0" if split == "train" else "0.0"
        (tmp_path / f"{split}.csv").write_text(f"Path,{rest}\n{path},{cells}\n")
    frames = read_chexpert(tmp_path).frame, read_table(tmp_path).rows
    for frame in frames:
        assert frame[["sex", "age", "view"]].astype(object).iloc[1].tolist() == ["", "", ""]


def respell(word: str, rng: random.Random) -> str:
    """Write a word in another case, with other blanks, quotes and invisible characters."""
    word = rng.choice([str.upper, str.lower, str.title, str])(word)
    word = word.replace(" ", rng.choice([" ", "  ", "\t", "\u00a0"]))
    return rng.choice(["", " ", "\u200b", "\ufeff", "'"]) + word + rng.choice(["", " ", "\u200b", "\t"])


def test_spelling_does_not_change_values() -> None:
    rng = random.Random(20)
    units = (("y", 1), ("yrs", 1), ("years old", 1), ("months", 12), ("mo", 12), ("d", 365))
    ages = [(f"{number}{blank}{unit}", str(number // per))
            for number, blank, (unit, per) in itertools.product((1, 9, 13, 57, 119), ("", " "), units)]  # fmt: skip
    for _ in range(40):
        for text, expected in (*ages, *((text, expected) for text, expected in AGES.items() if "'" not in text)):
            assert read_age(respell(text, rng)) == expected, text
        for text, expected in VIEWS.items():
            assert read_view(respell(text, rng)) == expected, text
        for text, expected in SEXES.items():
            spelt = respell(text, rng)
            assert read_sexes([spelt])[spelt] == expected, text
    for _ in range(3000):  # any text has a valid value, and none raises
        letters = rng.choices("0123456789.,<>+-=/() yYmMdDwWfFaApPlL年\u0660", k=rng.randrange(9))
        text = "".join(letters)
        age, view, sex = read_age(text), read_view(text), read_sexes([text])[text]
        assert age in (None, "") or 0 <= int(age) <= 120, text
        assert view in (None, "", "AP", "PA", "lateral", "frontal", "oblique") and sex in (None, "", "F", "M"), text
