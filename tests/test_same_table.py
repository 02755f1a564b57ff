"""Equivalent tables give the same shards. Changes that lose information are refused or noted."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.version import Version

from shard.errors import InputError
from shard.manifest import read_manifest
from shard.table import Table, read_table
from shard.write import build
from tests.tables import write_blank

Sheet = dict[str, list[str]]  # column → cells
IMAGES, SEEDS = 12, int(os.environ.get("SEEDS", "6"))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


def make_chexpert(rng: np.random.Generator) -> dict[str, Sheet]:
    sheets = {}
    for split, start, count in (("train", 1, IMAGES - 4), ("valid", 900, 4)):
        sheets[f"{split}.csv"] = {
            "Path": [f"CheXpert-v1.0-small/{split}/patient{start + n:05d}/study1/view1.jpg" for n in range(count)],
            "Sex": list(rng.choice(["Male", "Female"], count)), "Age": list(rng.choice(["57", "60", "23"], count)),
            "Frontal/Lateral": list(rng.choice(["Frontal", "Lateral"], count)), "AP/PA": ["AP"] * count,
            "No Finding": random_labels(rng, count), "Lung Opacity": random_labels(rng, count),
            "Pleural Effusion": random_labels(rng, count),
        }  # fmt: skip
    return sheets


def make_nih(rng: np.random.Generator) -> dict[str, Sheet]:
    return {"Data_Entry_2017.csv": {
        "Image Index": [f"{n // 2:08d}_{n % 2:03d}.png" for n in range(IMAGES)],
        "Finding Labels": list(rng.choice(["No Finding", "Mass|Edema", "Hernia"], IMAGES)),
        "Patient ID": [str(n // 2) for n in range(IMAGES)], "Patient Age": list(rng.choice(["57", "60"], IMAGES)),
        "Patient Gender": list(rng.choice(["M", "F"], IMAGES)), "View Position": list(rng.choice(["PA", "AP"], IMAGES)),
    }}  # fmt: skip


def make_mimic(rng: np.random.Generator) -> dict[str, Sheet]:
    dicom, subject = [f"{n:04x}-aa" for n in range(IMAGES)], [str(10000001 + n // 3) for n in range(IMAGES)]
    study = [str(50000001 + n // 2) for n in range(IMAGES)]
    subject = [subject[2 * (n // 2)] for n in range(IMAGES)]  # a study is of one subject
    return {
        "mimic-cxr-2.0.0-metadata.csv": {"dicom_id": dicom, "subject_id": subject, "study_id": study,
                                         "ViewPosition": list(rng.choice(["PA", "AP", "LATERAL"], IMAGES))},
        "mimic-cxr-2.0.0-chexpert.csv": {"subject_id": subject[::2], "study_id": study[::2],
                                         "Edema": random_labels(rng, IMAGES // 2),
                                         "Lung Opacity": random_labels(rng, IMAGES // 2)},
        "mimic-cxr-2.0.0-split.csv": {"dicom_id": dicom, "study_id": study, "subject_id": subject,
                                      "split": ["train" if one < "10000003" else "validate" for one in subject]},
    }  # fmt: skip


def make_plain(rng: np.random.Generator) -> dict[str, Sheet]:
    return {"t.csv": {
        "path": [f"im ages/{n:02d}.png" for n in range(IMAGES)],
        "patient": [["7", "007", "José", "P 4", "O'Neil, A", "12"][n // 2] for n in range(IMAGES)],
        "split": ["train" if n < 6 else "test" for n in range(IMAGES)], "sex": list(rng.choice(["F", "M"], IMAGES)),
        "age": list(rng.choice(["57", "60"], IMAGES)), "view": list(rng.choice(["PA", "AP"], IMAGES)),
        "Mass": random_labels(rng, IMAGES), "Lung Opacity": random_labels(rng, IMAGES),
    }}  # fmt: skip


def random_labels(rng: np.random.Generator, count: int) -> list[str]:
    return list(rng.choice(["1.0", "0.0", "-1.0", ""], count))


FORMATS: dict[str, Callable[[np.random.Generator], dict[str, Sheet]]] = {
    "chexpert": make_chexpert, "nih": make_nih, "mimic": make_mimic, "plain": make_plain}  # fmt: skip
IDS = ("patient", "Patient ID", "subject_id", "study_id")
PATHS = ("Path", "path")
FINDINGS = ("No Finding", "Lung Opacity", "Pleural Effusion", "Edema", "Mass")


def respell_header(name: str, rng: np.random.Generator) -> str:
    """Write a header in another spelling."""
    other = rng.choice(["{}", " {} ", "{}\u200b", "\u00a0{}"])
    turned = [name, name.upper(), name.lower(), name.replace(" ", "_"), name.replace(" ", "."), name.replace(" ", "  "),
              name.replace(" ", ""), name.replace("_", " "), name.title()]  # fmt: skip
    return str(other).format(turned[rng.integers(len(turned))])


def respell_id(cell: str, rng: np.random.Generator) -> str:
    """Write an id in another spelling."""
    forms = ["{}", " {}", "{} ", "{}\u00a0", "{}\u200b", "\ufeff{}"]
    forms += ["{}.0", "{}.", "{}.00"] if cell.isdigit() else []
    return forms[rng.integers(len(forms))].format(cell.replace("é", str(rng.choice(["é", "e\u0301"]))))


def respell_path(cell: str, rng: np.random.Generator) -> str:
    """Write a path in another spelling."""
    forms = [cell, f" {cell} ", f"./{cell}", cell.replace("/", "//"), cell.replace("/", "\\"), cell.replace("/", "/./")]
    return forms[rng.integers(len(forms))]


def rewrite(sheet: Sheet, rng: np.random.Generator, own: bool) -> Sheet:
    """Return an equivalent sheet: other order and spelling, and an additional column. own: it is a user's own table."""
    order = rng.permutation(len(next(iter(sheet.values()))))
    columns = {name: [cells[place] for place in order] for name, cells in sheet.items()}
    for name, cells in columns.items():
        change = respell_id if name in IDS else respell_path if name in PATHS else None
        if change is not None:
            columns[name] = [change(cell, rng) for cell in cells]
        if name in FINDINGS:
            columns[name] = [cell.replace(".0", str(rng.choice(["", ".0", ",0", ".00"]))) for cell in cells]
    columns["a remark"] = ["seen twice"] * len(order)
    names = [str(name) for name in rng.permutation(list(columns))]
    if not own:
        return {respell_header(name, rng): columns[name] for name in names}
    # In a user's own table, the header sets the names and order of the findings.
    findings = iter([name for name in columns if name in FINDINGS])
    names = [next(findings) if name in FINDINGS else name for name in names]
    return {name if name in FINDINGS else respell_header(name, rng): columns[name] for name in names}


