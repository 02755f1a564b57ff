"""Joins of tables and lookup of columns by name: spellings that match, and notes about what does not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest

from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS
from shard.table import Table, read_table
from shard.tabular.columns import fold_name, match_columns, unique_names
from shard.tabular.join import join
from tests.tables import notes_of, write_blank, write_table


def write_mimic(folder: Path, metadata: str = "{}", chexpert: str = "{}", split: str = "{}", images: int = 4) -> Path:
    """Write MIMIC-CXR-JPG's tables. Odd studies have Edema. metadata, chexpert, split: format of the ids in a table."""
    names = [(f"aaaa{n}", str(19000001 + n), str(59000001 + n)) for n in range(images)]
    subject = {"s{}": "p{}", "S{}": "P{}", "s{}.0": "p{}.0"}

    def write(name: str, header: str, lines: list[str]) -> None:
        (folder / f"mimic-cxr-2.0.0-{name}.csv").write_text("\n".join([header, *lines]) + "\n")

    def join_ids(form: str, row: tuple[str, str, str]) -> str:
        return f"{subject.get(form, form).format(row[1])},{form.format(row[2])}"

    write("metadata", "dicom_id,subject_id,study_id,ViewPosition",
          [f"{n[0]},{join_ids(metadata, n)},PA" for n in names])  # fmt: skip
    write("chexpert", "subject_id,study_id,Edema,No Finding",
          [f"{join_ids(chexpert, n)},{k % 2}.0,{1 - k % 2}.0" for k, n in enumerate(names)])  # fmt: skip
    write("split", "dicom_id,study_id,subject_id,split", [f"{n[0]},{split.format(n[2])},{n[1]},train" for n in names])
    for name, patient, study in names:
        write_blank(folder / f"files/p19/p{patient}/s{study}/{name}.jpg")
    return folder


ID_FORMS = ("{}", "{}.0", "s{}", "s{}.0", " {}", "S{}", "{}\u200b", "{}.")


@pytest.mark.parametrize(("metadata", "chexpert"), [
    *itertools.product(ID_FORMS[:4], ID_FORMS[:4]), ("{}", ID_FORMS[4]), (ID_FORMS[5], "{}"), ("{}", ID_FORMS[6]),
    ("{}", ID_FORMS[7]),
])  # fmt: skip
def test_mimic_normalises_ids(tmp_path: Path, metadata: str, chexpert: str) -> None:
    table = read_table(write_mimic(tmp_path, metadata, chexpert, chexpert))
    assert table.rows["Edema"].tolist() == [0, 1, 0, 1] and table.rows["No Finding"].tolist() == [1, 0, 1, 0]
    assert table.rows["patient"].tolist() == ["19000001", "19000002", "19000003", "19000004"]
    assert all((tmp_path / path).is_file() for path in table.rows["path"])
    assert "no row" not in notes_of(table)


def test_images_without_labels_and_labels_without_images_are_noted(tmp_path: Path) -> None:
    file = write_mimic(tmp_path) / "mimic-cxr-2.0.0-chexpert.csv"
    file.write_text(file.read_text().replace("19000004,59000004", "19000009,59000009"))
    table = read_table(tmp_path)
    assert table.rows["Edema"].isna().tolist() == [False, False, False, True]
    assert ("mimic-cxr-2.0.0-chexpert.csv: no row for the subject_id/study_id of 1 of 4 rows of "
            "mimic-cxr-2.0.0-metadata.csv: blank there, such as 19000004/59000004; it has 19000009/59000009\n"
            "mimic-cxr-2.0.0-chexpert.csv: 1 of its 4 rows match no row of mimic-cxr-2.0.0-metadata.csv, such as "
            "19000009/59000009; that has 19000001/59000001") in notes_of(table)  # fmt: skip


@pytest.mark.parametrize("form", ["s-{}", "{}7", "X{}", "{}.5"])
def test_labels_that_match_no_image_are_refused(tmp_path: Path, form: str) -> None:
    write_mimic(tmp_path, chexpert=form)
    message = (r"chexpert.csv: no row for subject_id/study_id '19000001/59000001' \(4 are missing, of 4 in "
               r"mimic-cxr-2.0.0-metadata.csv; it has '")  # fmt: skip
    with pytest.raises(InputError, match=message):
        read_table(tmp_path)


