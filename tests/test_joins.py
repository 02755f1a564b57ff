"""Tables that are joined, and columns looked up by name: what is found under another spelling, and what is lost."""

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
from tests.test_table import picture, plain

LAST = ("No Finding", "Edema")  # what the tables of this module have of CheXpert's findings


def said(table: Table) -> str:
    return "\n".join(map(str, table.notes))


def mimic(folder: Path, metadata: str = "{}", chexpert: str = "{}", split: str = "{}", images: int = 4) -> Path:
    """MIMIC-CXR-JPG's tables, with the study's and the subject's number written so; odd studies have Edema."""
    names = [(f"aaaa{n}", str(19000001 + n), str(59000001 + n)) for n in range(images)]
    subject = {"s{}": "p{}", "S{}": "P{}", "s{}.0": "p{}.0"}
    def write(name: str, header: str, lines: list[str]) -> None:
        (folder / f"mimic-cxr-2.0.0-{name}.csv").write_text("\n".join([header, *lines]) + "\n")

    def both(form: str, row: tuple[str, str, str]) -> str:
        return f"{subject.get(form, form).format(row[1])},{form.format(row[2])}"

    write("metadata", "dicom_id,subject_id,study_id,ViewPosition", [f"{n[0]},{both(metadata, n)},PA" for n in names])
    write("chexpert", "subject_id,study_id,Edema,No Finding",
          [f"{both(chexpert, n)},{k % 2}.0,{1 - k % 2}.0" for k, n in enumerate(names)])  # fmt: skip
    write("split", "dicom_id,study_id,subject_id,split", [f"{n[0]},{split.format(n[2])},{n[1]},train" for n in names])
    for name, patient, study in names:
        picture(folder / f"files/p19/p{patient}/s{study}/{name}.jpg")
    return folder


FORMS = ("{}", "{}.0", "s{}", "s{}.0", " {}", "S{}", "{}\u200b", "{}.")


@pytest.mark.parametrize(("metadata", "chexpert"), [*itertools.product(FORMS[:4], FORMS[:4]), ("{}", FORMS[4]),
                                                    (FORMS[5], "{}"), ("{}", FORMS[6]), ("{}", FORMS[7])])  # fmt: skip
def test_ids_of_mimic_are_compared_in_one_form(tmp_path: Path, metadata: str, chexpert: str) -> None:
    table = read_table(mimic(tmp_path, metadata, chexpert, chexpert))
    assert table.rows["Edema"].tolist() == [0, 1, 0, 1] and table.rows["No Finding"].tolist() == [1, 0, 1, 0]
    assert table.rows["patient"].tolist() == ["19000001", "19000002", "19000003", "19000004"]
    assert all((tmp_path / path).is_file() for path in table.rows["path"])
    assert "no row" not in said(table)


def test_images_without_labels_and_labels_without_images_are_counted(tmp_path: Path) -> None:
    file = mimic(tmp_path) / "mimic-cxr-2.0.0-chexpert.csv"
    file.write_text(file.read_text().replace("19000004,59000004", "19000009,59000009"))
    table = read_table(tmp_path)
    assert table.rows["Edema"].isna().tolist() == [False, False, False, True]
    assert ("mimic-cxr-2.0.0-chexpert.csv: no row for the subject_id/study_id of 1 of 4 rows of "
            "mimic-cxr-2.0.0-metadata.csv: blank there, such as 19000004/59000004; it has 19000009/59000009\n"
            "mimic-cxr-2.0.0-chexpert.csv: 1 of its 4 rows match no row of mimic-cxr-2.0.0-metadata.csv, such as "
            "19000009/59000009; that has 19000001/59000001") in said(table)  # fmt: skip