def write(file: Path, sheet: Sheet, rng: np.random.Generator | None = None) -> None:
    """Write a sheet as a CSV. rng: chooses encoding, separator, line ends, quotes and compression."""
    own = rng or np.random.default_rng(0)
    mark, end = (str(own.choice([",", ";", "\t", "|"])), str(own.choice(["\n", "\r\n", "\r"]))) if rng else (",", "\n")
    text = io.StringIO()
    if rng and rng.random() < 0.2:
        text.write(f"sep={mark}{end}")
    quoting = csv.QUOTE_ALL if rng and rng.random() < 0.3 else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerow(sheet)
    writer.writerows(zip(*sheet.values(), strict=True))
    if rng and rng.random() < 0.3:
        writer.writerow([""] * len(sheet))
    content = text.getvalue()
    if rng and rng.random() < 0.3:
        content = content.removesuffix(end)
    western = not rng or all(letter < "\u0100" for letter in content)
    encoding = str(own.choice([*ENCODINGS, *(["latin-1"] if western else [])])) if rng else "utf-8"
    data = content.encode(encoding)
    file.write_bytes(gzip.compress(data) if rng and rng.random() < 0.3 else data)


def read(folder: Path, format: str) -> Table:
    return read_table(folder, table=folder / "t.csv" if format == "plain" else None)


