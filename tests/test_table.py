"""read_table: what it reads from a folder, and which tables it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shard.errors import InputError
from shard.formats import TASKS
from shard.table import read_table
from tests.tables import write_blank, write_table


def test_chexpert_reads_every_row_and_label_of_the_phantom(radiographs: Path) -> None:
    table = read_table(radiographs)
    raw = pd.concat([pd.read_csv(radiographs / f"{split}.csv") for split in ("train", "valid")])
    assert table.dataset == "chexpert"
    assert len(table.rows) == len(raw) == 121
    for task in TASKS:
        assert table.rows[task].value_counts().to_dict() == raw[task].value_counts().to_dict()
        assert table.rows[task].isna().sum() == raw[task].isna().sum()
    assert all((radiographs / path).is_file() for path in table.rows["path"])
    assert set(table.rows["view"]) == {"AP", "PA", "lateral"}
    assert table.rows["age"].astype(int).tolist() == raw["Age"].tolist()
    assert table.rows["sex"].tolist() == raw["Sex"].str[0].tolist()
    assert table.rows["key"].str.fullmatch(r"patient\d{5}_study\d+_view\d+_(frontal|lateral)").all()


def test_sex_and_age_are_read_in_the_spellings_of_archives(tmp_path: Path) -> None:
    values = {"F,57": ("F", "57"), "female,57.0": ("F", "57"), "M,058Y": ("M", "58"), "Male,18M": ("M", "1"),
              "Unknown,": ("", ""), ",414": ("", ""), "missing,young": ("", ""), "m,9D": ("M", "0")}  # fmt: skip
    lines = [f"{number}.png,p{number},train,{cells},1" for number, cells in enumerate(values)]
    (tmp_path / "table.csv").write_text("path,patient,split,Sex,AGE,Mass\n" + "\n".join(lines) + "\n")
    write_blank(tmp_path / "0.png")
    table = read_table(tmp_path, table=tmp_path / "table.csv")
    assert table.findings == ("Mass",)
    assert list(zip(table.rows["sex"], table.rows["age"], strict=True)) == list(values.values())


def test_chexpert_paths_may_have_any_prefix(tmp_path: Path) -> None:
    for prefix in ("", "CheXpert-v1.0/", "re/hosted/", "mytrain/"):
        write_blank(tmp_path / "train/patient00007/study1/view1_frontal.jpg")
        (tmp_path / "train.csv").write_text(f"Path,Edema\n{prefix}train/patient00007/study1/view1_frontal.jpg,-1.0\n")
        (row,) = read_table(tmp_path).rows.to_dict("records")
        assert row["path"] == "train/patient00007/study1/view1_frontal.jpg"
        assert (row["patient"], row["split"], row["Edema"]) == ("patient00007", "train", -1)


def test_nih_reads_labels_folders_and_the_union_of_opacities(tmp_path: Path) -> None:
    names = [f"{number:08d}_000.png" for number in range(40)]
    labels = ["No Finding", "Effusion|Mass", "Cardiomegaly", "Edema"] * 10
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    lines = (f"{name},{labels[number]},0,{number},50,M,PA" for number, name in enumerate(names))
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *lines]))
    for number, name in enumerate(names):
        write_blank(tmp_path / f"images_{number % 3:03d}" / "images" / name)
    rows = read_table(tmp_path).rows
    assert all((tmp_path / path).is_file() for path in rows["path"])
    assert rows[["Effusion", "Cardiomegaly", "Lung Opacity", "No Finding"]].iloc[:4].to_numpy().tolist() == [
        [0, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]]  # fmt: skip
    assert set(rows["split"]) == {"train", "valid", "test"}
    (tmp_path / "test_list.txt").write_text("\n".join(names[:5]))
    official = read_table(tmp_path).rows
    assert official["split"].tolist()[:5] == ["test"] * 5 and "test" not in official["split"].tolist()[5:]


def test_hashed_splits_do_not_depend_on_other_rows(tmp_path: Path) -> None:
    files = [f"{number}.png" for number in range(60)]
    rows = [f"{file},p{number},1" for number, file in enumerate(files)]
    texts = ("\n".join(["path,patient,Mass", *some]) for some in (rows, rows[::-2]))
    long, short = (read_table(tmp_path, table=write_table(tmp_path, text, *files)).rows for text in texts)
    splits = dict(zip(long["patient"], long["split"], strict=True))
    assert len(set(splits.values())) == 3
    assert all(splits[patient] == split for patient, split in zip(short["patient"], short["split"], strict=True))


def test_patient_ids_stay_text(tmp_path: Path) -> None:
    text = "path,patient,split,Mass\na.png,007,train,1\nb.png,7,valid,0\nc.png,NA,test,\n"
    rows = read_table(tmp_path, table=write_table(tmp_path, text, "a.png")).rows
    assert rows["patient"].tolist() == ["007", "7", "NA"] and rows["Mass"].tolist()[:2] == [1, 0]
    assert rows["Mass"].isna().tolist() == [False, False, True]


def test_repeated_and_conflicting_rows_are_rejected(tmp_path: Path) -> None:
    text = ("path,patient,split,Mass,Edema\na.png,p,train,1,\na.png,p,train,1,\nb.png,q,train,1,0\n"
            "b.jpg,q,train,0,0\nc.png,r,train,,\nc.png,r,train,,1\n")  # fmt: skip
    table = read_table(tmp_path, table=write_table(tmp_path, text))
    assert table.rows[["key", "path", "Mass"]].to_numpy().tolist() == [["a", "a.png", 1]]
    assert sorted(table.rejects) == [
        ("a", "a.png", "repeats an earlier row"),
        ("b", "b.jpg", "2 rows have this key and differ in path, Mass"),
        ("b", "b.png", "2 rows have this key and differ in path, Mass"),
        ("c", "c.png", "2 rows have this key and differ in Edema"),
        ("c", "c.png", "2 rows have this key and differ in Edema"),
    ]


def test_key_column_sets_the_sample_keys(tmp_path: Path) -> None:
    text = "path,key,patient,split,Mass\na.png,first.one,p,train,1\na.png,second,p,train,0\n"
    assert read_table(tmp_path, table=write_table(tmp_path, text)).rows["key"].tolist() == ["first_one", "second"]


def test_non_ascii_names_get_unique_keys(tmp_path: Path) -> None:
    names = ["胸.png", "肺.png", "ä.png"]
    text = "path,patient,split,Mass\n" + "".join(f"{name},p{number},train,1\n" for number, name in enumerate(names))
    keys = read_table(tmp_path, table=write_table(tmp_path, text, *names)).rows["key"]
    assert keys.nunique() == 3 and keys.str.fullmatch("[A-Za-z0-9_-]+").all()


def test_keys_contain_neither_dots_nor_blanks(tmp_path: Path) -> None:
    table = write_table(tmp_path, "path,patient,split,Mass\n1.2.840/a b.png,p,train,\n", "1.2.840/a b.png")
    assert read_table(tmp_path, table=table).rows["key"].tolist() == ["1_2_840_a_b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split,Mass\na.png,train,1\n", "column 'patient' is missing"),
        ("path,patient,split,Mass\na.png,p,train,1,7\nb.png,q,train,1,7\n", "row 1 has 5 cells, the header 4"),
        ("path,patient,split,Mass\na.png,p,train,1\nb.png,q,tra", "row 2 has 3 cells, the header 4"),
        ('path,patient,split,"Ma\nss"\na.png,p,train,1\n', "the name of a finding must be printable"),
        ("path,patient,split,Mass\n", "no rows below the header"),
        ("", "not a readable CSV"),
        ("path,patient,split,Mass\na.png,p,train,2\n", "label '2'"),
        ("path,patient,split,Mass\na.png,p,train,yes\n", "label 'yes'"),
        ("path,patient,split,Mass\na.png,p,training,1\n", "split 'training'"),
        ("path,patient,split,Mass\na.png,p,train,1\nb.png,p,valid,0\n", "patient 'p' is in more than one split"),
        ("path,patient,split,Mass\na.png,p,train,1\nb.png, p,valid ,0\n", "patient 'p' is in more than one split"),
        ("path,Patient,patient,Mass\na.png,p,q,1\n", "columns Patient and patient are both its patient"),
        ("path,patient,split,Mass\na.png,,train,1\nb.png,,valid,0\n", "patient is blank in row 1 of 2"),
        ("path,patient,Mass\na.png,p,1\n,q,0\n", "path is blank in row 2 of 2"),
        ("path,patient,split,Mass\na.png,p,valid,1\n", "no row is in split 'train'"),
        ("path,patient,split,Mass\nx/a.png,p,train,1\n", "no such image"),
    ],
)
def test_invalid_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    table = write_table(tmp_path, text)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path, table=table)


def test_headers_are_case_insensitive(tmp_path: Path) -> None:
    text = "Path,PATIENT, Split,Sex,Mass\na.png,007,train,f,1\n"
    row = read_table(tmp_path, table=write_table(tmp_path, text)).rows.iloc[0]
    assert row[["path", "patient", "split", "sex", "Mass"]].tolist() == ["a.png", "007", "train", "F", 1]


def test_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither train\.csv"):
        read_table(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_table(tmp_path / "absent")


def test_unknown_patients_are_noted(tmp_path: Path) -> None:
    text = "path,patient,split,Edema\na.png,nan,train,1\nb.png,nan,train,0\nc.png,Nana,train,-0\n"
    read = read_table(tmp_path, table=write_table(tmp_path, text))
    assert read.rows["patient"].tolist() == ["nan", "nan", "Nana"]
    assert any("patient: 2 of 3 cells say that it is unknown" in str(note) for note in read.notes)
    assert not np.signbit(read.rows["Edema"]).any()


@pytest.mark.parametrize("above", ["\n", "\r\n \r\n", "\ufeff\n"])
def test_blank_lines_above_the_header_are_skipped(tmp_path: Path, above: str) -> None:
    table = write_table(tmp_path, above + "path;patient;split;Edema\na.png;1,5;train;1\n\nb.png;2;train;0\n", "a.png")
    rows = read_table(tmp_path, table=table).rows
    assert rows["patient"].tolist() == ["1,5", "2"] and rows["Edema"].tolist() == [1, 0]


def test_file_with_two_keys_and_different_labels_is_noted(tmp_path: Path) -> None:
    lines = "a.png,1,train,k1,1\na.png,1,train,k2,0\nb.png,2,train,k3,1\nb.png,2,train,k4,1\n"
    read = read_table(tmp_path, table=write_table(tmp_path, "path,patient,split,key,Edema\n" + lines))
    assert len(read.rows) == 4
    assert [str(note) for note in read.notes] == [
        "1 file is in several rows that differ in key and labels; all are kept, such as a.png"]


@pytest.mark.parametrize(
    ("column", "cells", "noted"),
    [("set", ("Train", "val", "test"), True), ("Subset", ("train", "", "train"), True),
     ("split", ("train",) * 3, False), ("set", ("train", "A", "test"), False), ("source", ("test",) * 3, False)],
)  # fmt: skip
def test_unread_split_columns_are_noted(
    tmp_path: Path, column: str, cells: tuple[str, ...], noted: bool
) -> None:  # fmt: skip
    rows = "".join(f"{name}.png,{name},{cell}\n" for name, cell in zip("abc", cells, strict=True))
    read = read_table(tmp_path, table=write_table(tmp_path, f"path,patient,{column}\n{rows}"))
    note = f"splits are by a hash of patients, and {column} is not read; rename it to split"
    assert any(note in str(other) for other in read.notes) == noted
