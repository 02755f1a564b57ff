"""Which columns of a user's own table are findings, and the notes about the others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from shard.errors import InputError
from shard.manifest import read_manifest
from shard.table import Table, read_table
from shard.write import build
from tests.tables import notes_of, write_blank


def read(folder: Path, header: str, *rows: str, findings: str | None = None) -> Table:
    """Read a table of images a.png, b.png …, patients p, q …, split train. header, rows: the columns after split."""
    lines = [f"{chr(97 + place)}.png,{chr(112 + place)},train,{row}" for place, row in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join([f"path,patient,split,{header}", *lines]) + "\n", encoding="utf-8")
    write_blank(folder / "a.png")
    return read_table(folder, table=folder / "t.csv", findings=findings)


@pytest.mark.parametrize(
    "column",
    ["fold", "Fold", "fold_0", "fold1", "notes", "study", "index", "weight", "sample_weight", "age_group", "AgeGroup",
     "id", "ID", "patientid", "image_id", "ImageID", "Follow-up #", "Unnamed: 9", "", " ", "Unnamed: 0.1", "0", "#",
     "nan", "Edema.1", "Mass.12", "reader_2", "rater1", "is_train", "test", "view", "Projection", "portable", "bmi",
     "Male", "is_female", "Sex (1=M, 0=F)", "n_images", "site", "prediction", "Pneumonia_score",
     "used_for_training", "race_white", "hospital_2", "excluded"],
)  # fmt: skip
def test_binary_column_with_another_name_is_noted_and_not_a_finding(tmp_path: Path, column: str) -> None:
    table = read(tmp_path, f'"{column}",Mass', "1,1", "0,0")
    assert table.findings == ("Mass",)
    assert column == "view" or column.strip() in notes_of(table)


@pytest.mark.parametrize(
    "column",
    ["Mass", "label", "target", "Pleural_Thickening", "pleural effusion", "No Finding", "is_pregnant", "TB", "Device",
     "Nodule/Mass", "Opacity, left", "Lesion (RUL)", "Enlarged heart size", "肺炎", "COVID-19", "Grade 2 edema"],
)  # fmt: skip
def test_label_column_with_a_finding_name_is_a_finding(tmp_path: Path, column: str) -> None:
    table = read(tmp_path, f'"{column}"', "1", "0", "-1", "", "1.0", "-1.0", "NA", " 0 ", "\u22121")
    assert table.findings == (column,) and table.notes == ()
    assert table.rows[column].fillna(9).tolist() == [1, 0, -1, 9, 1, -1, 9, 0, -1]


def test_column_with_other_cells_is_not_a_finding(tmp_path: Path) -> None:
    table = read(tmp_path, "Mass,severity,remark,yes_no", "1,3,x,yes", "0,1,,no")
    assert table.findings == ("Mass",)
    assert notes_of(table).splitlines() == [
        "columns not read as findings, with cells other than 1, 0, -1 and blank (3): severity, remark, yes_no, such "
        "as '3' in severity", "columns read as findings (1): Mass; --findings=A,B selects others"]  # fmt: skip
    with pytest.raises(InputError, match=r"finding 'Edema': label 'mild' of b\.png is not 1, 0, -1 or blank"):
        read(tmp_path, "Mass,Edema", "1,", "0,mild")


@pytest.mark.parametrize("second", ["Mass", " Mass ", "mass", "MASS\u200b", "Mass ", "Mass.1"])
def test_second_column_of_a_name_is_skipped_if_equal_and_else_refused(
    tmp_path: Path, second: str
) -> None:
    table = read(tmp_path, f"Mass,Edema,{second}", "1,0,1.0", ",1,NA", "0,-1,0")
    assert table.findings == ("Mass", "Edema")
    assert "(repeats 'Mass')" in notes_of(table)
    with pytest.raises(InputError, match=r"'Mass' and .* have the same name, but differ in 1 of 3 rows"):
        read(tmp_path, f"Mass,Edema,{second}", "1,0,1", ",1,", "0,-1,1")


def test_blanks_around_names_are_stripped(tmp_path: Path) -> None:
    assert read(tmp_path, " Mass ,\ufeffEdema\u200b", "1,0").findings == ("Mass", "Edema")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("Mass", ("Mass",)), ("fold,Mass", ("fold", "Mass")), ("mass , pleural_effusion", ("Mass", "Pleural Effusion")),
        ('"Opacity, left",Mass', ("Opacity, left", "Mass")), ("Opacity, left", ("Opacity, left",)),
        ("Lesion (RUL)", ("Lesion (RUL)",)), ("Male", ("Male",)),
    ],
)  # fmt: skip
def test_findings_flag_selects_columns(tmp_path: Path, named: str, expected: tuple[str, ...]) -> None:
    header = 'Mass,notes,fold,Pleural Effusion,"Opacity, left",Lesion (RUL),Male'
    table = read(tmp_path, header, "1,text,1,0,-1,0,1", "0,,2,1,,1,0" if "fold" not in named else "0,,0,1,,1,0",
                 findings=named)  # fmt: skip
    assert table.findings == expected and "that --findings does not name are not read" in notes_of(table)
    assert table.rows[expected[0]].notna().any()
    assert table.rows["sex"].tolist() == ["M", "F"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("Mas", "no column 'Mas'; did you mean 'Mass'"), ("Mass,Oedema", "no column 'Oedema'; did you mean 'Edema'"),
        ("Pneumonia", "no column 'Pneumonia'; It has: path, patient"), ("Mass,mass", "names column 'Mass' .* twice"),
        ("Mass,notes", "finding 'notes': label 'text' of a.png is not 1, 0, -1 or blank"),
        ("patient", "the column of .* for the patient"), ("Mass,,Edema", "a name is blank"),
        ("lesion", "is ambiguous: it matches .*'Lesion', 'LESION'"),
    ],
)  # fmt: skip
def test_findings_flag_refuses_other_columns(tmp_path: Path, named: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, "Mass,Edema,notes,Lesion,LESION", "1,0,text,1,1", findings=named)


def test_findings_flag_prefers_the_exact_spelling(tmp_path: Path) -> None:
    assert read(tmp_path, "Mass, mass", "1,0", findings="Mass").rows["Mass"].tolist() == [1]
    assert read(tmp_path, "Mass, mass", "1,0", findings="mass").rows["mass"].tolist() == [0]
    with pytest.raises(InputError, match="have the same name, but differ"):
        read(tmp_path, "Mass,Mass", "1,0", findings="Mass")


def test_findings_flag_requires_your_own_table(radiographs: Path) -> None:
    with pytest.raises(InputError, match=r"--findings=Edema: only applies to --table=PATH, not to --dataset=chexpert"):
        read_table(radiographs, findings="Edema")


def test_table_of_a_folder_follows_the_same_rules(tmp_path: Path) -> None:
    for number in range(8):
        write_blank(tmp_path / f"src/{number}.png")
    rows = [f"{number},{number % 2},45 yrs,{number % 2},0,x" for number in range(7)]
    (tmp_path / "t.csv").write_text("\n".join(["key,Male,age,Mass,fold,notes", *rows]))
    table = read_table(tmp_path / "src", "folder", tmp_path / "t.csv", workers=1)
    rows_of = table.rows.set_index("key")
    assert table.findings == ("Mass",) and rows_of["sex"].tolist() == [*"FMFMFMF", ""]
    assert rows_of["age"].tolist() == ["45"] * 7 + [""] and rows_of["Mass"].isna().tolist() == [False] * 7 + [True]
    assert "with a name that is not a finding's (1): fold" in notes_of(table)
    named = read_table(tmp_path / "src", "folder", tmp_path / "t.csv", workers=1, findings="fold")
    assert named.findings == ("fold",) and "does not name are not read (2): Mass, notes" in notes_of(named)


def test_coded_sex_is_read_and_noted(tmp_path: Path) -> None:
    table = read(tmp_path, "Male,Mass", "1,1", "0,0", ",1", "2,1")
    assert table.rows["sex"].tolist() == ["M", "F", "", ""] and table.findings == ("Mass",)
    assert "sex is read from Male" in notes_of(table) and "not read" not in notes_of(table)
    assert "sex: 1 of 4 cells not understood, left blank (train 1" in notes_of(table)
    table = read(tmp_path, "Geschlecht,Age (years),Mass", "w,45,1", "m,13 Monate,0")
    assert table.rows["sex"].tolist() == ["F", "M"] and table.rows["age"].tolist() == ["45", "1"]
    table = read(tmp_path, "Male,Sex,Mass", "1,F,1", "0,1,0")  # a column sex has precedence
    assert table.rows["sex"].tolist() == ["F", ""] and "sex is read from" not in notes_of(table)


def test_build_prints_unread_columns_and_stores_the_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path, "Mass,fold", "1,1")
    Image.linear_gradient("L").save(tmp_path / "a.png")
    build(tmp_path, tmp_path / "out", table=tmp_path / "t.csv", workers=1)
    printed = capsys.readouterr().out
    assert "with a name that is not a finding's (1): fold" in printed
    manifest = read_manifest(tmp_path / "out")
    assert manifest.findings == ("Mass",) and any("fold" in note for note in manifest.notes)
    build(tmp_path, tmp_path / "named", table=tmp_path / "t.csv", workers=1, findings="fold")
    assert read_manifest(tmp_path / "named").findings == ("fold",)


def test_order_and_spelling_of_columns_do_not_change_labels(tmp_path: Path) -> None:
    rng, names = random.Random(4), ["Mass", "Pleural Effusion", "Edema"]
    cells = {name: [rng.choice(["1", "0", "-1", ""]) for _ in range(4)] for name in names}
    cells |= {"fold": ["0", "1", "1", "0"], "notes": ["a", "", "", "b"], "": ["", "1", "", ""]}
    for _ in range(15):
        order = rng.sample(list(cells), len(cells))
        spelt = [rng.choice(["{}", " {}", "{} ", "\ufeff{}", "{}\u200b"]).format(name) for name in order]
        rows = [",".join(rng.choice(["{}", " {} ", "{}.0"]).format(cells[name][row])
                         if name in names and cells[name][row] else cells[name][row] for name in order)
                for row in range(4)]  # fmt: skip
        table = read(tmp_path, ",".join(f'"{name}"' for name in spelt), *rows)
        assert sorted(table.findings) == sorted(names)
        for name in names:
            assert [f"{label:.0f}" if label == label else "" for label in table.rows[name]] == cells[name], name
