"""Normalised ids and paths: a patient has one id and a file one path, however tables write them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from packaging.version import Version

from shard.errors import InputError
from shard.formats import hashed_splits
from shard.info import info
from shard.paths import normalise_path, normalise_paths
from shard.table import read_table
from shard.tabular.ids import normalise_id, normalise_ids
from shard.write import build
from tests.tables import write_blank, write_table

SAME = [
    ("1", "1.0"), ("1", "1."), ("12", "12,00"), ("-3", "-3.0"), ("P7", "P7\u200b"), ("P7", "\ufeffP7"),
    ("Jos\u00e9", "Jose\u0301"), ("Jos\u00e9", "Jose\u200d\u0301"), ("1", " 1"), ("1", "1\u00a0"),
    ("A B", "A\u00a0 B"), ("P7", "P\u00ad7"), ("P7", "\uff30\uff17"), ("A-1", "A\u20111"), ("A-1", "A\u20131"),
    ("1234", "1,234"), ("59000001", "59,000,001.0"), ("19000000", "1.9E+07"), ("59000001", "5.9000001e+07"),
    ("P7", "'P7'"), ("007", "'007'"),
    ("O'Brien", "O\u2019Brien"), ("P7", "P7\ufe0f"), ("1", "\u200e1.0\u200f"), ("A B", "A\tB"),
    pytest.param("P7", "P7\x00", marks=pytest.mark.skipif(
        Version(pd.__version__) < Version("3.1"), reason="pandas before 3.1 removes NULs itself, without a note")),
]  # fmt: skip
APART = [
    ("007", "7"), ("007", "07"), ("1", "1.5"), ("10", "1.0"), ("P7", "p7"), ("P7", "P 7"), ("1.0.0", "1"),
    ("a.0", "a"), ("1e5", "100000"), ("+1", "1"), ("1.25E+1", "12"), ("1234,567", "1234567"), ("012,345", "12345"),
    ("é", "e"), ("0", ""),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME, ids=ascii)
def test_spellings_of_an_id_are_one_patient(tmp_path: Path, one: str, other: str) -> None:
    table = write_table(tmp_path, f'path,patient,split,Mass\na.png,"{one}",train,1\nb.png,"{other}",test,0\n')
    with pytest.raises(InputError, match=r"is in more than one split, test and train \(1 such patient"):
        read_table(tmp_path, table=table)
    assert normalise_id(one) == one and normalise_id(other) == one
    table.write_text(f'path,patient,Mass\na.png,"{one}",1\nb.png,"{other}",0\nc.png,q,1\nd.png,k,1\n')
    read = read_table(tmp_path, table=table)
    assert read.rows["patient"].tolist()[:2] == [one, one] and read.rows["split"].iloc[:2].nunique() == 1
    (note,) = [note for note in read.notes if "patient" in note.text]
    assert note.text == "table.csv: 1 row has a patient that is normalised, which makes 1 of them equal to another"
    assert note.example == f"{other!a} as {one!a}"
    assert hashed_splits(pd.Series([one])).tolist() == hashed_splits(pd.Series([other])).tolist()


@pytest.mark.parametrize(("one", "other"), APART, ids=ascii)
def test_different_ids_stay_apart(one: str, other: str) -> None:
    assert normalise_id(one) == one and normalise_id(one) != normalise_id(other)


def test_leak_error_shows_normalised_ids(tmp_path: Path) -> None:
    table = write_table(tmp_path, "path,patient,split,Mass\na.png,1,train,1\nb.png,1.0,test,0\n")
    with pytest.raises(InputError, match=r"patient '1' is in more than .* ids are normalised, '1.0' as '1'"):
        read_table(tmp_path, table=table)


def test_outer_blanks_are_noted_only_if_ids_become_equal() -> None:
    ids, notes = normalise_ids(pd.Series([" 1", " 2"], dtype="str"), "patient")
    assert ids.tolist() == ["1", "2"] and notes == []
    ids, notes = normalise_ids(pd.Series([" 1", "1", " 2"], dtype="str"), "patient")
    assert ids.tolist() == ["1", "1", "2"] and notes[0].text.startswith("1 row") and notes[0].example == "' 1' as '1'"


def test_manifest_notes_ids_unless_deidentified(
    tmp_path: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, image in zip("ab", radiographs.rglob("*.jpg"), strict=False):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{name}.jpg").write_bytes(image.read_bytes())
    table = tmp_path / "t.csv"
    table.write_text("path,patient,split,Mass\na.jpg,4711,train,1\nb.jpg,4711.0,train,0\n")
    fact = "t.csv: 1 row has a patient that is normalised, which makes 1 of them equal to another"
    build(tmp_path / "src", tmp_path / "open", table=table, workers=1, size=64)
    notes = json.loads((tmp_path / "open" / "manifest.json").read_text())["notes"]
    printed = capsys.readouterr().out
    info(tmp_path / "open")
    assert f"note: {fact}, such as '4711.0' as '4711'\n" in capsys.readouterr().out
    assert f"{fact}, such as '4711.0' as '4711'" in notes
    assert f"{table}: {fact}, such as '4711.0' as '4711'\n" in printed
    with tarfile.open(tmp_path / "open" / "train-000000.tar") as tar:
        patients = {json.loads(tar.extractfile(name).read())["patient"] for name in ("a.json", "b.json")}  # type: ignore[union-attr]
    assert patients == {"4711"}
    build(tmp_path / "src", tmp_path / "hidden", table=table, workers=1, size=64, deidentify=tmp_path / "secret")
    text = (tmp_path / "hidden" / "manifest.json").read_text()
    assert fact in json.loads(text)["notes"] and "4711" not in text and "4711" not in capsys.readouterr().out


@pytest.mark.parametrize(("spelling", "path"), [
    ("a//b.png", "a/b.png"), ("./a/b.png", "a/b.png"), (r"a\b.png", "a/b.png"), ("a/./b.png", "a/b.png"),
    (r".\a\\b.png", "a/b.png"), ("a/.b.png", "a/.b.png"), ("a./b..png", "a./b..png"), (".", "."), ("//a", "/a"),
])  # fmt: skip
def test_normalise_path(spelling: str, path: str) -> None:
    assert normalise_path(spelling) == path


@pytest.mark.parametrize("spelling", ["a//b.png", "./a/b.png", r"a\b.png", "a/./b.png", " a/b.png ", "\ufeffa/b.png"])
def test_spellings_of_a_path_are_one_file(tmp_path: Path, spelling: str) -> None:
    text = f"path,patient,split,Mass\na/b.png,p,train,1\n{spelling},{{}},{{}},{{}}\nc.png,r,train,1\n"
    table = write_table(tmp_path, text.format("p", "train", 1), "a/b.png", "c.png")
    read = read_table(tmp_path, table=table)
    assert read.rows["path"].tolist() == ["a/b.png", "c.png"]
    assert read.rejects == (("a_b", "a/b.png", "repeats an earlier row"),)
    assert any("path that is normalised" in note.text for note in read.notes) == (spelling.strip(" \ufeff") == spelling)
    table.write_text(text.format("p", "test", 1))
    with pytest.raises(InputError, match="patient 'p' is in more than one split"):
        read_table(tmp_path, table=table)
    table.write_text(text.format("q", "test", 1))
    read = read_table(tmp_path, table=table)
    assert read.rejects == (("a_b", "a/b.png", "2 rows have this key and differ in patient, split"),) * 2


def test_file_of_two_patients_is_rejected(tmp_path: Path) -> None:
    text = "path,key,patient,split,Mass\na.png,one,p,train,1\n./a.png,two,q,test,1\nb.png,three,r,train,1\n"
    read = read_table(tmp_path, table=write_table(tmp_path, text))
    assert read.rows["key"].tolist() == ["three"]
    reason = "2 rows have this file and differ in patient"
    assert read.rejects == (("one", "a.png", reason), ("two", "a.png", reason))


def test_backslash_in_a_file_name_stays(tmp_path: Path) -> None:
    for name in ("a\\b.png", "c.png"):
        write_blank(tmp_path / name)
    paths, notes = normalise_paths(pd.Series(["a\\b.png", "c.png"], dtype="str"), tmp_path)
    assert paths.tolist() == ["a\\b.png", "c.png"] and notes == []


def test_case_of_paths_follows_the_file_system(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        write_blank(tmp_path / name)
    both = pd.Series(["a.png", "A.png"], dtype="str")
    folds = (tmp_path / "a.png").samefile(tmp_path / "A.png")
    assert normalise_paths(both, tmp_path)[0].nunique() == (1 if folds else 2)
    (tmp_path / "A.png").unlink(missing_ok=True)
    write_blank(tmp_path / "a.png")
    (tmp_path / "A.png").hardlink_to(tmp_path / "a.png")  # as on a file system that ignores case
    paths, notes = normalise_paths(both, tmp_path)
    assert paths.tolist() == ["A.png", "A.png"] and notes[0].example == "'a.png' as 'A.png'"


def test_indirect_paths_to_a_file_are_merged(tmp_path: Path) -> None:
    write_blank(tmp_path / "a" / "b.png")
    spellings = ["a/b.png", "a/../a/b.png", str(tmp_path / "a" / "b.png")]
    paths, _ = normalise_paths(pd.Series(spellings, dtype="str"), tmp_path)
    assert paths.tolist() == ["a/b.png"] * 3


def test_file_name_in_another_unicode_form_is_found(tmp_path: Path) -> None:
    table = write_table(tmp_path, "path,patient,split,Mass\nJos\u00e9.png,p,train,1\n", "Jose\u0301.png")
    if (tmp_path / "Jos\u00e9.png").exists():
        pytest.skip("the file system normalises names itself")
    read = read_table(tmp_path, table=table)
    assert read.rows["path"].tolist() == ["Jose\u0301.png"]