@pytest.mark.parametrize("form", ["s-{}", "{}7", "X{}", "{}.5"])
def test_labels_of_no_image_are_refused_with_an_id_of_either_side(tmp_path: Path, form: str) -> None:
    mimic(tmp_path, chexpert=form)
    wanted = (r"chexpert.csv: no row for subject_id/study_id '19000001/59000001' \(4 are missing, of 4 in "
              r"mimic-cxr-2.0.0-metadata.csv; it has '")  # fmt: skip
    with pytest.raises(InputError, match=wanted):
        read_table(tmp_path)


def test_most_without_a_partner_are_refused_fewer_are_noted(tmp_path: Path) -> None:
    rows = pd.DataFrame({"id": [str(number) for number in range(10)]}, dtype="str")
    for found in range(11):
        other = rows[:found].assign(label=1.0) if found else pd.DataFrame({"id": ["x"], "label": [1.0]})
        if found < 5:
            with pytest.raises(InputError, match=rf"b.csv: no row for id '{found}' .{10 - found} are missing, of 10"):
                join(Path("a.csv"), rows, Path("b.csv"), other, ["id"])
        else:
            joined, notes = join(Path("a.csv"), rows, Path("b.csv"), other, ["id"])
            assert joined["label"].notna().sum() == found and len(notes) == (found < 10)


def chexpert(folder: Path, header: str, valid: str | None = None, rest: str = "Sex,Age,Frontal/Lateral,AP/PA") -> Table:
    for split, patient, own in (("train", 90001, header), ("valid", 90101, valid or header)):
        path = f"{split}/patient{patient}/study1/view1_frontal.jpg"
        picture(folder / path)
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
def test_findings_of_chexpert_are_found_in_any_spelling(tmp_path: Path, header: str) -> None:
    for valid in (None, "Cardiomegaly,Lung Opacity,Pleural Effusion"):
        table = chexpert(tmp_path, header, valid)
        assert table.findings == ("Cardiomegaly", "Lung Opacity", "Pleural Effusion")
        assert table.rows[list(table.findings)].to_numpy().tolist() == [[1, -1, 0]] * 2
        assert "train.csv: 11 expected findings not found: No Finding, Enlarged Cardiomediastinum" in said(table)
        assert "not taken" not in said(table) and "lacks" not in said(table)


@pytest.mark.parametrize("rest", [
    "sex,AGE,Frontal_Lateral,AP_PA", "Patient Gender,Patient Age,Frontal.Lateral,AP.PA",
    "Gender,age, frontal/lateral ,ap/pa", "Patient_Sex,Age,Frontal Lateral,AP PA",
])  # fmt: skip
def test_other_columns_of_chexpert_are_found_in_any_spelling(tmp_path: Path, rest: str) -> None:
    rows = chexpert(tmp_path, "Cardiomegaly", rest=rest).rows
    assert rows[["sex", "age", "view"]].astype("str").to_numpy().tolist() == [["F", "60", "AP"]] * 2


def test_columns_that_are_not_taken_and_findings_that_one_table_lacks_are_said(tmp_path: Path) -> None:
    table = chexpert(tmp_path, "Cardiomegaly,Airspace Opacity,COVID", "Cardiomegaly,Edema")
    assert table.findings == ("Cardiomegaly", "Lung Opacity", "Edema")
    assert [note.text for note in table.notes if "expected" not in note.text] == [
        "train.csv: 1 of its columns not read: COVID",
        "train.csv: lacks Edema, which other tables of the set have: blank there",
        "valid.csv: lacks Lung Opacity, which other tables of the set have: blank there",
        "train.csv: column Airspace Opacity read as Lung Opacity",
    ]  # fmt: skip


def test_a_second_name_counts_where_there_is_no_first(tmp_path: Path) -> None:
    table = chexpert(tmp_path, "Lung Opacity,Airspace Opacity,Edema")
    assert table.rows["Lung Opacity"].tolist() == [1, 1]
    assert "train.csv: 1 of its columns not read: Airspace Opacity" in said(table)


