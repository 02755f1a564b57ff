"""--dataset=folder: which files are images, which patients they belong to, and the notes about other files."""

from __future__ import annotations

import json
import os
import re
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shard.errors import InputError
from shard.manifest import read_manifest
from shard.table import Table, read_table
from shard.write import build
from tests.odd_files import write_dicom
from tests.tables import notes_of, write_gradient

VALUES = np.tile(np.linspace(0, 4000, 60).astype(np.uint16), (50, 1))


def scan(folder: Path, *flags: str, **options: str) -> Table:
    return read_table(folder, dataset="folder", workers=1, **options)  # type: ignore[arg-type]


def by_path(table: Table, *columns: str) -> dict[str, object]:
    rows = table.rows.set_index("path")
    return {path: tuple(rows.loc[path, list(columns)]) if len(columns) > 1 else rows.loc[path, columns[0]]
            for path in rows.index}  # fmt: skip


def write_dcm(path: Path, **tags: object) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, VALUES, **tags)


@pytest.mark.filterwarnings("ignore:Invalid value")  # the tags are invalid on purpose
def test_patient_and_demographics_come_from_dicom_tags(tmp_path: Path) -> None:
    write_dcm(tmp_path / "a/IM1", PatientID=" p1 ", PatientSex="F", PatientAge="045Y", StudyDate="20190304",
              Modality="DX", ViewPosition="PA")  # fmt: skip
    write_dcm(tmp_path / "a/IM2.dcm", PatientID="p1", PatientSex="O", PatientBirthDate="19500601",
              StudyDate="2019.05.31")  # fmt: skip
    write_dcm(tmp_path / "b/1.2.3", PatientID="p2", PatientAge="", StudyDate="20190230", PatientBirthDate="x")
    rows = scan(tmp_path).rows.set_index("path").sort_index()
    assert rows.index.tolist() == ["a/IM1", "a/IM2.dcm", "b/1.2.3"]
    assert rows["patient"].tolist() == ["p1", "p1", "p2"] and rows["split"].iloc[0] == rows["split"].iloc[1]
    assert rows["age"].tolist() == ["45", "68", ""] and rows["sex"].tolist() == ["F", "", ""]
    assert rows["date"].tolist() == ["2019-03-04", "2019-05-31", ""] and rows["view"].tolist() == ["PA", "", ""]


