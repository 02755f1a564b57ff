"""PadChest, VinDr-CXR, RSNA, BRAX, CheXpert Plus, CheXlocalize: tables with the real columns, and their labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shard.errors import InputError
from shard.formats import CHEXPERT_FINDINGS
from shard.formats.votes import vote
from shard.manifest import read_manifest
from shard.table import Table, read_table
from shard.write import build
from tests.odd_files import write_dicom
from tests.tables import notes_of, write_gradient

PADCHEST = (",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
            "Projection,MethodProjection,Pediatric,Modality_DICOM,Report,MethodLabel,Labels,Localizations")  # fmt: skip
VINDR = ("Aortic enlargement", "Atelectasis", "Cardiomegaly", "Lung Opacity", "Nodule/Mass", "Pleural effusion",
         "Other diseases", "No finding")  # fmt: skip
BRAX = ",".join(("DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate",
                 *CHEXPERT_FINDINGS, "ViewPosition", "Rows", "Columns", "Manufacturer"))  # fmt: skip
CHEXPERT_PLUS = ("path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
        "section_impression,age,sex,race,split")  # fmt: skip


def by_key(table: Table) -> pd.DataFrame:
    return table.rows.set_index("key").sort_index()


def write_padchest(
    folder: Path, *labels: str, name: str = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
) -> Path:
    rows = [f'{number},{number:02d}.png,{number % 3},20140915.0,s{number},{900 + number // 2},1954.0,F,POSTEROANTERIOR,'
            f'{("PA", "L", "AP_horizontal", "EXCLUDE")[number % 4]},Manual,No,CR,texto,Physician,"{cell}","[]"'
            for number, cell in enumerate(labels)]  # fmt: skip
    csv = folder / name
    csv.write_text("\n".join([PADCHEST, *rows]) + "\n")
    return csv


def test_padchest_labels_are_those_that_the_report_lists(tmp_path: Path) -> None:
    cells = ["['pleural effusion', ' kyphosis']", "['laminar atelectasis ', 'nan', nan]", "['normal']",
             "['unchanged', 'cardiomegaly']", "nan", "", "['Hydropneumothorax']", "[]"]  # fmt: skip
    write_padchest(tmp_path, *cells)
    for number in range(8):
        write_gradient(tmp_path / (f"{number % 3}" if number % 2 else "flat") / f"{number:02d}.png", number, deep=True)
    table = read_table(tmp_path)
    rows = by_key(table)
    assert table.dataset == "padchest" and {"unchanged", "nan", "pleural effusion"}.isdisjoint(table.findings)
    assert set(table.findings) == {"No Finding", "Cardiomegaly", "Atelectasis", "Pneumothorax", "Pleural Effusion",
                                   "kyphosis", "laminar atelectasis", "hydropneumothorax"}  # fmt: skip
    nan = 9
    names = ["Pleural Effusion", "Atelectasis", "kyphosis", "No Finding", "Cardiomegaly", "Pneumothorax"]
    assert rows[names].fillna(nan).to_numpy().tolist() == [
        [1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [nan, nan, nan, nan, 1, nan], [nan] * 6, [nan] * 6,
        [1, 0, 0, 0, 0, 1], [nan] * 6]  # fmt: skip
    assert rows["patient"].tolist() == ["900", "900", "901", "901", "902", "902", "903", "903"]
    assert rows["age"].tolist() == ["60"] * 8 and rows["sex"].tolist() == ["F"] * 8
    assert rows["view"].tolist()[:3] == ["PA", "lateral", "AP"]
    assert all((tmp_path / path).is_file() for path in rows["path"])
    assert "3 images have no labels" in notes_of(table)


def test_padchest_label_that_is_not_a_list_is_refused(tmp_path: Path) -> None:
    write_padchest(tmp_path, "['normal']", "pneumonia")
    with pytest.raises(InputError, match=r"Labels 'pneumonia' of 01.png is not a list"):
        read_table(tmp_path)


def test_padchest_16_bit_images_become_shards(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_padchest(tmp_path / "src", *["['nodule']", "['normal']"] * 4)
    for number in range(8):
        write_gradient(tmp_path / "src" / f"{number:02d}.png", number, deep=True)
    build(tmp_path / "src", tmp_path / "out", size=32, workers=1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.findings == ("No Finding", "nodule") and sum(manifest.images(s) for s in manifest.counts) == 8


@pytest.mark.parametrize("flag", [True, False])
def test_named_table_is_recognised_by_its_columns(tmp_path: Path, flag: bool) -> None:
    csv = write_padchest(tmp_path, *["['cardiomegaly']"] * 8, name="t.csv")
    for number in range(8):
        write_gradient(tmp_path / f"{number:02d}.png", number)
    table = read_table(tmp_path, table=csv) if flag else read_table(tmp_path, "padchest", csv)
    assert table.dataset == "padchest" and table.findings == ("Cardiomegaly",)


def write_vindr(folder: Path) -> Path:
    """Write four images with three readers each, and a test image with a consensus. Returns the training table."""
    home = folder / "annotations"
    home.mkdir(parents=True)
    read = {"a": ("1000", "1000", "0001"), "b": ("0100", "0001", "0010"), "c": ("0001",) * 3, "d": ("0001",) * 3}
    columns = ["Cardiomegaly", "Pleural effusion", "Other diseases", "No finding"]
    lines = [f"{image},R{reader + 1},{','.join(cells)}" for image, readers in read.items()
             for reader, cells in enumerate(readers)]  # fmt: skip
    (home / "image_labels_train.csv").write_text("\n".join([f"image_id,rad_id,{','.join(columns)}", *lines]) + "\n")
    (home / "image_labels_test.csv").write_text(
        "image_id,Cardiomegaly,Pleural effusion,Other disease,No finding\ne,0,1,0,0\n")
    (home / "annotations_train.csv").write_text("image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n")
    for number, image in enumerate("abcd"):
        write_gradient(folder / f"train/{image}.png", number)
    write_gradient(folder / "test/e.png", 4)
    return home / "image_labels_train.csv"


@pytest.mark.parametrize(
    ("votes", "cardiomegaly", "effusion"),
    [(None, [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]), ("majority", [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]),
     ("any", [1, 0, 0, 0, 0], [0, 1, 0, 0, 1]), ("all", [0, 0, 0, 0, 0], [0, 0, 0, 0, 1])],
)  # fmt: skip
def test_vindr_readers_vote(tmp_path: Path, votes: Any, cardiomegaly: list[int], effusion: list[int]) -> None:
    write_vindr(tmp_path)
    table = read_table(tmp_path, votes=votes)
    rows = by_key(table)
    assert table.dataset == "vindr"
    assert table.findings == ("Cardiomegaly", "Pleural Effusion", "Other diseases", "No Finding")
    assert rows["Cardiomegaly"].tolist() == cardiomegaly and rows["Pleural Effusion"].tolist() == effusion
    assert rows["split"].tolist()[4] == "test" and "test" not in rows["split"].tolist()[:4]
    notes = notes_of(table)
    assert ("4 of 4 images have several rows of labels (3 each): their readers disagree on 5 of 16 labels, of 2 "
            in notes)  # fmt: skip
    assert f"--votes={votes or 'majority'} decides" in notes and "the patient of 5 of 5 images is unknown" in notes


def test_vinbigdata_labels_are_the_classes_of_boxes(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Cardiomegaly,3,R9,1,1,2,2\na,Cardiomegaly,3,R9,3,3,4,4\na,Cardiomegaly,3,R8,1,1,2,2\n"
        "a,No finding,14,R7,,,,\n"
        "b,No finding,14,R9,,,,\nb,No finding,14,R8,,,,\nb,No finding,14,R7,,,,\n")
    for number, image in enumerate("ab"):
        write_gradient(tmp_path / f"train/{image}.png", number)
    table = read_table(tmp_path)
    rows = by_key(table)
    assert table.dataset == "vindr" and rows[["Cardiomegaly", "No Finding"]].to_numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("votes", ["majority", "any", "all"])
def test_vote_equals_a_slow_count(votes: Any) -> None:
    rng = np.random.default_rng(0)
    cells = rng.choice([1, 0, -1, np.nan], (300, 3))
    image = pd.Series(rng.integers(0, 80, 300).astype(str))

    def decide(given: list[float]) -> float:
        if not given:
            return np.nan
        ones, zeros, of = given.count(1), given.count(0), len(given)
        if votes == "majority":
            return 1 if ones > of / 2 else 0 if zeros > of / 2 else -1
        if votes == "any":
            return 1 if ones else 0 if zeros == of else -1
        return 1 if ones == of else 0 if zeros else -1

    voted, notes = vote(pd.DataFrame(cells, columns=list("xyz")), image, votes)
    for name in voted.index:
        for place, finding in enumerate("xyz"):
            given = [cell for cell, of in zip(cells[:, place], image, strict=True) if of == name and not np.isnan(cell)]
            assert np.array_equal(voted.loc[name, finding], decide(given), equal_nan=True), given
    differing = sum(len({cell for cell, of in zip(cells[:, place], image, strict=True) if of == name
                         and not np.isnan(cell)}) > 1 for name in set(image) for place in range(3))  # fmt: skip
    assert f"disagree on {differing} of " in str(notes[0])


def test_votes_flag_combines_rows_of_your_own_table(tmp_path: Path) -> None:
    lines = ["path,patient,split,Cardiomegaly", "a.png,a,train,1", "a.png,a,train,0", "a.png,a,train,1",
             "b.png,b,train,0", "b.png,b,train,1"]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for number, name in enumerate("ab"):
        write_gradient(tmp_path / f"{name}.png", number)
    table = read_table(tmp_path, table=tmp_path / "t.csv", votes="majority")
    assert by_key(table)["Cardiomegaly"].tolist() == [1, -1] and "disagree on 2 of 2 labels" in notes_of(table)
    assert not table.rejects
    with pytest.raises(InputError, match="no row is in split 'train'"):
        read_table(tmp_path, table=tmp_path / "t.csv")


def test_reader_column_makes_rows_votes(tmp_path: Path) -> None:
    lines = ["path,patient,split,rad_id,Cardiomegaly,Edema", "a.png,a,train,R1,1,0", "a.png,a,train,R2,1,-1",
             "a.png,a,train,R3,0,", "b.png,b,train,R1,0,1"]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for number, name in enumerate("ab"):
        write_gradient(tmp_path / f"{name}.png", number)
    table = read_table(tmp_path, table=tmp_path / "t.csv")
    assert table.findings == ("Cardiomegaly", "Edema") and not table.rejects
    assert by_key(table)[["Cardiomegaly", "Edema"]].to_numpy().tolist() == [[1, -1], [0, 1]]
    assert "--votes=majority decides" in notes_of(table)


@pytest.mark.parametrize("archive", ["padchest", "vindr"])
def test_broken_links_are_noted(tmp_path: Path, archive: str) -> None:
    if archive == "padchest":
        write_padchest(tmp_path, *["['nodule']"] * 8)
        write_gradient(tmp_path / "00.png")
    else:
        write_vindr(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert "1 broken link, such as gone.png" in notes_of(read_table(tmp_path))


def write_rsna(folder: Path, *, boxes: bool = True, classes: bool = True) -> None:
    ids = [f"{number:08x}-aaaa" for number in range(8)]
    names = ["Normal", "Lung Opacity", "No Lung Opacity / Not Normal", "Lung Opacity"] * 2
    if boxes:
        lines = ["patientId,x,y,width,height,Target"]
        lines += [f"{one},{'1,2,3,4' if name == 'Lung Opacity' else ',,,'},{int(name == 'Lung Opacity')}"
                  for one, name in zip(ids, names, strict=True) for _ in range(1 + (name == "Lung Opacity"))]
        (folder / "stage_2_train_labels.csv").write_text("\n".join(lines) + "\n")
    if classes:
        lines = [f"{one},{name}" for one, name in zip(ids, names, strict=True) for _ in range(1 + (name[0] == "L"))]
        (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *lines]) + "\n")
    for number, one in enumerate(ids):
        write_gradient(folder / f"stage_2_train_images/{one}.png", number)
    write_gradient(folder / "stage_2_test_images/ffff.png", 9)


@pytest.mark.parametrize(("boxes", "classes"), [(True, True), (True, False), (False, True)])
def test_rsna_findings_are_its_classes(tmp_path: Path, boxes: bool, classes: bool) -> None:
    write_rsna(tmp_path, boxes=boxes, classes=classes)
    table = read_table(tmp_path)
    assert table.dataset == "rsna" and by_key(table)["Lung Opacity"].tolist() == [0, 1, 0, 1] * 2
    assert table.findings == (*(("Normal", "No Lung Opacity / Not Normal") if classes else ()), "Lung Opacity")
    notes = notes_of(table)
    assert len(table.rows) == 8 and "WARNING: each image counts as a separate patient, but some have several" in notes
    assert "1 image is not listed in" in notes


def test_rsna_patients_come_from_the_mappings_file(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    mappings = [{"subset_img_id": f"{number:08x}-aaaa", "img_id": f"{13 + number // 4:08d}_{number:03d}.png"}
                for number in range(8)]  # fmt: skip
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mappings))
    table = read_table(tmp_path)
    assert by_key(table)["patient"].tolist() == ["13"] * 4 + ["14"] * 4 and "WARNING" not in notes_of(table)


def test_rsna_class_that_contradicts_its_target_is_refused(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    csv = tmp_path / "stage_2_detailed_class_info.csv"
    csv.write_text(csv.read_text().replace("Normal", "Lung Opacity", 1))
    with pytest.raises(InputError, match="the class and the Target contradict each other"):
        read_table(tmp_path)


def test_rsna_reads_dicom_tags(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    write_rsna(tmp_path)
    values = np.tile(np.linspace(0, 255, 50).astype(np.uint8), (40, 1))
    for png in (tmp_path / "stage_2_train_images").glob("*.png"):
        write_dicom(png.with_suffix(".dcm"), values, PatientID=png.stem, PatientSex="F", PatientAge="051Y",
                    ViewPosition="AP")  # fmt: skip
        png.unlink()
    rows = by_key(read_table(tmp_path))
    assert set(rows["sex"]) == {"F"} and set(rows["view"]) == {"AP"} and set(rows["age"]) == {"51"}
    assert rows["path"].str.endswith(".dcm").all()


@pytest.mark.parametrize("ending", ["png", "dcm"])
def test_brax_reads_dicom_or_png_whichever_exists(tmp_path: Path, ending: str) -> None:
    lines = []
    for number in range(6):
        stem = f"id_{number // 2}/Study_{number}.1/Series_{number}.2/image-{number}"
        labels = ["", "", ("1", "0", "-1")[number % 3], *[""] * 11]
        lines.append(",".join([f"Anonymized_DICOMs/{stem}.dcm", f"images/{stem}.png", f"{number // 2 + 7}", "M",
                               ("85 or more", "40")[number % 2], "9", "20990101", *labels, ("L", "PA")[number % 2], "1",
                               "1", "2"]))  # fmt: skip
        write_gradient(tmp_path / f"images/{stem}.png", number)
        if ending == "dcm":
            (tmp_path / f"Anonymized_DICOMs/{stem}.dcm").parent.mkdir(parents=True)
            (tmp_path / f"images/{stem}.png").rename(tmp_path / f"Anonymized_DICOMs/{stem}.dcm")
    (tmp_path / "master_spreadsheet_update.csv").write_text("\n".join([BRAX, *lines]) + "\n")
    if ending == "dcm":
        pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    table = read_table(tmp_path)
    rows = table.rows.sort_values("path")
    assert table.dataset == "brax" and table.findings == CHEXPERT_FINDINGS
    assert rows["Cardiomegaly"].tolist() == [1, 0, -1] * 2 and rows["Edema"].isna().all()
    assert rows["patient"].tolist() == ["7", "7", "8", "8", "9", "9"] and rows["age"].tolist() == ["85", "40"] * 3
    assert rows["view"].tolist() == ["lateral", "PA"] * 3
    assert all((tmp_path / path).is_file() and path.endswith(ending) for path in rows["path"])


def write_plus(folder: Path, *, labels: str | None = "chexbert_labels/impression_fixed.json") -> None:
    lines, chexbert = [], []
    for number in range(6):
        patient = f"patient{number // 2:05d}{number // 5}"
        path = f"{'valid' if number > 4 else 'train'}/{patient}/study{number % 2}/view1_frontal"
        lateral = number == 1
        lines.append(f'{path}.jpg,{path}.dcm,{"Lateral" if lateral else "Frontal"},{"" if lateral else "AP"},'
                     f'{patient},1,"two\nlines, and ""quotes""",x,{50 + number}.0,Female,White,{path[:5]}')  # fmt: skip
        chexbert.append(json.dumps({"path_to_image": f"{path}.jpg", "Edema": 0.0,
                                    "Cardiomegaly": (1.0, 0.0, -1.0, None)[number % 4]}))  # fmt: skip
        write_gradient(folder / f"PNG/{path}.png", number)
    (folder / "df_chexpert_plus_240401.csv").write_text("\n".join([CHEXPERT_PLUS, *lines]) + "\n")
    if labels:
        (folder / labels).parent.mkdir(exist_ok=True)
        (folder / labels).write_text("\n".join(chexbert) + "\n")


