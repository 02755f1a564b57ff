"""Untrusted shards and tables do no harm, and de-identified shards reveal nothing about patients."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from probe.draws_file import read_draws, write_draws
from shard.deidentify import Pseudonyms, names
from shard.dicom.image import has_pydicom
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.files import sha256_of
from shard.formats import TASKS
from shard.image import load_grey
from shard.info import info
from shard.manifest import read_manifest
from shard.read import read_labels
from shard.table import make_key, read_table
from shard.tabular.sheet import from_cell, to_csv
from shard.verify import verify
from shard.write import build
from tests.conftest import Shards, newest, run_module, train_here
from tests.odd_files import write_dicom
from train.checkpoint import save_checkpoint

SURNAME = "Przybylski"


@pytest.fixture
def archive(radiographs: Path, tmp_path: Path) -> Path:
    """24 images with a surname in names, paths and patients; one is broken, one is missing, one row is repeated."""
    source, rows = tmp_path / f"of {SURNAME}", []
    source.mkdir()
    for number, image in enumerate(sorted(radiographs.rglob("*.jpg"))[:24]):
        path = f"{SURNAME}_{number // 3}/{number}.jpg"
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_bytes(b"GIF89a" + SURNAME.encode() if number == 7 else image.read_bytes())
        rows.append({"path": path, "patient": f"{SURNAME}-{number // 3}", "split": "test" if number > 14 else "train",
                     "age": f"{80 + number}", "sex": "F", "Mass": number % 2})  # fmt: skip
    (source / f"{SURNAME}_1/5.jpg").unlink()
    if has_pydicom():
        write_dicom(source / f"{SURNAME}_0/0.dcm", load_grey(source / f"{SURNAME}_0/0.jpg", 200).astype(np.uint16) * 16,
                    BitsStored=12, PatientName=SURNAME, PatientID=SURNAME)  # fmt: skip
        rows[0]["path"] = f"{SURNAME}_0/0.dcm"
    pd.DataFrame([*rows, rows[3]]).to_csv(source / "table.csv", index=False)
    return source


def build_deidentified(archive: Path, out: Path, secret: Path, *flags: str) -> tuple[int, str]:
    """Run the build command; return its exit status and its output."""
    done = run_module("shard", "build", str(archive), str(out), f"--table={archive / 'table.csv'}", "--size=64",
                      f"--deidentify={secret}", "--max-rejects=0.5", "--shard-size=10", *flags)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_deidentified_shards_contain_no_names_or_secret(archive: Path, tmp_path: Path) -> None:
    secret, out = tmp_path / "secret", tmp_path / "shards"
    status, output = build_deidentified(archive, out, secret)
    assert status == 0 and SURNAME not in output, output
    assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_text().strip()) == 64
    verify(out)
    run_module("shard", "info", str(out), f"--html={out / 'info.html'}", f"--png={out / 'info.png'}")
    written = [file for file in out.rglob("*") if file.is_file()]
    assert len(written) >= 8
    for file in written:
        content = file.read_bytes()
        assert SURNAME.encode() not in content and SURNAME not in file.name, file
        assert secret.read_bytes().strip() not in content, file
    labels = read_labels(out, read_manifest(out), ("train", "test"))
    assert labels["key"].str.fullmatch("[0-9a-f]{20}").all() and labels["patient"].str.fullmatch("[0-9a-f]{20}").all()
    assert labels["age"].max() == 90 and labels["age"].min() == 80
    groups = labels.groupby("patient")["age"].agg(list)
    assert len(groups) == 8 and sorted(groups.map(len)) == [2, 2, *[3] * 6]  # 3 images per patient, as in the source
    rejects = pd.read_csv(out / "rejects.csv", keep_default_na=False)
    assert sorted(rejects["reason"]) == ["no such file", "not an image in a known format", "repeats an earlier row"]
    assert (rejects["path"] == "").all()


@pytest.mark.long
def test_same_secret_gives_equal_shards_and_resolves_names(archive: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert build_deidentified(archive, tmp_path / "one", secret)[0] == 0
    for part in range(2):
        assert build_deidentified(archive, tmp_path / "parts", secret, f"--part={part}", "--parts=2")[0] == 0
        left = b"".join(file.read_bytes() for file in (tmp_path / "parts").rglob("*") if file.is_file())
        assert SURNAME.encode() not in left  # nor does an unfinished build
    assert run_module("shard", "merge", str(tmp_path / "parts"), "--max-rejects=0.5").returncode == 0
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file
    names(archive, tmp_path / "names.csv", deidentify=secret, table=archive / "table.csv")
    assert stat.S_IMODE((tmp_path / "names.csv").stat().st_mode) == 0o600
    resolved = pd.read_csv(tmp_path / "names.csv", keep_default_na=False)
    labels = read_labels(tmp_path / "one", read_manifest(tmp_path / "one"), ("train", "test")).set_index("key")
    rejects = pd.read_csv(tmp_path / "one" / "rejects.csv")
    assert set(resolved["key_in_shards"]) == {*labels.index, *rejects["key"]} and len(resolved) == 25
    for row in resolved[resolved["key_in_shards"].isin(labels.index) & (resolved["patient"] != "")].to_dict("records"):
        number = int(Path(row["path"]).stem)
        assert labels.loc[row["key_in_shards"], "Mass"] == number % 2
        assert row["patient"] == f"{SURNAME}-{number // 3}"
        assert labels.loc[row["key_in_shards"], "patient"] == row["patient_in_shards"]


@pytest.mark.long
def test_build_refuses_an_unsuitable_or_different_secret(archive: Path, tmp_path: Path) -> None:
    out, secret = tmp_path / "shards", tmp_path / "secret"
    (tmp_path / "short").write_text("swordfish\n")
    status, output = build_deidentified(archive, out, tmp_path / "short")
    assert status == 1 and "has 9 bytes, but a secret needs at least 16" in output and not out.exists()
    status, output = build_deidentified(archive, out, out / "secret")
    assert status == 1 and "would be shared with the shards; keep it elsewhere" in output and not out.exists()
    assert build_deidentified(archive, out, secret)[0] == 0
    status, output = build_deidentified(archive, out, tmp_path / "lost")
    assert status == 1 and "no such file, and" in output and not (tmp_path / "lost").exists()
    (tmp_path / "other").write_text("a" * 32)
    status, output = build_deidentified(archive, out, tmp_path / "other")
    assert status == 1 and "contains shards of another build (deidentified" in output
    with pytest.raises(InputError, match="lost: no such file; give the one"):
        names(archive, tmp_path / "names.csv", deidentify=tmp_path / "lost", table=archive / "table.csv")


def test_pseudonyms_are_truncated_hmacs() -> None:
    one, other = Pseudonyms(b"0" * 32), Pseudonyms(b"1" * 32)
    # printf 'patient a' | openssl dgst -sha256 -hmac 00000000000000000000000000000000
    assert one.pseudonym("patient", "a") == "7434f2f3ecf098e706d0"
    assert len({one.pseudonym("patient", "a"), one.pseudonym("key", "a"), other.pseudonym("patient", "a"),
                one.fingerprint()}) == 4  # fmt: skip


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.jpg", "a/../../secret.jpg", "..", r"..\secret.jpg",
                                  r"C:\secret.jpg", r"\\host\secret.jpg"])  # fmt: skip
def test_paths_outside_the_source_need_allow_outside(radiographs: Path, tmp_path: Path, path: str) -> None:
    image = next(radiographs.rglob("*.jpg"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "in..side.jpg").write_bytes(image.read_bytes())
    (tmp_path / "secret.jpg").write_bytes(image.read_bytes())
    rows = [{"path": name, "patient": name, "split": "train", "Mass": 1} for name in ("in..side.jpg", path)]
    pd.DataFrame(rows).to_csv(source / "table.csv", index=False)
    with pytest.raises(InputError, match=r"leads out of it; make .*--allow-outside"):
        build(source, tmp_path / "out", table=source / "table.csv")
    assert not (tmp_path / "out").exists()
    build(source, tmp_path / "out", table=source / "table.csv", allow_outside=True, max_rejects=1, workers=1)
    assert read_manifest(tmp_path / "out").images("train") == (2 if path == "../secret.jpg" else 1)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "'=1", "''", "-", "plain", "",
                                  "'a"])  # fmt: skip
def test_csv_cells_contain_no_formulas_and_read_back(tmp_path: Path, text: str) -> None:
    frame = pd.DataFrame({f"{text}x": [text, "b\r=1"], "number": [-1.5, 2]}).astype({f"{text}x": "category"})
    (tmp_path / "table.csv").write_bytes(to_csv(frame))
    read = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert not str(read.columns[0]).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not str(read.iloc[0, 0]).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [from_cell(str(cell)) for cell in (read.columns[0], *read.iloc[:, 0])] == [f"{text}x", text, "b =1"]
    assert read["number"].tolist() == [-1.5, 2]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ".", "..", "-rf", "$(evil)", "évil\n"])
def test_key_is_a_safe_file_name(name: str) -> None:
    key = make_key(name)
    assert key and "/" not in key and "." not in key and key.isascii() and not set(key) & set("$()\n ")


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "device"])
def test_verify_refuses_a_tar_with_unsafe_members(radiographs: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "shards"
    build(radiographs, out, size=64, workers=1)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    shard = manifest["shards"][0]
    member = tarfile.TarInfo({"outside": "../evil.jpg", "absolute": "/tmp/evil.jpg"}.get(kind, "evil.jpg"))
    member.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}.get(kind, tarfile.REGTYPE)
    member.linkname = "/etc/passwd" if kind == "link" else ""
    tar = out / shard["tar"]
    with tarfile.open(tar, "a") as archive:
        archive.addfile(member)
    shard |= {"tar_bytes": tar.stat().st_size, "tar_sha256": sha256_of(tar)}
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"not a tar of samples \(member '.*evil.jpg' is not KEY.ENDING\)"):
        verify(out)


@pytest.mark.parametrize("field", ["tar", "index"])
@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b.tar", "", "."])
def test_manifest_with_file_names_outside_its_folder_is_refused(
    radiographs: Path, tmp_path: Path, field: str, name: str
) -> None:
    out = tmp_path / "shards"
    build(radiographs, out, size=64, workers=1)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0][field] = name
    path.write_text(json.dumps(manifest))
    (tmp_path / "outside").write_bytes(os.urandom(100))
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(out)


@pytest.mark.long
def test_pages_and_tables_escape_names_from_the_source_table(radiographs: Path, tmp_path: Path) -> None:
    """Findings, keys and encoders with HTML markup, TeX, Markdown and spreadsheet formulas."""
    source = read_table(radiographs).rows
    hostile = ["<script>alert(1)</script>", "$x_{$ & \\input{/etc/passwd}", "=HYPERLINK(1)|# b"]
    table = pd.DataFrame({
        "path": source["path"], "patient": "<b>" + source["patient"], "split": source["split"], "sex": source["sex"],
        **{name: source[task].to_numpy() for name, task in zip(hostile, TASKS, strict=False)},
    })  # fmt: skip
    table.to_csv(tmp_path / "table.csv", index=False)
    shards, out = tmp_path / "shards", tmp_path / "out"
    build(radiographs, shards, table=tmp_path / "table.csv", size=64, workers=1)
    info(shards, html=tmp_path / "info.html")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    done = run_module("probe", "report", f"<img src=x>{{}}%={tmp_path / 'weights.pth'}", f"--shards={shards}",
                      f"--out={out}", f"--tasks={','.join(hostile)}", "--draws=2", "--shots=2", "--size=64",
                      "--device=cpu", f"--imagenet-weights={tmp_path / 'weights.pth'}",
                      "--input=<img src=x>{}%:imagenet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "info.html", out / "report.html"):
        text = page.read_text()
        assert "&lt;script&gt;" in text
        assert not re.search("<script>alert|<b>patient|<img src=x>", text), page
    assert "&lt;img src=x&gt;" in (out / "report.html").read_text()
    written = (out / "table.tex").read_text()
    assert r"\textbackslash{}input" in written and not re.search(r"(?<!\\)\$x|\\input\{", written)
    assert r"=HYPERLINK(1)\|# b" in (out / "table.md").read_text()
    for name in ("table.csv", "differences.csv", "draws.csv"):
        cells = pd.read_csv(out / name, dtype="str", keep_default_na=False)
        assert not (cells["task"].str.startswith("=")).any() and "'=HYPERLINK(1)|# b" in set(cells["task"]), name
    labels = read_labels(shards, read_manifest(shards), ("train", "valid"))
    assert write_draws(read_draws(out / "draws.csv", labels), labels) == (out / "draws.csv").read_bytes()


@pytest.mark.parametrize(("offset", "size"), [(-512, 100), (512, -1), (512, 2**60), (10**9, 100), (2**70, 1)])
def test_index_that_points_outside_its_tar_is_refused(
    shards: Shards, tmp_path: Path, offset: int, size: int
) -> None:
    """The hash of the index matches the manifest, as if a malicious author wrote both."""
    shutil.copytree(shards.folder, tmp_path / "shards")
    shard = shards.manifest.shards[0]
    index = tmp_path / "shards" / shard.index
    header, first, *rest = index.read_text().splitlines()
    words = first.split()
    for ending in (0, 4):
        changed = " ".join([*words[: ending + 1], str(offset), str(size), *words[ending + 3 :]])
        index.write_text("\n".join([header, changed, *rest]) + "\n")
        signed = dataclasses.replace(shard, index_sha256=sha256_of(index), index_bytes=index.stat().st_size)
        manifest = dataclasses.replace(shards.manifest, shards=(signed,))
        with pytest.raises(InputError, match=r"not an index|has no \.jpg of the expected size|is missing"):
            Fetcher(tmp_path / "shards", manifest, shard.split).read(0)
            read_labels(tmp_path / "shards", manifest, (shard.split,))


@pytest.mark.parametrize("damage", ["shape", "no tensor", "step", "settings"])
def test_resume_refuses_an_invalid_optimizer_state(
    shards: Shards, trained: Path, tmp_path: Path, damage: str
) -> None:
    state = newest(trained)
    first = state["optimizer"]["state"][0]
    if damage == "shape":
        first["exp_avg"] = torch.zeros(3, 3)
    elif damage == "no tensor":
        first["exp_avg_sq"] = "x"
    elif damage == "step":
        state["step"] = -4
    else:  # the run ignores these and uses its own settings
        state["optimizer"]["param_groups"][0] |= {"betas": "x", "eps": None, "weight_decay": 7.0}
    save_checkpoint(tmp_path, 12, state)
    if damage == "settings":
        train_here(shards, tmp_path, epochs=3, limit_steps=13, accept=("epochs",))
        assert newest(tmp_path)["optimizer"]["param_groups"][0]["weight_decay"] == 0
        return
    with pytest.raises(InputError, match="not the content of a run's checkpoint"):
        train_here(shards, tmp_path, epochs=3)