@pytest.mark.parametrize("header", ["Edema,edema", "Edema, Edema ", "Edema,Edema", "Lung Opacity,Lung_Opacity"])
def test_two_columns_of_one_finding_are_refused(tmp_path: Path, header: str) -> None:
    one, other = (name.strip() for name in header.split(","))
    with pytest.raises(InputError, match=f"columns {one} and {other} are both its {one}; remove one"):
        chexpert(tmp_path, header)


def test_a_test_set_without_a_view_has_none(tmp_path: Path) -> None:
    chexpert(tmp_path, "Edema")
    picture(tmp_path / "test/patient90201/study1/view1_frontal.jpg")
    (tmp_path / "test.csv").write_text("Path,Edema\nCheXpert-v1.0/test/patient90201/study1/view1_frontal.jpg,0.0\n")
    table = read_table(tmp_path)
    assert "test.csv: 4 expected columns not found: Sex, Age, Frontal/Lateral, AP/PA" in said(table)
    row = table.rows.set_index("split").loc["test"]
    assert row[["view", "sex", "age"]].tolist() == ["", "", ""] and row["Edema"] == 0


@pytest.mark.parametrize("header", [
    "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position",
    "Image_Index,finding labels,PatientID,patient_age,Patient Sex,ViewPosition",
])  # fmt: skip
@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "sample_labels.csv"])
def test_nih_is_known_by_its_columns(tmp_path: Path, header: str, name: str) -> None:
    rows = [f"{number}_0.png,Hernia,{number}.0,05{number}Y,M,PA" for number in range(9)]
    (tmp_path / name).write_text("\n".join([f"{header},Follow-up #,", *(f"{row},0," for row in rows)]) + "\n")
    picture(tmp_path / "images" / "0_0.png")
    table = read_table(tmp_path)
    assert table.dataset == "nih" and set(table.rows["sex"]) == {"M"} and set(table.rows["view"]) == {"PA"}
    assert table.rows["patient"].tolist() == [str(number) for number in range(9)]
    assert f"{name}: 1 of its columns not read: Follow-up #" in said(table)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_official_list_says_what_of_it_the_table_lacks(tmp_path: Path, encoding: str) -> None:
    names = [f"{number}_0.png" for number in range(12)]
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n" + "".join(
        f"{name},Hernia,{number}\n" for number, name in enumerate(names)))  # fmt: skip
    picture(tmp_path / "images" / "0_0.png")
    listed = [*names[:3], "images/3_0.png", "77_0.png", "78_0.png"]
    (tmp_path / "test_list.txt").write_text("\r\n".join(listed), encoding)
    table = read_table(tmp_path)
    assert table.rows["key"][table.rows["split"] == "test"].tolist() == ["0_0", "1_0", "2_0", "3_0"]
    assert "test_list.txt: 2 of its 6 names are not in Data_Entry_2017.csv, such as 77_0" in said(table)
    others = tmp_path / "train_val_list.txt"
    others.write_text("\n".join([*names[4:11], "99_0.png"]), encoding)
    told = said(read_table(tmp_path))
    assert "train_val_list.txt: 1 of its 8 names are not in Data_Entry_2017.csv, such as 99_0\n" in told
    assert "1 of 12 images are in neither test_list.txt nor train_val_list.txt: not in split test, such as 11_0" in told
    others.write_text("\n".join(names[3:]), encoding)
    with pytest.raises(InputError, match=r"train_val_list.txt: 1 images are in test_list.txt too, such as 3_0"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["train.csv", "labels.csv", "Train.CSV"])