def test_chexpert_plus_with_chexbert_labels(tmp_path: Path) -> None:
    write_plus(tmp_path)
    (tmp_path / "chexbert_labels/report_fixed.json").write_text("{}")
    table = read_table(tmp_path)
    rows = table.rows.sort_values("age")
    assert table.dataset == "chexpert-plus" and table.findings == ("Cardiomegaly", "Edema")
    assert rows["Cardiomegaly"].fillna(9).tolist() == [1, 0, -1, 9, 1, 0]
    assert rows["split"].tolist() == ["train"] * 5 + ["valid"] and rows["view"].tolist()[:2] == ["AP", "lateral"]
    assert rows["sex"].tolist() == ["F"] * 6 and rows["age"].tolist()[0] == "50"
    assert all((tmp_path / path).is_file() for path in rows["path"])
    assert "labels are those of impression_fixed.json; not read: report_fixed.json" in notes_of(table)


def test_chexpert_plus_without_labels(tmp_path: Path) -> None:
    write_plus(tmp_path, labels=None)
    table = read_table(tmp_path)
    assert table.findings == () and "no labels: none of impression_fixed.json" in notes_of(table)


CHEXLOCALIZE = ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS))


def write_localize(folder: Path, *, tables: tuple[str, ...] = ("val", "test")) -> None:
    for split in tables:
        paths = [f"{split}/patient{number}/study1/view1_frontal.jpg"
                 for number in range(*((64741, 64745) if split == "test" else (64541, 64545)))]
        rows = [f"{path},Male,70,Frontal,AP,{','.join(['0', '0', str(number % 2), *['0'] * 11])}"
                for number, path in enumerate(paths)]  # fmt: skip
        (folder / f"{split}_labels.csv").write_text("\n".join([CHEXLOCALIZE, *rows]) + "\n")
        for number, path in enumerate(paths):
            write_gradient(folder / path, number)