def test_view_comes_from_the_view_code(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    for name, meaning in (("a", "postero-anterior"), ("b", "left lateral"), ("c", "from below"), ("d", None)):
        code = pydicom.Dataset()
        if meaning:
            code.CodeMeaning = meaning
        write_dcm(tmp_path / name, PatientID="p2", ViewCodeSequence=[code])
    assert by_path(scan(tmp_path), "view") == {"a": "PA", "b": "lateral", "c": "", "d": ""}


@pytest.mark.parametrize("number", ["", " ", "Anonymous", "ANON", "0000", "unknown", "N/A"])
def test_placeholder_patient_ids_are_ignored(tmp_path: Path, number: str) -> None:
    """Otherwise all images of such an archive would be one patient's, in one split."""
    for name in "abcd":
        write_dcm(tmp_path / name, PatientID=number, StudyInstanceUID=f"1.2.{name in 'ab':d}")
    table = scan(tmp_path)
    assert by_path(table, "patient") == {"a": "1.2.1", "b": "1.2.1", "c": "1.2.0", "d": "1.2.0"}
    assert "4 DICOM files name no patient: each study counts as a separate patient" in notes_of(table)


def test_patient_ids_of_tags_and_paths_are_normalised(tmp_path: Path) -> None:
    write_dcm(tmp_path / "IM1", PatientID="1.0")
    write_gradient(tmp_path / "1/a.png")
    write_gradient(tmp_path / "007/b.png", 1)
    write_gradient(tmp_path / "7/c.png", 2)
    table = scan(tmp_path, patient_from="parent")
    assert by_path(table, "patient") == {"IM1": "1", "1/a.png": "1", "007/b.png": "007", "7/c.png": "7"}
    assert "1 row has a patient that is normalised" in notes_of(table)


def test_patient_in_the_path_has_precedence_over_the_study(tmp_path: Path) -> None:
    for study in "12":
        write_dcm(tmp_path / f"p2/s{study}/IM1", PatientID="", StudyInstanceUID=f"1.2.{study}")
    assert set(by_path(scan(tmp_path, patient_from="(p.)/"), "patient").values()) == {"p2"}


def test_images_of_unknown_patients_count_as_separate_patients_with_a_warning(tmp_path: Path) -> None:
    for number in range(8):
        write_gradient(tmp_path / f"{number}.png", number)
    table = scan(tmp_path)
    assert by_path(table, "patient") == {f"{number}.png": f"{number}.png" for number in range(8)}
    assert str(table.notes[0]).startswith("WARNING: the patient of 8 of 8 images is unknown")  # warnings come first
    assert "--patient-from=parent" in notes_of(table)
    assert table.findings == ()


@pytest.mark.parametrize(
    ("flag", "patients"),
    [("parent", ["s1", "s2", "s1"]), (r"^(\w+)/", ["p1", "p1", "p2"]), (r"(?:^|/)(p\d)/", ["p1", "p1", "p2"])],
)
def test_patient_from_finds_patients_in_paths(tmp_path: Path, flag: str, patients: list[str]) -> None:
    paths = ["p1/s1/a.png", "p1/s2/a.jpg", "p2/s1/a.tif"]
    for number, path in enumerate(paths):
        write_gradient(tmp_path / path, number)
    write_gradient(tmp_path / "alone.png")
    write_dcm(tmp_path / "p9/s9/a.dcm", PatientID="named")
    table = scan(tmp_path, patient_from=flag)
    found = by_path(table, "patient")
    assert [found[path] for path in paths] == patients
    assert (found["alone.png"], found["p9/s9/a.dcm"]) == ("alone.png", "named")
    assert "the patient of 1 of 5 images is unknown: each counts as a separate patient" in notes_of(table)
    assert f"--patient-from={flag} does not match them, such as alone.png" in notes_of(table)
    assert ("1 names of parent folders occur in several places" in notes_of(table)) == (flag == "parent")


@pytest.mark.parametrize(
    ("flag", "message"),
    [("(", "not a regular expression"), (r"\w+", "has 0 groups, requires one"),
     ("(a)(b)", "has 2 groups, requires one"), ("(zzz)", "finds no patient in any of 1 paths, such as 'p1/a.png'")],
)  # fmt: skip
def test_invalid_patient_from_is_refused(tmp_path: Path, flag: str, message: str) -> None:
    write_gradient(tmp_path / "p1/a.png")
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        scan(tmp_path, patient_from=flag)


def test_files_that_are_not_images_are_counted_and_noted(tmp_path: Path) -> None:
    for number in range(6):
        write_gradient(tmp_path / f"{number}.png", number)
    write_dcm(tmp_path / "IM1", PatientID="p2", Modality="CT", BodyPartExamined="HAND")
    for name in (".DS_Store", "._0.png", ".git/a.png", "@eaDir/0.png/THUMB.jpg", "__MACOSX/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "report.PDF").write_bytes(b"%PDF-1.4")
    (tmp_path / "no-ending").write_bytes(bytes(200))
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    os.mkdir(os.fsencode(tmp_path) + b"/M\xfcller")  # noqa: PTH102
    table = scan(tmp_path)
    assert set(by_path(table, "key")) == {*(f"{number}.png" for number in range(6)), "IM1", "empty.jpg"}
    for line in ("8 images found, 1 of them DICOM", "5 hidden or system files and folders, such as ",
                 "1 file that is not an image (.txt), such as notes.txt", "(.pdf), such as report.PDF",
                 "1 file that is not an image (no suffix), such as no-ending", "2 pipes, sockets and devices, such as ",
                 r"1 name that is not UTF-8 (rename it), such as 'M\udcfcller'",
                 "1 file of modality CT, not a radiograph's; read anyway, such as IM1",
                 "1 file of body part HAND; read anyway, such as IM1"):  # fmt: skip
        assert line in notes_of(table)


def test_dicom_files_without_an_image_are_noted(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    write_dcm(tmp_path / "IM1", PatientID="p2")
    for name, kind, tags in (("DICOMDIR", "1.2.840.10008.1.3.10", {}), ("report", "1.2.840.10008.5.1.4.1.1.88.11",
                             {"Modality": "SR", "PatientID": "p2"})):  # fmt: skip
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = kind, "1.2.3"
        if name != "DICOMDIR":  # its class is in the file meta alone
            data.SOPClassUID = kind
        for tag, value in tags.items():
            setattr(data, tag, value)
        data.save_as(tmp_path / name, enforce_file_format=True)
    (tmp_path / "index").write_bytes((tmp_path / "DICOMDIR").read_bytes())  # one recognised by content, one by name
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    table = scan(tmp_path)
    assert by_path(table, "patient") == {"IM1": "p2"}
    assert "2 DICOM files without an image (DICOMDIR), such as " in notes_of(table)
    assert "1 DICOM file without an image (SR), such as report" in notes_of(table)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", ["IM1.dcm", "IM1"])
def test_dicom_without_a_preamble_is_recognised(tmp_path: Path, name: str, implicit: bool) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install '.[dicom]'")
    write_dcm(tmp_path / name, PatientID="p2")
    data = pydicom.dcmread(tmp_path / name)
    del data.file_meta
    data.preamble = None
    data.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert (tmp_path / name).read_bytes()[:2] == b"\x08\0"
    assert by_path(scan(tmp_path), "patient") == {name: "p2"}


def test_damaged_dicom_file_raises_no_error(tmp_path: Path) -> None:
    write_dcm(tmp_path / "good.dcm", PatientID="p2")
    intact = (tmp_path / "good.dcm").read_bytes()
    for name, content in (("empty.dcm", b""), ("truncated.dcm", intact[:200]), ("noise.dcm", bytes(range(256)) * 4)):
        (tmp_path / name).write_bytes(content)
    table = scan(tmp_path)
    assert by_path(table, "patient")["good.dcm"] == "p2" and "WARNING" in notes_of(table)
    assert len(table.rows) + notes_of(table).count("without an image") >= 2


def test_links_are_followed_once_and_loops_are_not_entered(tmp_path: Path) -> None:
    src, outside = tmp_path / "src", tmp_path / "outside"
    write_gradient(src / "p1/a.png")
    write_gradient(outside / "p2/b.png")
    write_gradient(tmp_path / "c.png")
    write_gradient(src / ".store/d.png")
    for link, target in (("loop", src), ("up", tmp_path), ("p1/self", src / "p1/self"), ("twice", src / "p1"),
                         ("far", outside), ("far-again", outside), ("within-far", outside / "p2"),
                         ("c.png", tmp_path / "c.png"), ("c-again.png", tmp_path / "c.png"), ("d.png", ".store/d.png"),
                         ("a.png", src / "p1/a.png"), ("gone.png", src / "gone")):  # fmt: skip
        (src / link).symlink_to(target)
    table = scan(src)
    assert sorted(by_path(table, "key")) == ["c-again.png", "d.png", "far/p2/b.png", "p1/a.png"]
    for line in ("5 links to folders that are already read or that contain SRC", "2 broken links, such as ",
                 "2 links to files that are already read, such as a.png"):  # fmt: skip
        assert line in notes_of(table)


def test_unreadable_folders_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gradient(tmp_path / "a.png")
    write_gradient(tmp_path / "closed/b.png")
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    table = scan(tmp_path)
    assert list(by_path(table, "key")) == ["a.png"]
    assert "1 folder that can't be read, such as closed/ (Permission denied)" in notes_of(table)


@pytest.mark.parametrize("file", [None, "a.txt"])
def test_folder_without_images_is_refused(tmp_path: Path, file: str | None) -> None:
    if file:
        (tmp_path / file).write_text("x")
    message = "1 file that is not an image .*a.txt" if file else "it is empty"
    with pytest.raises(InputError, match=f"contains no images .{message}"):
        scan(tmp_path)


def test_paths_with_equal_keys_get_unique_keys(tmp_path: Path) -> None:
    for path in ("a/b.png", "a_b.png", "c.png", "c.jpg", "d.png"):
        write_gradient(tmp_path / path)
    keys = by_path(scan(tmp_path), "key")
    assert len(set(keys.values())) == 5 and keys["d.png"] == "d"
    assert all(str(key).startswith(("a_b", "c_")) for path, key in keys.items() if path != "d.png")


@pytest.mark.parametrize(
    ("column", "names"),
    [("path", ["p1/a.png", "./p1/b.png", "{src}/p2/c.png", "gone.png"]), ("Path", ["p1/a", "p1\\b.png", "p2/c", "x"]),
     ("key", ["p1_a", "p1/b", "c", "x"]), ("key", ["a", "b.png", "p2_c", "x"])],
)  # fmt: skip
def test_table_labels_some_images(tmp_path: Path, column: str, names: list[str]) -> None:
    for number, path in enumerate(("p1/a.png", "p1/b.png", "p2/c.png", "p2/d.png", "p3/e.png")):
        write_gradient(tmp_path / path, number)
    lines = [f"{name.replace('{src}', str(tmp_path))},{label}" for name, label in
             zip(names, ("1,,F", "0,train,", "-1,test,", ",,"), strict=True)]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join([f"{column},Mass,split,sex", *lines]) + "\n")
    table = scan(tmp_path, patient_from="parent", table=tmp_path / "t.csv")
    rows = table.rows.set_index("path").sort_index()
    assert rows["Mass"].fillna(9).tolist() == [1, 0, -1, 9, 9] and table.findings == ("Mass",)
    # By the hash, p1 would be in split test and p2 in train.
    assert rows["split"].tolist()[:4] == ["train", "train", "test", "test"] and rows["sex"].iloc[0] == "F"
    notes = notes_of(table)
    assert "3 of 5 images have a row in t.csv" in notes and "1 of 4 rows of t.csv match no image" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,Mass\nx.png,1\ny.png,1\na.png,1\n", "2 of 3 rows match no image under .*'x.png' .an image there: 'a.png'"),
     ("image,Mass\na.png,1\n", "neither a column path nor a column key")],
)  # fmt: skip
def test_table_that_matches_no_image_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_gradient(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        scan(tmp_path, table=tmp_path / "t.csv")


def test_contradicting_rows_of_an_image_are_rejected(tmp_path: Path) -> None:
    for number, name in enumerate("abcdefgh"):
        write_gradient(tmp_path / f"{name}.png", number)
    (tmp_path / "t.csv").write_text("path,Mass\na.png,1\na.png,0\nb.png,1\nb.png,1\n")
    table = scan(tmp_path, table=tmp_path / "t.csv")
    reasons = [reason for _, _, reason in table.rejects]
    assert reasons == ["2 rows have this key and differ in Mass"] * 2
    assert "1 image has several rows that differ in their labels alone" in notes_of(table)
    assert by_path(table, "Mass")["b.png"] == 1 and len(table.rows) == 7


def read_members(out: Path) -> dict[str, dict[str, object]]:
    found = {}
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    file = archive.extractfile(member)
                    assert file
                    found[member.name.removesuffix(".json")] = json.load(file)
    return found


def test_build_of_a_folder_with_and_without_deidentification(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(7):
        write_dcm(tmp_path / f"src/Doe^{number}/IM1", PatientID=f"MRN{number}", StudyDate="20190304", PatientAge="095Y")
    write_gradient(tmp_path / "src/Doe^1/scan.png")
    build(tmp_path / "src", tmp_path / "out", dataset="folder", size=32, workers=1, patient_from="(Doe.[0-9])")
    printed = capsys.readouterr().out
    assert "8 images found, 7 of them DICOM" in printed and "1 image has its patient from the path" in printed
    found = read_members(tmp_path / "out")
    assert len(found) == 8 and {one["date"] for one in found.values() if "date" in one} == {"2019-03-04"}
    assert all(one["labels"] == {} for one in found.values())
    assert read_manifest(tmp_path / "out").settings["dataset"] == "folder"
    build(tmp_path / "src", tmp_path / "hidden", dataset="folder", size=32, workers=1, patient_from="(Doe.[0-9])",
          deidentify=tmp_path / "secret")  # fmt: skip
    hidden = read_members(tmp_path / "hidden")
    assert len(hidden) == 8 and not any("date" in one for one in hidden.values())
    assert {one["age"] for one in hidden.values()} == {90, None}
    for file in (tmp_path / "hidden").iterdir():
        assert b"Doe" not in file.read_bytes() and b"MRN" not in file.read_bytes(), file.name


def test_long_scan_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        write_gradient(tmp_path / f"{number}.png", number)
    monkeypatch.setattr("shard.progress.QUIET_S", 0.0)  # show progress at once
    scan(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"looking for files: 6 files, \d+/s", line) for line in lines)
    assert any(re.fullmatch(r"scanning: 6 of 6 files, \d+/s, 00:00 left", line) for line in lines)


def test_scan_does_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        write_gradient(tmp_path / f"src/p{number}/{number}.png", number)
    monkeypatch.setattr("shard.formats.scan.FILES_A_JOB", 5)
    one, two = (read_table(tmp_path / "src", dataset="folder", workers=workers, patient_from="parent")
                for workers in (1, 2))  # fmt: skip
    assert one.rows.equals(two.rows) and one.notes == two.notes and len(one.rows) == 12


def test_patient_from_requires_dataset_folder(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient\na.png,1\n")
    with pytest.raises(InputError, match="--patient-from=parent: only applies to --dataset=folder, not to csv"):
        read_table(tmp_path, table=tmp_path / "t.csv", patient_from="parent")