def content(table: Table) -> list[dict[str, object]]:
    frame = table.rows.sort_values("key")[[*sorted(set(table.rows) - set(table.findings)), *sorted(table.findings)]]
    return list(frame.astype("object").where(frame.notna(), None).to_dict("records"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for format, make in FORMATS.items():
        (tmp_path / format).mkdir()
        sheet = next(iter(make(np.random.default_rng(0)).values()))
        first = {"chexpert": "train/patient00001/study1/view1.jpg", "nih": "images/00000000_000.png",
                 "mimic": "files/p10/p10000001/s50000001/0000-aa.jpg", "plain": "im ages/00.png"}[format]  # fmt: skip
        write_blank(tmp_path / format / first)
        assert sheet
    return tmp_path


def write_tables(folder: Path, format: str, seed: int) -> dict[str, Sheet]:
    sheets: dict[str, Sheet] = FORMATS[format](np.random.default_rng(seed))
    for name, sheet in sheets.items():
        write(folder / name, sheet)
    return sheets


@pytest.mark.parametrize("format", [
    pytest.param(format, marks=pytest.mark.skipif(
        format == "nih" and Version(pd.__version__) < Version("3.1"),
        reason="pandas before 3.1 can't parse one of these tables: Buffer overflow caught"))
    for format in FORMATS
])  # fmt: skip
def test_equivalent_tables_read_equal(images: Path, format: str) -> None:
    folder = images / format
    for seed in range(SEEDS):
        sheets = write_tables(folder, format, seed)
        expected = read(folder, format)
        assert len(expected.rows) == IMAGES and not expected.rejects
        rng = np.random.default_rng([seed, 1])
        for name, sheet in sheets.items():
            write(folder / name, rewrite(sheet, rng, own=format == "plain"), rng)
        found = read(folder, format)
        assert content(found) == content(expected), f"seed {seed}"
        assert not found.rejects and found.findings == expected.findings


def drop_column(sheet: Sheet, rng: np.random.Generator) -> Sheet:
    lost = pick_column(sheet, rng)
    return {name: cells for name, cells in sheet.items() if name != lost}


def rename_column(sheet: Sheet, rng: np.random.Generator) -> Sheet:
    lost = pick_column(sheet, rng)
    return {f"{name} of old" if name == lost else name: cells for name, cells in sheet.items()}


def pick_column(sheet: Sheet, rng: np.random.Generator) -> str:
    """Pick a column that the format reads, or one that a user's own table requires."""
    if "path" in sheet:
        return str(rng.choice(["path", "patient"]))
    return str(rng.choice([name for name in sheet if "split" not in sheet or name in ("dicom_id", "split")]))


def repeat_row_with_another_cell(sheet: Sheet, rng: np.random.Generator) -> Sheet:
    last = list(sheet)[-1]
    cell = "-1.0" if sheet[last][0] != "-1.0" else "1.0"
    cell = {"View Position": "LL", "ViewPosition": "LL", "split": "test"}.get(last, cell)
    return {name: [*cells, cell if name == last else cells[0]] for name, cells in sheet.items()}


def change_id(sheet: Sheet, rng: np.random.Generator) -> Sheet:
    name = next(name for name in ("dicom_id", "study_id", "Path", "path", "Image Index") if name in sheet)
    if "Edema" in sheet:
        name = "study_id"
    changed = {"Path": "train/patient77777/study1/view1_frontal.jpg"}.get(name, "99999999")
    return {other: [changed, *cells[1:]] if other == name else cells for other, cells in sheet.items()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("change", [drop_column, rename_column, repeat_row_with_another_cell])
def test_lossy_changes_are_refused_or_noted(
    images: Path, format: str, change: Callable[[Sheet, np.random.Generator], Sheet]
) -> None:
    """A change has no effect, or an error, a note or a reject reports the loss."""
    folder = images / format
    for seed in range(SEEDS):
        sheets = write_tables(folder, format, seed)
        before = read(folder, format)
        rng = np.random.default_rng([seed, 2])
        name = str(rng.choice(list(sheets)))
        write(folder / name, change(sheets[name], rng))
        try:
            after = read(folder, format)
        except InputError:
            continue
        same = content(after) == content(before)
        noted = set(after.notes) - set(before.notes) or set(after.rejects) - set(before.rejects)
        assert same or noted, f"seed {seed}: {name}"


def test_id_without_counterpart_is_noted_or_refused(images: Path) -> None:
    folder = images / "mimic"
    sheets = make_mimic(np.random.default_rng(0))
    for changed in sheets:
        for name, sheet in sheets.items():
            write(folder / name, change_id(sheet, np.random.default_rng(0)) if name == changed else sheet)
        if "split" in changed or "metadata" in changed:
            with pytest.raises(InputError, match="no row for dicom_id"):
                read(folder, "mimic")
        else:
            assert any("no row for the subject_id/study_id of 2 of 12 rows" in note.text for note in
                       read(folder, "mimic").notes)  # fmt: skip


@pytest.mark.parametrize("format", ["chexpert", "plain"])
def test_equivalent_tables_give_the_same_shards(radiographs: Path, tmp_path: Path, format: str) -> None:
    """The shards are equal byte for byte."""
    folder, images = tmp_path / "src", list(radiographs.rglob("*.jpg"))
    sheets = FORMATS[format](np.random.default_rng(5))
    column = {"chexpert": "Path", "plain": "path"}[format]
    for number, path in enumerate(path for sheet in sheets.values() for path in sheet[column]):
        file = folder / path.removeprefix("CheXpert-v1.0-small/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images[number].read_bytes())
    fingerprints = set()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for name, sheet in sheets.items():
            if seed:
                write(folder / name, rewrite(sheet, rng, own=format == "plain"), rng)
            else:
                write(folder / name, sheet)
        out = tmp_path / f"out-{seed}"
        build(folder, out, table=folder / "t.csv" if format == "plain" else None, size=48, workers=1)
        fingerprints.add(read_manifest(out).fingerprint())
    assert len(fingerprints) == 1


def test_written_tables_are_read_correctly(images: Path) -> None:
    sheets = make_plain(np.random.default_rng(3))
    write(images / "plain" / "t.csv", sheets["t.csv"])
    rows = read(images / "plain", "plain").rows
    assert rows["patient"].tolist() == sheets["t.csv"]["patient"]
    masses = [float(cell or "nan") for cell in sheets["t.csv"]["Mass"]]
    assert rows["Mass"].tolist() == pytest.approx(masses, nan_ok=True)