def test_chexlocalize_notes_that_it_has_no_training_images(tmp_path: Path) -> None:
    (tmp_path / "CheXpert").mkdir()
    write_localize(tmp_path / "CheXpert")
    table = read_table(tmp_path)
    rows = table.rows.sort_values("path")
    assert table.dataset == "chexlocalize" and rows["split"].tolist() == ["test"] * 4 + ["train"] * 4
    assert rows["Cardiomegaly"].tolist() == [0, 1] * 4 and rows["patient"].iloc[0] == "patient64741"
    assert "its validation images become split train" in notes_of(table)
    assert all((tmp_path / path).is_file() for path in rows["path"])


def test_labels_of_a_study_apply_to_its_images(tmp_path: Path) -> None:
    """Uses CheXzero's groundtruth.csv."""
    labels = ",".join(["0", "0", "1", *["0"] * 11])
    rows = [f"CheXpert-v1.0/test/patient{64741 + number}/study1,{labels}" for number in range(4)]
    (tmp_path / "groundtruth.csv").write_text("\n".join([f"Study,{','.join(CHEXPERT_FINDINGS)}", *rows]) + "\n")
    for number in range(4):
        for view in ("view1_frontal", "view2_lateral"):
            write_gradient(tmp_path / f"test/patient{64741 + number}/study1/{view}.jpg", number)
    table = read_table(tmp_path)
    assert table.dataset == "chexlocalize" and len(table.rows) == 8 and (table.rows["Cardiomegaly"] == 1).all()
    assert set(table.rows["view"]) == {"frontal", "lateral"}
    assert table.rows.groupby("patient")["split"].nunique().max() == 1


