"""Layouts of CheXpert, NIH and MIMIC-CXR-JPG: locations of tables and images, and splits."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from shard.errors import InputError
from shard.table import read_table
from tests.tables import write_blank

HEADER = "subject_id,study_id,Atelectasis,Cardiomegaly,Edema,No Finding"


def write_gz(path: Path, *lines: str) -> None:
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    """Four images of three patients in the layout of MIMIC-CXR-JPG 2.0.0, with one study without labels."""
    write_gz(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id,subject_id,study_id,ViewPosition,Rows",
             "02aa-b1,10000032,50414267,PA,3056", "174f-c2,10000032,50414267,LATERAL,3056",
             "2a2d-d3,10000764,57375967,AP,2544", "e084-e4,10000898,50771383,,2544")  # fmt: skip
    write_gz(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", HEADER, "10000032,50414267,,1.0,-1.0,",
             "10000764,57375967,0.0,,,1.0")  # fmt: skip
    write_gz(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split",
             "02aa-b1,50414267,10000032,train", "174f-c2,50414267,10000032,train",
             "2a2d-d3,57375967,10000764,validate", "e084-e4,50771383,10000898,test")  # fmt: skip
    write_blank(tmp_path / "files/p10/p10000032/s50414267/02aa-b1.jpg")
    return tmp_path


def test_mimic_joins_its_three_tables(mimic: Path) -> None:
    table = read_table(mimic)
    assert table.dataset == "mimic" and table.findings == ("No Finding", "Cardiomegaly", "Edema", "Atelectasis")
    rows = table.rows.set_index("key")
    assert rows["path"].to_dict() == {
        "02aa-b1": "files/p10/p10000032/s50414267/02aa-b1.jpg",
        "174f-c2": "files/p10/p10000032/s50414267/174f-c2.jpg",
        "2a2d-d3": "files/p10/p10000764/s57375967/2a2d-d3.jpg",
        "e084-e4": "files/p10/p10000898/s50771383/e084-e4.jpg",
    }
    assert rows["split"].tolist() == ["train", "train", "valid", "test"]
    assert rows["view"].tolist() == ["PA", "lateral", "AP", ""]
    assert rows["patient"].tolist() == ["10000032", "10000032", "10000764", "10000898"]
    assert rows["Cardiomegaly"].tolist()[:2] == [1, 1] and rows["Edema"].tolist()[:2] == [-1, -1]
    assert rows["Atelectasis"].tolist()[2] == 0 and rows.loc["e084-e4", list(table.findings)].isna().all()


def test_mimic_may_be_unpacked_or_of_another_version(mimic: Path) -> None:
    for file in mimic.glob("*.gz"):
        plain = mimic / file.name.replace("2.0.0", "2.1.0").removesuffix(".gz")
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert len(read_table(mimic).rows) == 4


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("split", ("dicom_id,split", "02aa-b1,train"), "no row for dicom_id '174f-c2' .3 are missing"),
        ("split", ("dicom_id,split", "02aa-b1,train", "02aa-b1,test"), "two rows for 02aa-b1 contradict each other"),
        ("split", ("dicom_id,split", "02aa-b1,train", "174f-c2,test", "2a2d-d3,test", "e084-e4,test"),
         "patient '10000032' is in more than one split"),
        ("chexpert", (HEADER, "10000032,50414267,,1.0,,", "10000032,50414267,,0.0,,"),
         "two rows for 10000032/50414267 contradict each other"),
        ("chexpert", ("subject_id,study_id,Mass", "10000032,50414267,1"), "lacks columns of CheXpert's findings"),
        ("metadata", ("dicom_id,subject_id", "02aa-b1,10000032"), "column 'study_id' is missing"),
        ("chexpert", None, r"mimic-cxr-\*-chexpert.csv\*: no such file"),
    ],
)  # fmt: skip
def test_invalid_mimic_tables_are_refused(mimic: Path, file: str, lines: tuple[str, ...] | None, message: str) -> None:
    path = mimic / f"mimic-cxr-2.0.0-{file}.csv.gz"
    if lines is None:
        path.unlink()
    else:
        write_gz(path, *lines)
    with pytest.raises(InputError, match=message):
        read_table(mimic)


def test_truncated_gzip_is_refused(mimic: Path) -> None:
    path = mimic / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"chexpert.csv.gz: not a readable CSV \("):
        read_table(mimic)


def test_chexpert_is_read_from_its_batches(tmp_path: Path) -> None:
    first, second = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)", tmp_path / "CheXpert-v1.0 batch 2 (train 1)"
    third = tmp_path / "CheXpert-v1.0 batch 3 (train 2)"
    write_blank(first / "valid/patient64541/study1/view1_frontal.jpg")
    write_blank(second / "patient00001/study1/view1_frontal.jpg")
    write_blank(third / "patient21514/study1/view1_frontal.jpg")
    (first / "train.csv").write_text("Path,Edema\nCheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,1.0\n"
                                     "CheXpert-v1.0/train/patient21514/study1/view1_frontal.jpg,\n")  # fmt: skip
    (first / "valid.csv").write_text("Path,Edema\nCheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,0.0\n")
    table = read_table(tmp_path)
    assert table.dataset == "chexpert" and table.rows["split"].tolist() == ["train", "train", "valid"]
    assert all((tmp_path / path).is_file() for path in table.rows["path"])
    assert table.rows["key"].tolist()[0] == "patient00001_study1_view1_frontal"


@pytest.mark.parametrize("dataset", ["chexpert", "nih"])
def test_patient_in_two_official_splits_is_refused(tmp_path: Path, dataset: str) -> None:
    if dataset == "chexpert":
        for split in ("train", "valid"):
            write_blank(tmp_path / f"{split}/patient00001/study1/view1_frontal.jpg")
            (tmp_path / f"{split}.csv").write_text(f"Path,Edema\n{split}/patient00001/study1/view1_frontal.jpg,1\n")
    else:
        names = ["00000001_000.png", "00000001_001.png"]
        for name in names:
            write_blank(tmp_path / "images" / name)
        (tmp_path / "Data_Entry_2017.csv").write_text(
            "Image Index,Finding Labels,Patient ID\n" + "".join(f"{name},No Finding,1\n" for name in names))
        (tmp_path / "test_list.txt").write_text(names[0])
    with pytest.raises(InputError, match=r"is in more than one split, .* and .* .1 such patient.; move all images"):
        read_table(tmp_path)


def write_nih(folder: Path, *rows: str, name: str = "Data_Entry_2017.csv") -> None:
    (folder / name).write_text("Image Index,Finding Labels,Patient ID\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize("labels", ["cardiomegaly", "Cardiomegaly|Pleural Thickening", "", "Cardiomegaly|"])
def test_unknown_nih_label_is_refused(tmp_path: Path, labels: str) -> None:
    write_nih(tmp_path, "1_0.png,No Finding,1", f"2_0.png,{labels},2")
    with pytest.raises(InputError, match=r"Data_Entry_2017.csv: Finding Labels .* of 2_0.png: not one of No Finding, "):
        read_table(tmp_path)


def test_blanks_around_nih_labels_and_ids_are_ignored(tmp_path: Path) -> None:
    write_blank(tmp_path / "images" / "1_0.png")
    write_nih(tmp_path, "1_0.png, Cardiomegaly | Effusion ,1", "1_1.png,No Finding, 1")
    rows = read_table(tmp_path).rows.set_index("key")
    assert rows.loc["1_0", ["Cardiomegaly", "Effusion", "No Finding"]].tolist() == [1, 1, 0]
    assert rows["patient"].tolist() == ["1", "1"] and rows["split"].nunique() == 1


def test_two_tables_of_nih_are_refused(tmp_path: Path) -> None:
    write_nih(tmp_path, "1_0.png,No Finding,1")
    write_nih(tmp_path, "1_0.png,Hernia,1", name="Data_Entry_2017_v2020.csv")
    with pytest.raises(InputError, match=r"contains Data_Entry_2017.csv and Data_Entry_2017_v2020.csv; keep only one"):
        read_table(tmp_path)


def test_official_list_of_other_images_is_refused(tmp_path: Path) -> None:
    write_blank(tmp_path / "images" / "1_0.png")
    write_nih(tmp_path, "1_0.png,No Finding,1")
    (tmp_path / "test_list.txt").write_text("00000099_000.png\n")
    with pytest.raises(InputError, match=r"test_list.txt: lists none of the 1 images of Data_Entry_2017.csv"):
        read_table(tmp_path)