@pytest.mark.parametrize("header", [
    "StudyInstanceUID,ETT - Abnormal,PatientID", "image_name,annotation", "Path,Sex,Age", "File,Edema", "id;Mass;file",
])  # fmt: skip
def test_a_table_of_no_archive_is_told_how_to_be_read(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(InputError) as error:
        read_table(tmp_path)
    columns = header.replace(";", ", ").replace(",", ", ").replace("  ", " ")
    assert f"{name} has {columns} (read as UTF-8, separated by" in str(error.value)
    assert f"--dataset=csv --table={tmp_path / name}" in str(error.value)


def test_chexpert_is_known_by_its_columns_whatever_their_spelling(tmp_path: Path) -> None:
    picture(tmp_path / "train/patient00001/study1/view1_frontal.jpg")
    text = "path;EDEMA\nx\\train\\patient00001\\study1\\view1_frontal.jpg;1\n"
    (tmp_path / "Train.csv").write_bytes(text.encode("utf-16"))
    table = read_table(tmp_path)
    assert table.dataset == "chexpert"
    assert table.rows["path"].tolist() == ["train/patient00001/study1/view1_frontal.jpg"]
    assert "Train.csv: read as UTF-16, separated by semicolons" in said(table)


@pytest.mark.parametrize("prefix", ["C:\\data\\CheXpert-v1.0\\", "\\\\host\\CheXpert-v1.0\\", "/data//chex/", "./",
                                    "/home/train/valid/chex/"])  # fmt: skip
def test_chexperts_paths_begin_at_the_splits_folder(tmp_path: Path, prefix: str) -> None:
    chexpert(tmp_path, "Edema")
    wanted = read_table(tmp_path).rows
    for split in ("train", "valid"):
        text = (tmp_path / f"{split}.csv").read_text().replace("CheXpert-v1.0-small/", prefix)
        text = text.replace("/study1/", "\\study1\\") if "\\" in prefix else text
        (tmp_path / f"{split}.csv").write_text(text)
    pd.testing.assert_frame_equal(read_table(tmp_path).rows, wanted)


def test_images_of_nih_that_no_row_names_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "images" / f"{number}_0.png")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\nimages/1_0.png,Hernia,1\n")
    table = read_table(tmp_path)
    assert table.rows["path"].tolist() == ["images/1_0.png"] and table.rows["key"].tolist() == ["1_0"]
    assert "2 of 3 images are not listed in Data_Entry_2017.csv: skipped, such as 0_0.png" in said(table)


def test_a_folder_of_two_archives_is_asked_about(tmp_path: Path) -> None:
    chexpert(tmp_path, "Edema")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\n1_0.png,Hernia,1\n")
    with pytest.raises(InputError, match="contains tables of chexpert and of nih; choose one, for example with --data"):
        read_table(tmp_path)
    assert read_table(tmp_path, "chexpert").dataset == "chexpert"


def test_columns_of_a_table_of_ones_own_have_second_names(tmp_path: Path) -> None:
    text = "Image Path,Patient ID,Split,Patient Gender,Patient Age,View Position,Mass\na.png,007,TRAIN,f,60,PA,1\n"
    table = read_table(tmp_path, table=plain(tmp_path, text))
    read = table.rows.iloc[0][["path", "patient", "split", "sex", "view"]]
    assert read.tolist() == ["a.png", "007", "train", "F", "PA"]
    assert "table.csv: column Patient ID read as patient" in said(table) and table.findings == ("Mass",)


def test_names_fold_and_stay_unique() -> None:
    assert len({fold_name(name) for name in CHEXPERT_FINDINGS}) == len(CHEXPERT_FINDINGS)
    assert unique_names(["a", "", "a", "a.1", "a", ""]) == ["a", "Unnamed: 1", "a.1", "a.1.1", "a.2", "Unnamed: 5"]
    assert match_columns(Path("t.csv"), ["b ", "A_1"], {"A 1": (), "c": ("B",), "d": ()}) == {"A 1": 1, "c": 0}


def test_a_table_of_chexperts_that_is_not_read_is_told_of(tmp_path: Path) -> None:
    chexpert(tmp_path, "Cardiomegaly,Edema")
    (tmp_path / "validation.csv").write_bytes((tmp_path / "valid.csv").read_bytes())
    assert "validation.csv is not read; train.csv, valid.csv and test.csv" in said(read_table(tmp_path))