def test_join_refuses_a_majority_without_counterpart_and_notes_fewer(tmp_path: Path) -> None:
    rows = pd.DataFrame({"id": [str(number) for number in range(10)]}, dtype="str")
    for found in range(11):
        other = rows[:found].assign(label=1.0) if found else pd.DataFrame({"id": ["x"], "label": [1.0]})
        if found < 5:
            with pytest.raises(InputError, match=rf"b.csv: no row for id '{found}' .{10 - found} are missing, of 10"):
                join(Path("a.csv"), rows, Path("b.csv"), other, ["id"])
        else:
            joined, notes = join(Path("a.csv"), rows, Path("b.csv"), other, ["id"])
            assert joined["label"].notna().sum() == found and len(notes) == (found < 10)


def read_chexpert(
    folder: Path, header: str, valid: str | None = None, rest: str = "Sex,Age,Frontal/Lateral,AP/PA"
) -> Table:
    """Read CheXpert's tables with the findings `header` in train.csv and `valid` in valid.csv, and other columns."""
    for split, patient, own in (("train", 90001, header), ("valid", 90101, valid or header)):
        path = f"{split}/patient{patient}/study1/view1_frontal.jpg"
        write_blank(folder / path)
        cells = ",".join(["1.0", "-1.0", "0.0"][: own.count(",") + 1])
        row = f"CheXpert-v1.0-small/{path},Female,60,Frontal,AP,{cells}"
        (folder / f"{split}.csv").write_text(f"Path,{rest},{own}\n{row}\n")
    return read_table(folder)


@pytest.mark.parametrize("header", [
    "Cardiomegaly,Lung Opacity,Pleural Effusion", "Cardiomegaly,Lung_Opacity,Pleural_Effusion",
    "cardiomegaly,Lung opacity,Pleural effusion", "CARDIOMEGALY,LUNG OPACITY,PLEURAL EFFUSION",
    " Cardiomegaly , LungOpacity,Pleural.Effusion", "Cardiomegaly,Airspace Opacity,Effusion",
    "Cardiomegaly,airspace_opacity,Pleural  Effusion", "Cardiomegaly\u200b,Lung\u00a0Opacity,pleural-effusion",
])  # fmt: skip
def test_chexpert_findings_are_found_in_any_spelling(tmp_path: Path, header: str) -> None:
    for valid in (None, "Cardiomegaly,Lung Opacity,Pleural Effusion"):
        table = read_chexpert(tmp_path, header, valid)
        assert table.findings == ("Cardiomegaly", "Lung Opacity", "Pleural Effusion")
        assert table.rows[list(table.findings)].to_numpy().tolist() == [[1, -1, 0]] * 2
        assert "train.csv: 11 expected findings not found: No Finding, Enlarged Cardiomediastinum" in notes_of(table)
        assert "not read" not in notes_of(table) and "lacks" not in notes_of(table)


@pytest.mark.parametrize("rest", [
    "sex,AGE,Frontal_Lateral,AP_PA", "Patient Gender,Patient Age,Frontal.Lateral,AP.PA",
    "Gender,age, frontal/lateral ,ap/pa", "Patient_Sex,Age,Frontal Lateral,AP PA",
])  # fmt: skip
def test_other_chexpert_columns_are_found_in_any_spelling(tmp_path: Path, rest: str) -> None:
    rows = read_chexpert(tmp_path, "Cardiomegaly", rest=rest).rows
    assert rows[["sex", "age", "view"]].astype("str").to_numpy().tolist() == [["F", "60", "AP"]] * 2


def test_unread_columns_and_findings_that_one_table_lacks_are_noted(tmp_path: Path) -> None:
    table = read_chexpert(tmp_path, "Cardiomegaly,Airspace Opacity,COVID", "Cardiomegaly,Edema")
    assert table.findings == ("Cardiomegaly", "Lung Opacity", "Edema")
    assert [note.text for note in table.notes if "expected" not in note.text] == [
        "train.csv: 1 of its columns not read: COVID",
        "train.csv: lacks Edema, which other tables contain; left blank",
        "valid.csv: lacks Lung Opacity, which other tables contain; left blank",
        "train.csv: column Airspace Opacity read as Lung Opacity",
    ]  # fmt: skip


