"""Text files: detected encodings and separators, and encodings that are refused."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest

from shard.deidentify import read_secret
from shard.errors import InputError
from shard.tabular.csv_file import read_csv
from shard.tabular.dialect import read_header
from shard.tabular.text_file import detect_encoding, read_lines

TABLE = "path,patient,Größe,Edema\na.png,José,1,1\nb.png,Müller,2,0\n"


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize(("encoding", "mark"), [
    ("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-8", codecs.BOM_UTF8 * 2), ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE), ("utf-16-le", b""), ("utf-16-be", b""), ("utf-32-le", codecs.BOM_UTF32_LE),
    ("latin-1", b""), ("cp1252", b""),
])  # fmt: skip
def test_read_csv_detects_the_encoding(tmp_path: Path, encoding: str, mark: bytes, gzipped: bool) -> None:
    content = mark + TABLE.encode(encoding)
    file = tmp_path / "t.csv"  # the name does not show that it is gzipped
    file.write_bytes(gzip.compress(content) if gzipped else content)
    frame, notes = read_csv(file, ("path", "patient"))
    assert frame.columns.tolist() == ["path", "patient", "Größe", "Edema"]
    assert frame["patient"].tolist() == ["José", "Müller"] and frame["Edema"].tolist() == ["1", "0"]
    assert (not notes) == (encoding == "utf-8")
    assert read_header(file)[0].strip("\ufeff") == "path"


@pytest.mark.parametrize(("content", "message"), [
    ("path,patient\na.png,Иванов\n".encode("cp1251"), "neither UTF-8 nor UTF-16 nor clearly Latin-1"),
    ("path,patient\na.png,Παπάς\n".encode("cp1253"), "neither UTF-8 nor UTF-16 nor clearly Latin-1"),
    ("path,patient\na.png,山田\n".encode("shift-jis"), "neither UTF-8 nor UTF-16 nor clearly Latin-1"),
    ("path,patient\na.png,男\n".encode("gbk"), "neither UTF-8 nor UTF-16 nor clearly Latin-1"),
    ("path,patient\na.png,José\n".encode("cp850"), "neither UTF-8 nor UTF-16 nor clearly Latin-1"),
    ("path,patient\na.png,José\n".encode() + "b.png,José\n".encode("latin-1"), "in part UTF-8 and in part another"),
    (b"PK\x03\x04\x14\x00", "an Excel workbook, not a text file; unpack it, or save its sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"), (b"PAR1", "a Parquet file"),
])  # fmt: skip
def test_other_encodings_and_binary_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_csv(tmp_path / "t.csv", ("path", "patient"))
    assert read_header(tmp_path / "t.csv") == []


def test_latin_1_is_detected_far_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(("path,patient\n" + "a.png,p\n" * 300_000 + "b.png,José\n").encode("latin-1"))
    assert detect_encoding(tmp_path / "t.csv") == "cp1252"
    assert detect_encoding(tmp_path / "t.csv", head_only=True) == "utf-8-sig"
    assert read_csv(tmp_path / "t.csv", ("path", "patient"))[0]["patient"].iloc[-1] == "José"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_lines_detects_encoding_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "list.txt").write_bytes(end.join(["a.png", " b.png ", "", "c.png", ""]).encode(encoding))
    assert read_lines(tmp_path / "list.txt") == ["a.png", "b.png", "c.png"]


def test_byte_order_mark_is_not_part_of_a_secret(tmp_path: Path) -> None:
    for name, mark in (("plain", b""), ("marked", codecs.BOM_UTF8)):
        (tmp_path / name).write_bytes(mark + b"a secret of 24 letters..\n")
    assert read_secret(tmp_path / "plain", tmp_path / "out") == read_secret(tmp_path / "marked", tmp_path / "out")


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("declaration", ["", "sep={}\n", "sep={}\r\n"])
def test_separator_is_detected(tmp_path: Path, separator: str, declaration: str) -> None:
    last = '"1,0"' if separator == "," else "1,0"
    rows = (("path", "patient", '"Mass, large"', "Edema"), ("a.png", '"p; q, r"', "1", last))
    lines = [separator.join(row) + "\n" for row in rows]
    (tmp_path / "t.csv").write_text(declaration.format(separator) + "".join(lines))
    frame, notes = read_csv(tmp_path / "t.csv", ("path", "patient"))
    assert frame.columns.tolist() == ["path", "patient", "Mass, large", "Edema"]
    assert frame.iloc[0].tolist() == ["a.png", "p; q, r", "1", "1,0"]
    assert ["separated by" in note.text for note in notes] == ([] if separator == "," else [True])


def test_commas_have_precedence_over_separators_inside_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient,a;b\nx;1.png,p;q,1\ny.png,r,0\n")
    frame, notes = read_csv(tmp_path / "t.csv", ("path", "patient"))
    assert frame["path"].tolist() == ["x;1.png", "y.png"] and notes == []


def test_error_for_a_ragged_row_shows_the_dialect(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path;patient;Edema\na.png;p;1\nb.png;q\n".encode("utf-16"))
    message = r"row 2 has 2 cells, the header 3 \(read as UTF-16, separated by semicolons\); correct it"
    with pytest.raises(InputError, match=message):
        read_csv(tmp_path / "t.csv", ("path", "patient"), own=True)


def test_unknown_separator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path:patient:Edema\na.png:p:1\n")
    with pytest.raises(InputError, match=r"it has: path:patient:Edema \(read as .*; save it with commas"):
        read_csv(tmp_path / "t.csv", ("path", "patient"), own=True)


def test_blank_rows_are_skipped_and_noted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient,Edema\na.png,p,1\n,,\n  , ,\nb.png,q,0\n,,\n")
    frame, notes = read_csv(tmp_path / "t.csv", ("path", "patient"))
    assert frame["path"].tolist() == ["a.png", "b.png"] and frame.index.tolist() == [0, 1]
    assert [note.text for note in notes] == ["t.csv: 3 blank rows skipped"]