def test_manifest_lists_the_tables_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    csv = write_padchest(tmp_path / "src", *["['nodule']", "['normal']"] * 4)
    for number in range(8):
        write_gradient(tmp_path / "src" / f"{number:02d}.png", number)
    build(tmp_path / "src", tmp_path / "out", size=32, workers=1)
    (table,) = read_manifest(tmp_path / "out").tables
    assert table == {"name": csv.name, "sha256": hashlib.sha256(csv.read_bytes()).hexdigest(), "rows": 8}


def test_chexpert_reads_radiologists_test_labels(tmp_path: Path) -> None:
    write_localize(tmp_path, tables=("test",))
    write_gradient(tmp_path / "train/patient00001/study1/view1_frontal.jpg", 7)
    row = f"CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Male,70,Frontal,AP,{','.join(['-1'] * 14)}"
    (tmp_path / "train.csv").write_text(f"{CHEXLOCALIZE}\n{row}\n")
    (tmp_path / "groundtruth.csv").write_text(f"Study,{','.join(CHEXPERT_FINDINGS)}\n")
    table = read_table(tmp_path)
    assert table.dataset == "chexpert" and table.rows["split"].tolist() == ["train"] + ["test"] * 4
    assert [file["name"] for file in table.tables] == ["train.csv", "test_labels.csv"]
    assert "groundtruth.csv is not read; --dataset=chexlocalize reads it" in notes_of(table)