def test_second_name_is_used_only_without_the_first(tmp_path: Path) -> None:
    table = read_chexpert(tmp_path, "Lung Opacity,Airspace Opacity,Edema")
    assert table.rows["Lung Opacity"].tolist() == [1, 1]
    assert "train.csv: 1 of its columns not read: Airspace Opacity" in notes_of(table)


@pytest.mark.parametrize("header", ["Edema,edema", "Edema, Edema ", "Edema,Edema", "Lung Opacity,Lung_Opacity"])
def test_two_columns_of_one_finding_are_refused(tmp_path: Path, header: str) -> None:
    one, other = (name.strip() for name in header.split(","))
    with pytest.raises(InputError, match=f"columns {one} and {other} are both its {one}; remove one"):
        read_chexpert(tmp_path, header)


def test_test_table_without_demographics_has_blanks(tmp_path: Path) -> None:
    read_chexpert(tmp_path, "Edema")
    write_blank(tmp_path / "test/patient90201/study1/view1_frontal.jpg")
    (tmp_path / "test.csv").write_text("Path,Edema\nCheXpert-v1.0/test/patient90201/study1/view1_frontal.jpg,0.0\n")
    table = read_table(tmp_path)
    assert "test.csv: 4 expected columns not found: Sex, Age, Frontal/Lateral, AP/PA" in notes_of(table)
    row = table.rows.set_index("split").loc["test"]
    assert row[["view", "sex", "age"]].tolist() == ["", "", ""] and row["Edema"] == 0


@pytest.mark.parametrize("header", [
    "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position",
    "Image_Index,finding labels,PatientID,patient_age,Patient Sex,ViewPosition",
])  # fmt: skip
@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "sample_labels.csv"])
def test_nih_is_recognised_by_its_columns(tmp_path: Path, header: str, name: str) -> None:
    rows = [f"{number}_0.png,Hernia,{number}.0,05{number}Y,M,PA" for number in range(9)]
    (tmp_path / name).write_text("\n".join([f"{header},Follow-up #,", *(f"{row},0," for row in rows)]) + "\n")
    write_blank(tmp_path / "images" / "0_0.png")
    table = read_table(tmp_path)
    assert table.dataset == "nih" and set(table.rows["sex"]) == {"M"} and set(table.rows["view"]) == {"PA"}
    assert table.rows["patient"].tolist() == [str(number) for number in range(9)]
    assert f"{name}: 1 of its columns not read: Follow-up #" in notes_of(table)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_mismatches_of_official_lists_are_noted(tmp_path: Path, encoding: str) -> None:
    names = [f"{number}_0.png" for number in range(12)]
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n" + "".join(
        f"{name},Hernia,{number}\n" for number, name in enumerate(names)))  # fmt: skip
    write_blank(tmp_path / "images" / "0_0.png")
    listed = [*names[:3], "images/3_0.png", "77_0.png", "78_0.png"]
    (tmp_path / "test_list.txt").write_text("\r\n".join(listed), encoding)
    table = read_table(tmp_path)
    assert table.rows["key"][table.rows["split"] == "test"].tolist() == ["0_0", "1_0", "2_0", "3_0"]
    assert "test_list.txt: 2 of its 6 names are not in Data_Entry_2017.csv, such as 77_0" in notes_of(table)
    others = tmp_path / "train_val_list.txt"
    others.write_text("\n".join([*names[4:11], "99_0.png"]), encoding)
    notes = notes_of(read_table(tmp_path))
    assert "train_val_list.txt: 1 of its 8 names are not in Data_Entry_2017.csv, such as 99_0\n" in notes
    assert ("1 of 12 images are in neither test_list.txt nor train_val_list.txt: not in split test, such as 11_0"
            in notes)  # fmt: skip
    others.write_text("\n".join(names[3:]), encoding)
    with pytest.raises(InputError, match=r"train_val_list.txt: 1 images are in test_list.txt too, such as 3_0"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["train.csv", "labels.csv", "Train.CSV"])