@pytest.mark.parametrize(
    ("study", "birth", "age"),
    [("20140915", "1954", "60"), ("2014-09-15", "1954-01-02", "60"), ("20140915.0", "19540101", "60"),
     ("2014/9/5", "1954.0", "60"), ("2014-09-15 10:11:12", "1954", "60"), ("", "1954", ""), ("15.9.2014", "1954", ""),
     ("2014", "2020", "")],
)  # fmt: skip
def test_padchest_age_is_the_years_between_two_dates(
    tmp_path: Path, study: str, birth: str, age: str
) -> None:  # fmt: skip
    csv = write_padchest(tmp_path, *["['normal']"] * 8)
    csv.write_text(csv.read_text().replace(",20140915.0,", f",{study},").replace(",1954.0,", f",{birth},"))
    for number in range(8):
        write_gradient(tmp_path / f"{number:02d}.png", number)
    table = read_table(tmp_path)
    assert table.rows["age"].tolist() == [age] * 8
    assert ("age: 8 of 8 cells not understood" in notes_of(table)) == (age == "" and study != "")


def test_vindr_tables_share_findings_in_any_spelling(tmp_path: Path) -> None:
    csv = write_vindr(tmp_path).with_name("image_labels_test.csv")
    csv.write_text("image_id,cardiomegaly,Pleural_effusion,Other disease,No Finding\ne,1,1,0,0\n")
    table = read_table(tmp_path)
    assert table.findings == ("Cardiomegaly", "Pleural Effusion", "Other diseases", "No Finding")
    assert by_key(table)[list(table.findings)].loc["e"].tolist() == [1, 1, 0, 0]