@pytest.mark.parametrize("header", [
    "StudyInstanceUID,ETT - Abnormal,PatientID", "image_name,annotation", "Path,Sex,Age", "File,Edema", "id;Mass;file",
])  # fmt: skip
def test_error_for_an_unknown_table_shows_how_to_read_it(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(InputError) as error:
        read_table(tmp_path)
    columns = header.replace(";", ", ").replace(",", ", ").replace("  ", " ")
    assert f"{name} has {columns} (read as UTF-8, separated by" in str(error.value)
    assert f"--dataset=csv --table={tmp_path / name}" in str(error.value)


def test_chexpert_is_recognised_by_its_columns_in_any_spelling(tmp_path: Path) -> None:
    write_blank(tmp_path / "train/patient00001/study1/view1_frontal.jpg")
    text = "path;EDEMA\nx\\train\\patient00001\\study1\\view1_frontal.jpg;1\n"
    (tmp_path / "Train.csv").write_bytes(text.encode("utf-16"))
    table = read_table(tmp_path)
    assert table.dataset == "chexpert"
    assert table.rows["path"].tolist() == ["train/patient00001/study1/view1_frontal.jpg"]
    assert "Train.csv: read as UTF-16, separated by semicolons" in notes_of(table)


@pytest.mark.parametrize("prefix", ["C:\\data\\CheXpert-v1.0\\", "\\\\host\\CheXpert-v1.0\\", "/data//chex/", "./",
                                    "/home/train/valid/chex/"])  # fmt: skip
def test_chexpert_paths_begin_at_the_folder_of_the_split(tmp_path: Path, prefix: str) -> None:
    read_chexpert(tmp_path, "Edema")
    expected = read_table(tmp_path).rows
    for split in ("train", "valid"):
        text = (tmp_path / f"{split}.csv").read_text().replace("CheXpert-v1.0-small/", prefix)
        text = text.replace("/study1/", "\\study1\\") if "\\" in prefix else text
        (tmp_path / f"{split}.csv").write_text(text)
    pd.testing.assert_frame_equal(read_table(tmp_path).rows, expected)


def test_unlisted_nih_images_are_noted(tmp_path: Path) -> None:
    for number in range(3):
        write_blank(tmp_path / "images" / f"{number}_0.png")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\nimages/1_0.png,Hernia,1\n")
    table = read_table(tmp_path)
    assert table.rows["path"].tolist() == ["images/1_0.png"] and table.rows["key"].tolist() == ["1_0"]
    assert "2 of 3 images are not listed in Data_Entry_2017.csv: skipped, such as 0_0.png" in notes_of(table)


def test_folder_with_two_archives_requires_dataset(tmp_path: Path) -> None:
    read_chexpert(tmp_path, "Edema")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n1_0.png,Hernia,1\n")
    with pytest.raises(InputError, match="contains tables of chexpert and of nih; choose one, for example with --data"):
        read_table(tmp_path)
    assert read_table(tmp_path, "chexpert").dataset == "chexpert"


def test_columns_of_your_own_table_have_second_names(tmp_path: Path) -> None:
    text = "Image Path,Patient ID,Split,Patient Gender,Patient Age,View Position,Mass\na.png,007,TRAIN,f,60,PA,1\n"
    table = read_table(tmp_path, table=write_table(tmp_path, text))
    read = table.rows.iloc[0][["path", "patient", "split", "sex", "view"]]
    assert read.tolist() == ["a.png", "007", "train", "F", "PA"]
    assert "table.csv: column Patient ID read as patient" in notes_of(table) and table.findings == ("Mass",)


def test_column_names_fold_match_and_stay_unique() -> None:
    assert len({fold_name(name) for name in CHEXPERT_FINDINGS}) == len(CHEXPERT_FINDINGS)
    assert unique_names(["a", "", "a", "a.1", "a", ""]) == ["a", "Unnamed: 1", "a.1", "a.1.1", "a.2", "Unnamed: 5"]
    assert match_columns(Path("t.csv"), ["b ", "A_1"], {"A 1": (), "c": ("B",), "d": ()}) == {"A 1": 1, "c": 0}


def test_unread_chexpert_table_is_noted(tmp_path: Path) -> None:
    read_chexpert(tmp_path, "Cardiomegaly,Edema")
    (tmp_path / "validation.csv").write_bytes((tmp_path / "valid.csv").read_bytes())
    assert "validation.csv is not read; train.csv, valid.csv and test.csv" in notes_of(read_table(tmp_path))