def test_vinbigdata_classes_may_differ_in_spelling(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,rad_id\na,Cardiomegaly,R1\na,cardiomegaly ,R2\na,No finding,R3\nb,No finding,R1\n")
    for number, image in enumerate("ab"):
        write_gradient(tmp_path / f"{image}.png", number)
    table = read_table(tmp_path)
    assert table.findings == ("Cardiomegaly", "No Finding") and by_key(table)["Cardiomegaly"].tolist() == [1, 0]


def test_vindr_reader_has_one_vote(tmp_path: Path) -> None:
    csv = write_vindr(tmp_path)
    once = read_table(tmp_path).rows
    csv.write_text(csv.read_text() + "a,R1 ,1,0,0,0.0\n")
    pd.testing.assert_frame_equal(read_table(tmp_path).rows, once)
    csv.write_text(csv.read_text() + "a,R3,1,0,0,0\n")
    with pytest.raises(InputError, match="two rows of reader R3 for a contradict each other"):
        read_table(tmp_path)


@pytest.mark.parametrize("dataset", ["csv", "folder"])
def test_reader_of_your_own_table_has_one_vote(tmp_path: Path, dataset: Any) -> None:
    votes = [("a", "R1", 1), ("a", " R1", "1.0"), ("a", "R2", 0), ("b", "R1", 1), ("b", "R2", 1), ("b", "R3", 0),
             ("c", "R1", 0)]  # fmt: skip
    (tmp_path / "t.csv").write_text("path,patient,split,reader,age,Edema\n" + "".join(
        f"{image}.png,{image},train,{reader},{'57' if label else '57.0'},{label}\n" for image, reader, label in votes))
    for number, name in enumerate("abc"):
        write_gradient(tmp_path / f"{name}.png", number)
    table = read_table(tmp_path, dataset, tmp_path / "t.csv")
    assert by_key(table)["Edema"].tolist() == [-1, 1, 0] and not table.rejects
    assert by_key(table)["age"].tolist() == ["57"] * 3
    assert "t.csv: 1 row repeats a row of the same reader and is skipped" in notes_of(table)


def test_images_missing_from_one_rsna_table_are_kept_and_noted(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    boxes, classes = (tmp_path / f"stage_2_{name}.csv" for name in ("train_labels", "detailed_class_info"))
    classes.write_text("".join(line for line in classes.open() if "00000001-" not in line and "00000002-" not in line))
    boxes.write_text("".join(line for line in boxes.open() if "00000007-" not in line))
    table = read_table(tmp_path)
    rows = by_key(table)
    assert rows["Lung Opacity"].tolist() == [0, 1, 0, 1] * 2
    assert rows["Normal"].fillna(9).tolist() == [1, 9, 9, 0, 1, 0, 0, 0]
    assert f"{classes.name}: no row for 2 of 7 images of {boxes.name}, such as 00000001-aaaa" in notes_of(table)
    assert f"{boxes.name}: no row for 1 of 6 images of {classes.name}, such as 00000007-aaaa" in notes_of(table)
    classes.write_text("".join(classes.open().readlines()[:3]))
    with pytest.raises(InputError, match=r"detailed_class_info.csv: no row for \d of 7 images of stage_2_train_labels"):
        read_table(tmp_path)


def test_chexpert_plus_labels_have_second_names(tmp_path: Path) -> None:
    write_plus(tmp_path)
    file = tmp_path / "chexbert_labels/impression_fixed.json"
    file.write_text(file.read_text().replace('"Edema"', '"Airspace_opacity"').replace("null", "NaN"))
    table = read_table(tmp_path)
    assert table.findings == ("Cardiomegaly", "Lung Opacity") and (table.rows["Lung Opacity"] == 0).all()
    assert table.rows.sort_values("age")["Cardiomegaly"].fillna(9).tolist() == [1, 0, -1, 9, 1, 0]
    assert "impression_fixed.json: 12 expected findings not found: No Finding" in notes_of(table)
    lines = file.read_text()
    file.write_text(lines.replace("-1.0", '"maybe"'))
    with pytest.raises(InputError, match="label 'maybe' of "):
        read_table(tmp_path)
    file.write_text(lines + lines.splitlines()[0].replace("1.0", "0.0") + "\n")
    with pytest.raises(InputError, match=r"two lines for .*/view1_frontal contradict each other"):
        read_table(tmp_path)


def test_images_of_the_other_chexlocalize_table_are_not_unlisted(tmp_path: Path) -> None:
    write_localize(tmp_path)
    write_gradient(tmp_path / "test/patient1/study1/view1_frontal.jpg")
    notes = notes_of(read_table(tmp_path))
    assert notes.count("1 image is not listed in") == 2 and notes.count("patient1/study1/view1_frontal.jpg") == 2


def test_missing_columns_are_noted(tmp_path: Path) -> None:
    write_padchest(tmp_path, *["['normal']"] * 8)
    for number in range(8):
        write_gradient(tmp_path / f"{number:02d}.png", number)
    assert "expected column" not in notes_of(read_table(tmp_path))
    csv = write_padchest(tmp_path, *["['normal']"] * 8)
    csv.write_text(csv.read_text().replace("PatientSex_DICOM", "Patient_Sex").replace("PatientBirth", "Born"))
    table = read_table(tmp_path)
    assert f"{csv.name}: 1 expected column not found: PatientBirth" in notes_of(table)
    assert set(table.rows["sex"]) == {"F"}


def test_chexpert_plus_splits_are_case_insensitive(tmp_path: Path) -> None:
    write_plus(tmp_path)
    csv = tmp_path / "df_chexpert_plus_240401.csv"
    csv.write_text(csv.read_text().replace("White,train", "White,TRAIN").replace(",sex,", ",of,"))
    table = read_table(tmp_path)
    assert set(table.rows["split"]) == {"train", "valid"}
    assert f"{csv.name}: 1 expected column not found: sex" in notes_of(table)


def test_readers_without_findings_do_not_vote(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient,split,reader,Odd\na.png,a,train,x,yes\na.png,a,train,y,no\n")
    write_gradient(tmp_path / "a.png")
    table = read_table(tmp_path, table=tmp_path / "t.csv")
    assert table.findings == () and len(table.rows) == 1 and not table.rejects
    assert "cells other than 1, 0, -1 and blank (2): reader, Odd" in notes_of(table)
